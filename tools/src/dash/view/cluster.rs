//! Which GPUs stand out? All of them on one screen; into pods, nodes, GPUs and operations.

use super::draw::{Pane, heat_key, stage_name};
use super::{no_detail, stand_in};
use crate::dash::state::{Level, State, View};
use crate::output::numbers::{bytes, count, percent, time};
use crate::run_file::Detail;
use crate::run_file::model::{Ranks, of_rank};
use ratatui::style::Style;

/// A figure of every GPU.
struct Metric {
    name: &'static str,
    column: fn(&Ranks) -> &Vec<u64>,
    format: fn(u64) -> String,
}

/// The figures.
const METRICS: [Metric; 7] = [
    Metric {
        name: "wait for others",
        column: |ranks| &ranks.waited,
        format: time,
    },
    Metric {
        name: "compute",
        column: |ranks| &ranks.compute,
        format: time,
    },
    Metric {
        name: "communication",
        column: |ranks| &ranks.communication,
        format: time,
    },
    Metric {
        name: "done at (stragglers)",
        column: |ranks| &ranks.finish,
        format: time,
    },
    Metric {
        name: "memory",
        column: |ranks| &ranks.memory,
        format: bytes,
    },
    Metric {
        name: "token copies computed",
        column: |ranks| &ranks.rows,
        format: count,
    },
    Metric {
        name: "bytes out of the NIC",
        column: |ranks| &ranks.nic_out,
        format: bytes,
    },
];

/// How the cells of all GPUs are laid out.
struct Grid {
    /// GPUs of a cell.
    per_cell: usize,
    /// Cells of a node.
    cells: usize,
    /// Columns of a cell.
    wide: usize,
    /// Nodes of a row.
    nodes: usize,
    /// Columns before the first node.
    label: usize,
}

impl Grid {
    /// The finest layout of `gpus` in nodes of `node` that fits; each node takes its cells and a gap.
    fn fitting(gpus: usize, node: usize, width: usize, height: usize) -> Grid {
        let label = 7;
        let columns = width.saturating_sub(label);
        let mut per_cell = 1;
        loop {
            let cells = node.div_ceil(per_cell);
            // Nodes of a row, where cells are so wide; round numbers are easier to count.
            let nodes = |wide: usize| {
                let most = (columns / (cells * wide + 1)).max(1);
                let round = [64, 32, 16, 8, 4, 2]
                    .into_iter()
                    .find(|round| most >= *round && gpus.div_ceil(node * round) <= height);
                round.unwrap_or(most)
            };
            let fits = |wide: usize| gpus.div_ceil(node * nodes(wide)) <= height;
            if fits(1) || cells == 1 {
                let wide = (2..=4).rev().find(|wide| fits(*wide)).unwrap_or(1);
                return Grid {
                    per_cell,
                    cells,
                    wide,
                    nodes: nodes(wide),
                    label,
                };
            }
            per_cell *= 2;
        }
    }

    /// Columns of a node and the gap after it.
    fn pitch(&self) -> usize {
        self.cells * self.wide + 1
    }
}

fn metric(state: &State) -> &'static Metric {
    &METRICS[state.metric_of(View::Cluster, METRICS.len())]
}

/// The GPUs that are shown at this level.
fn in_sight(state: &State, detail: &Detail) -> std::ops::Range<usize> {
    let gpus = detail.gpus as usize;
    match state.level {
        Level::World => 0..gpus,
        Level::Pod => {
            let pod = state.gpus_per_pod();
            let first = state.gpu / pod * pod;
            first..(first + pod).min(gpus)
        }
        Level::Node => {
            let node = detail.gpus_per_node as usize;
            let first = state.gpu / node * node;
            first..first + node
        }
        Level::Gpu => state.gpu..state.gpu + 1,
    }
}

pub(super) fn draw(state: &State, pane: &mut Pane<'_>) {
    let Some(detail) = state.detail() else {
        return no_detail(state, pane);
    };
    let node = detail.gpus_per_node as usize;
    let gpu = state.gpu.min(detail.gpus as usize - 1);
    let pod = gpu / state.gpus_per_pod();
    let title = match state.level {
        Level::World => format!(
            "all {} GPUs by {}",
            count(u64::from(detail.gpus)),
            metric(state).name
        ),
        Level::Pod => format!("pod {pod} by {}", metric(state).name),
        Level::Node => format!("pod {pod} > node {}", gpu / node),
        Level::Gpu => format!("pod {pod} > node {} > GPU {gpu}", gpu / node),
    };
    let mut inside = pane.framed(&title);
    let (width, height) = (inside.width(), inside.height());
    let top = usize::from(stand_in(state, &mut inside, 0));
    let mut inside = inside.part(0, top, width, height - top);
    match state.level {
        Level::World | Level::Pod => cells(state, detail, &mut inside),
        Level::Node => gpus_of_node(state, detail, &mut inside),
        Level::Gpu => operations(state, detail, gpu, &mut inside),
    }
}

/// A cell a GPU, or for a few.
fn cells(state: &State, detail: &Detail, pane: &mut Pane<'_>) {
    let metric = metric(state);
    let column = (metric.column)(&detail.ranks);
    let shown = in_sight(state, detail);
    let node = detail.gpus_per_node as usize;
    let rows = pane.height().saturating_sub(3);
    let grid = Grid::fitting(shown.len(), node, pane.width(), rows);
    let all = || (0..detail.gpus as usize).map(|rank| of_rank(column, rank));
    let (low, high) = (all().min().unwrap_or(0), all().max().unwrap_or(0));
    let scale = |value: u64| match high > low {
        true => (value - low) as f64 / (high - low) as f64,
        false => 0.5,
    };
    let first_node = shown.start / node;
    for (place, number) in (first_node..shown.end / node).enumerate() {
        let (x, y) = (
            grid.label + place % grid.nodes * grid.pitch(),
            place / grid.nodes,
        );
        if y >= rows {
            break;
        }
        if place % grid.nodes == 0 {
            pane.put_right(grid.label - 1, y, &number.to_string(), state.theme.dim());
        }
        for cell in 0..grid.cells {
            let first = number * node + cell * grid.per_cell;
            let last = (first + grid.per_cell).min((number + 1) * node);
            let most = (first..last)
                .map(|rank| of_rank(column, rank))
                .max()
                .unwrap_or(0);
            let (glyph, style) = state.theme.heat(scale(most));
            let is_selected = (first..last).contains(&state.gpu);
            let style = if is_selected {
                state.theme.selected()
            } else {
                style
            };
            let glyph = if is_selected { '◆' } else { glyph };
            for part in 0..grid.wide {
                pane.glyph(x + cell * grid.wide + part, y, glyph, style);
            }
        }
    }
    let y = pane.height().saturating_sub(3);
    if low == high {
        let text = format!(
            "alike on all GPUs: {}. Padded buffers make every rank the same; --padding dropless shows skew",
            (metric.format)(low)
        );
        pane.put(1, y, &text, state.theme.dim());
    } else {
        let worst = all()
            .enumerate()
            .max_by_key(|(rank, value)| (*value, std::cmp::Reverse(*rank)));
        let least = all()
            .enumerate()
            .min_by_key(|(rank, value)| (*value, *rank));
        let mean = all().map(u128::from).sum::<u128>() / u128::from(detail.gpus);
        if let (Some((most_at, most)), Some((least_at, least))) = (worst, least) {
            let text = format!(
                "most {} on GPU {most_at}   mean {}   least {} on GPU {least_at}",
                (metric.format)(most),
                (metric.format)(mean as u64),
                (metric.format)(least),
            );
            pane.put(1, y, &text, Style::new());
        }
    }
    let node_of = state.gpu / node;
    let text = format!(
        "◆ GPU {} of node {node_of} in pod {}: {}",
        state.gpu,
        state.gpu / state.gpus_per_pod(),
        (metric.format)(of_rank(column, state.gpu)),
    );
    pane.put(1, y + 1, &text, state.theme.strong());
    heat_key(
        pane,
        1,
        y + 2,
        &(metric.format)(low),
        &(metric.format)(high),
    );
    let cell = match grid.per_cell {
        1 => "a cell is a GPU".to_owned(),
        some => format!("a cell is {some} GPUs, the largest shown"),
    };
    let end = pane.width();
    pane.put_right(
        end - 1,
        y + 2,
        &format!("number at the left: node; {cell}"),
        state.theme.dim(),
    );
}

/// All figures of the GPUs of a node.
fn gpus_of_node(state: &State, detail: &Detail, pane: &mut Pane<'_>) {
    let shown = in_sight(state, detail);
    let width = (pane.width().saturating_sub(8) / METRICS.len()).max(9);
    pane.put(1, 0, "GPU", state.theme.dim());
    let heads = [
        "wait", "compute", "comm.", "done at", "memory", "copies", "NIC out",
    ];
    for (place, head) in heads.iter().enumerate() {
        pane.put_right(8 + (place + 1) * width - 2, 0, head, state.theme.dim());
    }
    for (row, rank) in shown.clone().enumerate() {
        let y = row + 1;
        pane.put(1, y, &rank.to_string(), state.theme.strong());
        for (place, metric) in METRICS.iter().enumerate() {
            let column = (metric.column)(&detail.ranks);
            let value = of_rank(column, rank);
            let most = shown.clone().map(|rank| of_rank(column, rank)).max() == Some(value);
            let alike = shown.clone().all(|rank| of_rank(column, rank) == value);
            let marked = most && !alike;
            let text = format!(
                "{}{}",
                if marked { "▲" } else { "" },
                (metric.format)(value)
            );
            let style = if marked {
                state.theme.bad()
            } else {
                Style::new()
            };
            pane.put_right(8 + (place + 1) * width - 2, y, &text, style);
        }
        if rank == state.gpu {
            let end = pane.width();
            pane.restyle(0, y, end, state.theme.selected());
        }
    }
    pane.put(
        1,
        shown.len() + 2,
        "▲ most of the node where its GPUs differ",
        state.theme.dim(),
    );
}

/// The operations of a GPU, longest or first.
fn operations(state: &State, detail: &Detail, gpu: usize, pane: &mut Pane<'_>) {
    let Some(lane) = detail.lane(gpu) else {
        let text = "its timeline was not recorded; ranks with timelines: ";
        let ranks: Vec<String> = detail
            .lanes
            .iter()
            .map(|lane| lane.rank.to_string())
            .collect();
        pane.words(1, &format!("{text}{}", ranks.join(", ")), state.theme.dim());
        return;
    };
    let by_time = state.sort_of(View::Cluster, 2) == 0;
    let mut ops: Vec<usize> = (0..detail.ops.len())
        .filter(|&op| {
            let info = &detail.ops[op];
            let (start, end) = lane.spans[op];
            end > start
                && state.keeps(&format!(
                    "{} {}",
                    info.label,
                    stage_name(usize::from(info.stage))
                ))
        })
        .collect();
    let length = |op: usize| lane.spans[op].1 - lane.spans[op].0;
    if by_time {
        ops.sort_by_key(|&op| (std::cmp::Reverse(length(op)), op));
    }
    let head = "stage     operation           pass      chunk      start       time   of step";
    pane.put(1, 0, head, state.theme.dim());
    let end = pane.width();
    pane.put_right(
        end,
        0,
        if by_time { "longest first" } else { "in order" },
        state.theme.dim(),
    );
    for (y, &op) in (1..pane.height()).zip(&ops) {
        let info = &detail.ops[op];
        let stage = usize::from(info.stage);
        pane.put(
            1,
            y,
            stage_name(stage),
            state.theme.hue(stage).patch(state.theme.strong()),
        );
        pane.put(11, y, &info.label, Style::new());
        pane.put(
            31,
            y,
            if info.backward { "backward" } else { "forward" },
            state.theme.dim(),
        );
        pane.put_right(46, y, &info.chunk.to_string(), state.theme.dim());
        pane.put_right(57, y, &time(lane.spans[op].0), state.theme.dim());
        pane.put_right(68, y, &time(length(op)), Style::new());
        let share = length(op) as f64 / detail.time.max(1) as f64;
        pane.put_right(78, y, &percent(share), state.theme.strong());
        if end > 90 {
            pane.bar(80, y, end - 82, share, state.theme.hue(stage));
        }
    }
}

/// Moves the selected GPU as the cells lie.
pub(crate) fn steer(state: &mut State, right: isize, down: isize) {
    let Some(detail) = state.detail() else { return };
    let shown = in_sight(state, detail);
    let node = detail.gpus_per_node as usize;
    let gpus = detail.gpus as usize;
    let by = match state.level {
        Level::World | Level::Pod => {
            let (width, height) = cells_size(state.size);
            let grid = Grid::fitting(shown.len(), node, width, height);
            right * grid.per_cell as isize + down * (grid.nodes * node) as isize
        }
        Level::Node | Level::Gpu => right + down,
    };
    let within = match state.level {
        Level::Gpu => 0..gpus,
        Level::World | Level::Pod | Level::Node => shown,
    };
    let moved = state.gpu.saturating_add_signed(by);
    // A row further than there are is no move.
    if within.contains(&moved) {
        state.gpu = moved;
    } else if state.level >= Level::Node {
        state.gpu = moved.clamp(within.start, within.end - 1);
    }
}

/// Columns and rows that cells have, of a terminal of this size.
fn cells_size((columns, rows): (u16, u16)) -> (usize, usize) {
    (
        usize::from(columns).saturating_sub(2),
        usize::from(rows).saturating_sub(3 + 2 + 3),
    )
}

/// A click selects a GPU; on the one selected it goes in.
pub(crate) fn click(state: &mut State, column: u16, row: u16) {
    let Some(detail) = state.detail() else { return };
    let shown = in_sight(state, detail);
    let node = detail.gpus_per_node as usize;
    let (Some(x), Some(y)) = (
        usize::from(column).checked_sub(1),
        usize::from(row).checked_sub(3),
    ) else {
        return;
    };
    let found = match state.level {
        Level::World | Level::Pod => {
            let (width, height) = cells_size(state.size);
            let grid = Grid::fitting(shown.len(), node, width, height);
            let Some(x) = x.checked_sub(grid.label) else {
                return;
            };
            let cell = (x % grid.pitch() / grid.wide).min(grid.cells - 1) * grid.per_cell;
            let number = y * grid.nodes + x / grid.pitch();
            (x / grid.pitch() < grid.nodes).then(|| shown.start + number * node + cell)
        }
        Level::Node => y.checked_sub(1).map(|row| shown.start + row),
        Level::Gpu => None,
    };
    let Some(found) = found.filter(|gpu| shown.contains(gpu)) else {
        return;
    };
    if found == state.gpu {
        state.level = match state.level {
            Level::World => Level::Pod,
            Level::Pod => Level::Node,
            Level::Node | Level::Gpu => Level::Gpu,
        };
    }
    state.gpu = found;
}

#[cfg(test)]
mod tests {
    use super::Grid;

    #[test]
    fn two_thousand_gpus_fit_on_the_smallest_screen() {
        let (columns, rows) = super::cells_size(crate::dash::state::LEAST);
        let grid = Grid::fitting(2_048, 8, columns, rows);
        assert!(2_048usize.div_ceil(8 * grid.nodes) <= rows);
        assert!(grid.label + grid.nodes * grid.pitch() <= columns + 1);
        // Where there is room, a cell is a GPU.
        let (columns, rows) = super::cells_size((200, 50));
        assert_eq!(Grid::fitting(2_048, 8, columns, rows).per_cell, 1);
    }
}

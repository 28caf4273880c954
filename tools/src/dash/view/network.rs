//! Which wires are busy?

use super::draw::{Pane, heat_key};
use super::{no_detail, stand_in};
use crate::dash::state::{State, View};
use crate::output::numbers::{bytes, percent};
use crate::run_file::Detail;
use crate::run_file::model::of_rank;
use ratatui::style::Style;

/// Lists to choose from: busiest links, rails.
const WHAT: usize = 2;

pub(super) fn draw(state: &State, pane: &mut Pane<'_>) {
    let Some(detail) = state.detail() else {
        return no_detail(state, pane);
    };
    let (width, height) = (pane.width(), pane.height());
    let right = (width / 2).clamp(44, 74);
    let top = usize::from(stand_in(state, pane, 0));
    matrix(
        state,
        detail,
        &mut pane.part(0, top, width - right, height - top),
    );
    let classes = 10.min(height / 2);
    links(
        state,
        detail,
        &mut pane.part(width - right, top, right, classes),
    );
    let rest = height - top - classes;
    match state.metric_of(View::Network, WHAT) {
        0 => busiest(
            state,
            detail,
            &mut pane.part(width - right, top + classes, right, rest),
        ),
        _ => rails(
            state,
            detail,
            &mut pane.part(width - right, top + classes, right, rest),
        ),
    }
}

/// Who sends how much to whom.
fn matrix(state: &State, detail: &Detail, pane: &mut Pane<'_>) {
    let traffic = &detail.traffic;
    let side = traffic.side as usize;
    let title = match traffic.ranks_per_block {
        1 => "bytes from GPU (down) to GPU (across)".to_owned(),
        many => format!("bytes by {many} GPUs, from (down) to (across)"),
    };
    let mut inside = pane.framed(&title);
    let label = 7;
    let room = inside.height().saturating_sub(3);
    let across = inside.width().saturating_sub(label);
    if room == 0 || across == 0 || side == 0 {
        return;
    }
    // As many blocks down as across, all alike: a diagonal stays one.
    let merged = side.div_ceil(room.min(across));
    let rows = side.div_ceil(merged);
    let each = (across / rows).clamp(1, 2);
    let columns = rows;
    let blocks = |at: usize| at * merged..((at + 1) * merged).min(side);
    let cell = |row: usize, column: usize| -> u64 {
        let of_row = |source: usize| {
            let row = &traffic.bytes[source * side..][..side];
            row[blocks(column)]
                .iter()
                .copied()
                .fold(0, u64::saturating_add)
        };
        blocks(row).map(of_row).fold(0, u64::saturating_add)
    };
    let cells: Vec<u64> = (0..rows * columns)
        .map(|at| cell(at / columns, at % columns))
        .collect();
    let scale = Scale::of(&cells);
    let selected = (
        state.row[View::Network.index()].min(rows - 1),
        state.column[View::Network.index()].min(columns - 1),
    );
    let per_block = traffic.ranks_per_block as usize;
    for row in 0..rows {
        let rank = blocks(row).start * per_block;
        if row % 4 == 0 {
            inside.put_right(label - 1, row, &format!("{rank}"), state.theme.dim());
        }
        for column in 0..columns {
            let share = scale.share(cells[row * columns + column]);
            let (glyph, style) = state.theme.heat(share);
            let style = match (row, column) == selected {
                true => style.patch(state.theme.selected()),
                false => style,
            };
            for part in 0..each {
                inside.glyph(label + column * each + part, row, glyph, style);
            }
        }
    }
    let y = inside.height().saturating_sub(3);
    let (row, column) = selected;
    let named = |range: std::ops::Range<usize>| {
        let (first, last) = (range.start * per_block, range.end * per_block - 1);
        match first == last {
            true => format!("GPU {first}"),
            false => format!("GPUs {first}-{}", last.min(detail.gpus as usize - 1)),
        }
    };
    let text = format!(
        "{} to {}: {}",
        named(blocks(row)),
        named(blocks(column)),
        bytes(cells[row * columns + column])
    );
    inside.put(1, y + 1, &text, state.theme.strong());
    let how = if scale.by_factors { ", by factors" } else { "" };
    let high = format!("{}{how}", bytes(scale.most as u64));
    heat_key(&mut inside, 1, y + 2, "0", &high);
}

/// How bytes become colours: by their size, or by factors where neighbours and far ranks differ by
/// many.
struct Scale {
    most: f64,
    by_factors: bool,
}

impl Scale {
    fn of(cells: &[u64]) -> Scale {
        let most = cells.iter().copied().max().unwrap_or(0).max(1) as f64;
        let least = cells.iter().copied().filter(|bytes| *bytes > 0).min();
        Scale {
            most,
            by_factors: least.is_some_and(|least| most / least as f64 > 30.0),
        }
    }

    fn share(&self, bytes: u64) -> f64 {
        match (bytes, self.by_factors) {
            (0, _) => 0.0,
            (_, true) => (1.0 + (bytes as f64 / self.most).log10() / 2.5).clamp(0.2, 1.0),
            (_, false) => bytes as f64 / self.most,
        }
    }
}

/// Mean and busiest by class of link.
fn links(state: &State, detail: &Detail, pane: &mut Pane<'_>) {
    let mut inside = pane.framed("links by class, over the step");
    let seconds = detail.time.max(1) as f64 * 1e-9;
    if detail.links.is_empty() {
        inside.put(1, 0, "ranks are threads: no links", state.theme.dim());
        return;
    }
    let end = inside.width().saturating_sub(1);
    // Ends of the columns: bytes, mean, busiest; links where there is room.
    let wide = end >= 50;
    let ends = if wide {
        [32, 40, 48]
    } else {
        [24, 32, 41.min(end)]
    };
    inside.put(1, 0, "class", state.theme.dim());
    for (at, head) in ends.into_iter().zip(["bytes", "mean", "busiest"]) {
        inside.put_right(at, 0, head, state.theme.dim());
    }
    for (row, link) in detail.links.iter().enumerate() {
        let y = row + 1;
        let room = link.bytes_per_s * seconds;
        let mean = link.total_bytes as f64 / (room * link.links.max(1) as f64);
        let most = link.busiest.first().map_or(0, |(_, bytes)| *bytes) as f64 / room;
        let (_, heat) = state.theme.heat(most);
        inside.put(1, y, &link.name, state.theme.strong());
        inside.put_right(ends[0], y, &bytes(link.total_bytes), Style::new());
        inside.put_right(ends[1], y, &whole_percent(mean), Style::new());
        inside.put_right(
            ends[2],
            y,
            &whole_percent(most),
            heat.patch(state.theme.strong()),
        );
        if wide {
            inside.put_right(21, y, &link.links.to_string(), state.theme.dim());
        }
        if end > 56 {
            inside.bar(50, y, end - 50, most, heat);
        }
    }
    if wide {
        inside.put_right(21, 0, "links", state.theme.dim());
    }
}

fn whole_percent(share: f64) -> String {
    match share {
        0.0 => "-".into(),
        share if share < 0.01 => "< 1 %".into(),
        share => format!("{:.0} %", share * 100.0),
    }
}

/// The busiest links.
fn busiest(state: &State, detail: &Detail, pane: &mut Pane<'_>) {
    let mut inside = pane.framed("busiest links, share of their rate  (m: rails)");
    let seconds = detail.time.max(1) as f64 * 1e-9;
    let mut all: Vec<(&str, u32, u64, f64)> = detail
        .links
        .iter()
        .flat_map(|link| {
            let room = link.bytes_per_s * seconds;
            link.busiest
                .iter()
                .map(move |(index, bytes)| (&*link.name, *index, *bytes, *bytes as f64 / room))
        })
        .collect();
    match state.sort_of(View::Network, 2) {
        0 => all.sort_by(|a, b| b.3.total_cmp(&a.3)),
        _ => all.sort_by_key(|link| std::cmp::Reverse(link.2)),
    }
    let node = detail.gpus_per_node.max(1);
    let end = inside.width().saturating_sub(1);
    let kept = all.iter().filter(|(name, index, _, _)| {
        state.filter.is_empty() || state.keeps(&format!("{name} {index}"))
    });
    for (y, (name, index, sent, share)) in kept.enumerate().take(inside.height()) {
        let place = match name.starts_with("leaf") {
            true => format!("{name} {index}, rail {}", index % node),
            false => format!("{name} of GPU {index}, node {}", index / node),
        };
        let place: String = place.chars().take(end.saturating_sub(19)).collect();
        inside.put(1, y, &place, Style::new());
        inside.put_right(end.saturating_sub(8), y, &bytes(*sent), state.theme.dim());
        inside.put_right(end, y, &whole_percent(*share), state.theme.strong());
    }
}

/// Bytes through the NICs of equal place in their nodes.
fn rails(state: &State, detail: &Detail, pane: &mut Pane<'_>) {
    let mut inside = pane.framed("rails: NICs of one place in all nodes  (m: links)");
    let node = detail.gpus_per_node.max(1) as usize;
    let mut rails = vec![0u64; node];
    for rank in 0..detail.gpus as usize {
        let rail = &mut rails[rank % node];
        *rail = rail.saturating_add(of_rank(&detail.ranks.nic_out, rank));
    }
    let most = rails.iter().copied().max().unwrap_or(0).max(1);
    let mean = rails.iter().map(|sent| *sent as f64).sum::<f64>() / node as f64;
    let end = inside.width().saturating_sub(1);
    for (rail, sent) in rails.iter().enumerate() {
        inside.put(1, rail, &format!("rail {rail}"), state.theme.strong());
        inside.bar(
            9,
            rail,
            end.saturating_sub(32),
            *sent as f64 / most as f64,
            state.theme.hue(1),
        );
        inside.put_right(end.saturating_sub(9), rail, &bytes(*sent), Style::new());
        let of_mean = if mean > 0.0 {
            percent(*sent as f64 / mean)
        } else {
            "-".into()
        };
        inside.put_right(end, rail, &of_mean, state.theme.dim());
    }
    inside.put(
        1,
        node + 1,
        "shares are of the mean rail",
        state.theme.dim(),
    );
}

//! The breakdown of one step for people.

use super::numbers::{bytes, count, percent, time, times};
use super::table::{Grid, paragraph};
use crate::command::breakdown::{Breakdown, PathRow};

/// The whole text after the heading.
pub fn text(strategy: &str, found: &Breakdown) -> String {
    let mut text = format!(
        "{strategy}, step {}, {}: {}\n\n",
        found.step,
        found.plan,
        time(found.step_time_ns)
    );
    let mut stages = Grid::new(["on the critical path", "time", "share"]);
    for stage in &found.stages {
        let name = match stage.stage {
            "host" => "host: nothing issued yet",
            name => name,
        };
        stages.row([name.to_owned(), time(stage.time_ns), percent(stage.share)]);
    }
    text += &stages.render(40);
    text.push('\n');
    text += &operations(&found.critical_path);
    text.push('\n');
    let straggler = &found.straggler;
    text += &paragraph(
        &if straggler.all_alike {
            format!(
                "straggler: none, all ranks do the same ({} expert rows each)",
                count(straggler.expert_rows)
            )
        } else {
            format!(
                "straggler: rank {}, {} expert rows against a mean of {} ({}); ranks wait {} for \
                 others at collectives, rank {} longest with {}",
                straggler.rank,
                count(straggler.expert_rows),
                count(straggler.mean_expert_rows.round() as u64),
                times(straggler.expert_rows as f64 / straggler.mean_expert_rows.max(1e-9)),
                time(straggler.mean_waiting_ns),
                straggler.longest_waiting_rank,
                time(straggler.longest_waiting_ns),
            )
        },
        2,
    );
    if let Some(exchange) = &found.exchange {
        text += &paragraph(
            &format!(
                "longest exchange: {} ({}), {} a rank among {} ranks in {}, limited by {}; its \
                 ports alone would need {}",
                exchange.stage,
                exchange.pass,
                bytes(exchange.bytes_sent),
                count(exchange.group as u64),
                time(exchange.time_ns),
                exchange.bottleneck,
                time(exchange.port_bound_ns),
            ),
            2,
        );
    }
    text
}

/// Operations of the path, those of one kind and pass together, in order of their first.
fn operations(path: &[PathRow]) -> String {
    struct Together<'a> {
        first: &'a PathRow,
        calls: u64,
        ran_ns: u64,
        waited_ns: u64,
        last_rank: usize,
    }
    let mut groups: Vec<Together<'_>> = Vec::new();
    for row in path {
        let same = |group: &&mut Together<'_>| {
            (group.first.what, group.first.stage, group.first.pass)
                == (row.what, row.stage, row.pass)
        };
        match groups.iter_mut().find(same) {
            Some(group) => {
                group.calls += 1;
                group.ran_ns += row.ran_ns;
                group.waited_ns += row.waited_ns;
                group.last_rank = row.rank;
            }
            None => groups.push(Together {
                first: row,
                calls: 1,
                ran_ns: row.ran_ns,
                waited_ns: row.waited_ns,
                last_rank: row.rank,
            }),
        }
    }
    let mut grid = Grid::new([
        "operation",
        "calls",
        "time",
        "waited before",
        "ranks",
        "trust",
    ]);
    for group in groups {
        let ranks = if group.first.rank == group.last_rank {
            group.last_rank.to_string()
        } else {
            format!("{}..{}", group.first.rank, group.last_rank)
        };
        grid.row([
            format!(
                "{} {}: {}",
                group.first.pass, group.first.stage, group.first.what
            ),
            group.calls.to_string(),
            time(group.ran_ns),
            time(group.waited_ns),
            ranks,
            group.first.provenance.clone(),
        ]);
    }
    grid.render(40)
}

//! Makes a long run file from a short one: its steps over and over, its full steps spread over them. For
//! measuring the dashboard: `cargo run --example long_run -- short.moeplan long.moeplan 10000`.

use anyhow::{Context, Result};
use moeplan::dash::recording::Recording;
use moeplan::run_file::{Block, Detail, End, Reader, Writer};
use std::path::Path;
use std::sync::Arc;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().context("expected SHORT LONG STEPS");
    let (short, long, steps) = (next()?, next()?, next()?.parse::<u32>()?);
    let mut run = Recording::default();
    for block in Reader::open(Path::new(&short))?.blocks()? {
        run.push(block).map_err(anyhow::Error::msg)?;
    }
    let mut header = run.header.context("a run without a header")?;
    header.steps = u64::from(steps);
    let mut writer = Writer::create(Path::new(&long))?;
    writer.append(&Block::Header(Box::new(header)))?;
    if let Some(layers) = run.layers {
        writer.append(&Block::Layers(layers))?;
    }
    let repeats = (steps / run.steps.len().max(1) as u32).max(1);
    let mut index = 0;
    for step in run.steps {
        let full: Vec<Arc<Detail>> = run
            .details
            .range((step.index, 0)..=(step.index, u16::MAX))
            .map(|(_, detail)| detail.clone())
            .collect();
        let first = index;
        let mut block = Vec::new();
        for nth in 0..repeats {
            let mut step = step.clone();
            step.index = index;
            step.label += u64::from(nth);
            // As no two steps are alike.
            for run in &mut step.runs {
                run.time += u64::from(nth.wrapping_mul(2_654_435_761) >> 20);
            }
            block.push(step);
            index += 1;
        }
        for some in block.chunks(256) {
            writer.append(&Block::Steps(some.to_vec()))?;
        }
        for detail in full {
            let mut detail = Detail::clone(&detail);
            detail.step = first;
            writer.append(&Block::Detail(Arc::new(detail)))?;
        }
    }
    writer.append(&Block::End(End { interrupted: false }))?;
    Ok(())
}

//! Trains a small Mixture-of-Experts model on real images or texts and records its routing.
//!
//! This is where the shipped traces come from; `traces/README.md` says how to run it. Gates, experts
//! and everything around them are trained by gradient descent with the balancing loss of GShard and
//! Switch; nothing about the routing is scripted.
#![expect(
    clippy::print_stdout,
    reason = "the progress of training is its output"
)]

mod data;
mod math;
mod model;
mod moe;

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;

use moeplan_traces::{RoutingStep, StepStats, TraceMeta, TraceWriter};

use crate::data::{Items, Shards};
use crate::model::{Model, Sizes};

/// What can be set on the command line.
struct Options {
    data: Vec<String>,
    out: String,
    steps: u64,
    every: u64,
    seed: u64,
    ranks: usize,
    items: usize,
    experts: usize,
    layers: usize,
    top_k: usize,
    balance: f32,
    rate: f32,
    sorted: f64,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            data: Vec::new(),
            out: String::new(),
            steps: 400,
            every: 4,
            seed: 1,
            ranks: 16,
            items: 32,
            experts: 32,
            layers: 3,
            top_k: 2,
            balance: 0.01,
            rate: 0.001,
            sorted: 0.25,
        };
        while let Some(flag) = args.next() {
            let value = args.next().ok_or(format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--data" => options.data.push(value),
                "--out" => options.out = value,
                "--steps" => options.steps = value.parse()?,
                "--every" => options.every = value.parse()?,
                "--seed" => options.seed = value.parse()?,
                "--ranks" => options.ranks = value.parse()?,
                "--items" => options.items = value.parse()?,
                "--experts" => options.experts = value.parse()?,
                "--layers" => options.layers = value.parse()?,
                "--top-k" => options.top_k = value.parse()?,
                "--balance" => options.balance = value.parse()?,
                "--rate" => options.rate = value.parse()?,
                "--sorted" => options.sorted = value.parse()?,
                _ => return Err(format!("unknown option {flag}").into()),
            }
        }
        if options.out.is_empty() || !(1..=2).contains(&options.top_k) {
            return Err("--out FILE is needed, and a --top-k of 1 or 2".into());
        }
        Ok(options)
    }

    /// The command with every option that matters, so that the trace says how it was made.
    fn command(&self) -> String {
        let name = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
        let data: Vec<String> = self.data.iter().map(name).collect();
        format!(
            "cargo run --release -p moeplan-traces --example record -- --data {} --out {} --steps {} \
             --every {} --seed {} --ranks {} --items {} --experts {} --layers {} --top-k {} --balance \
             {} --rate {} --sorted {}",
            data.join(" --data "),
            name(&self.out),
            self.steps,
            self.every,
            self.seed,
            self.ranks,
            self.items,
            self.experts,
            self.layers,
            self.top_k,
            self.balance,
            self.rate,
            self.sorted
        )
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(std::env::args().skip(1))?;
    let (train, test) = Items::read(&options.data)?.split();
    let mut shards = Shards::new(&train, options.ranks, options.sorted, options.seed);
    let sizes = Sizes {
        layers: options.layers,
        experts: options.experts,
        top_k: options.top_k,
    };
    let mut model = Model::new(train.format, sizes, options.seed);
    println!(
        "{} items to train on and {} for the test, {} parameters",
        train.len(),
        test.len(),
        model.parameters()
    );

    let meta = meta(&options, &model, &train);
    let file = BufWriter::new(File::create(&options.out)?);
    let mut writer = TraceWriter::new(file, &options.out, meta)?;
    let (mut first_loss, mut last_loss) = (0.0, 0.0);
    for step in 0..options.steps {
        let mut counts = vec![Vec::new(); options.layers];
        let (mut loss, mut balance) = (0.0, 0.0);
        model.clear_gradients();
        for rank in 0..options.ranks {
            let batch = shards.next_batch(rank, options.items);
            let result = model.train(&train, &batch, options.balance, 1.0 / options.ranks as f32);
            loss += result.loss / options.ranks as f32;
            balance += result.balance / options.ranks as f32;
            for (counts, row) in counts.iter_mut().zip(result.routing) {
                counts.extend(row);
            }
        }
        let warm_up = ((step + 1) as f32 / 20.0).min(1.0);
        model.update(options.rate * warm_up);
        first_loss = if step == 0 { loss } else { first_loss };
        last_loss = loss;

        let report = step % 20 == 0 || step + 1 == options.steps;
        let mut line = format!("step {step:4}  loss {loss:.3}  balance {balance:.2}");
        for (layer, counts) in (0..).zip(counts) {
            let routing =
                RoutingStep::new(step, layer, options.top_k as u32, options.experts, counts)?;
            let f = StepStats::of(&routing).needed_capacity_factor;
            line += &format!("  f{layer} {f:.2}");
            if step % options.every == 0 {
                writer.write(&routing)?;
            }
        }
        if report {
            let accuracy = 100.0 * model.accuracy(&test);
            println!("{line}  test accuracy {accuracy:.1}%");
        }
    }
    writer.finish()?;
    let accuracy = model.accuracy(&test);
    println!(
        "loss {first_loss:.3} -> {last_loss:.3}, test accuracy {:.1}%",
        100.0 * accuracy
    );
    // Always saying the commonest character, the space, is right in 17% of a text.
    let (loss, least) = if train.format.per_token {
        (0.6, 0.3)
    } else {
        (0.5, 0.5)
    };
    if last_loss > loss * first_loss || accuracy < least {
        return Err("the model has not learnt: this is no trace of training".into());
    }
    Ok(())
}

fn meta(options: &Options, model: &Model, items: &Items) -> TraceMeta {
    TraceMeta {
        model: format!(
            "{}, {} top-{} MoE layers of {} experts, {} parameters, trained from scratch",
            if items.format.per_token {
                "text-moe: next-character model"
            } else {
                "digits-moe: image classifier"
            },
            options.layers,
            options.top_k,
            options.experts,
            model.parameters()
        ),
        experts: options.experts,
        top_k: options.top_k as u32,
        source_ranks: options.ranks,
        tokens_per_rank: Some((options.items * items.format.tokens) as u32),
        origin: items.origin.to_owned(),
        licence: items.licence.to_owned(),
        recorded_by: options.command(),
        reduced: Vec::new(),
        notes: vec![
            items.token.to_owned(),
            format!(
                "every source rank trains on its own shard of the {}, so shards differ",
                if items.format.per_token {
                    format!(
                        "texts; {} of the windows are in the order of the texts",
                        options.sorted
                    )
                } else {
                    format!(
                        "images; {} of the images are sorted by class",
                        options.sorted
                    )
                }
            ),
            format!(
                "balancing loss weight {}; no capacity limit and no gate noise in training; every step trains, each {}th is recorded",
                options.balance, options.every
            ),
        ],
    }
}

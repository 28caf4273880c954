//! Trains a small Mixture-of-Experts classifier on real images and records its routing.
//!
//! This is where the shipped trace `digits` comes from; `traces/README.md` says how to run it. Top-2
//! gates, experts and everything around them are trained by gradient descent with the balancing
//! loss of GShard and Switch; nothing about the routing is scripted.
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

use crate::data::{Images, Shards};
use crate::model::{Model, Sizes};

/// What can be set on the command line.
struct Options {
    digits: String,
    out: String,
    steps: u64,
    every: u64,
    seed: u64,
    ranks: usize,
    images: usize,
    experts: usize,
    layers: usize,
    balance: f32,
    rate: f32,
    sorted: f64,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            digits: String::new(),
            out: String::new(),
            steps: 400,
            every: 4,
            seed: 1,
            ranks: 16,
            images: 32,
            experts: 32,
            layers: 3,
            balance: 0.01,
            rate: 0.001,
            sorted: 0.25,
        };
        while let Some(flag) = args.next() {
            let value = args.next().ok_or(format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--digits" => options.digits = value,
                "--out" => options.out = value,
                "--steps" => options.steps = value.parse()?,
                "--every" => options.every = value.parse()?,
                "--seed" => options.seed = value.parse()?,
                "--ranks" => options.ranks = value.parse()?,
                "--images" => options.images = value.parse()?,
                "--experts" => options.experts = value.parse()?,
                "--layers" => options.layers = value.parse()?,
                "--balance" => options.balance = value.parse()?,
                "--rate" => options.rate = value.parse()?,
                "--sorted" => options.sorted = value.parse()?,
                _ => return Err(format!("unknown option {flag}").into()),
            }
        }
        if options.digits.is_empty() || options.out.is_empty() {
            return Err("--digits FILE and --out FILE are needed".into());
        }
        Ok(options)
    }

    /// The command with every option that matters, so that the trace says how it was made.
    fn command(&self) -> String {
        format!(
            "cargo run --release -p moeplan-traces --example record_digits -- --digits digits.csv.gz \
             --out traces/digits-moe.csv --steps {} --every {} --seed {} --ranks {} --images {} \
             --experts {} --layers {} --balance {} --rate {} --sorted {}",
            self.steps,
            self.every,
            self.seed,
            self.ranks,
            self.images,
            self.experts,
            self.layers,
            self.balance,
            self.rate,
            self.sorted
        )
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(std::env::args().skip(1))?;
    let (train, test) = Images::read(&options.digits)?.split();
    let mut shards = Shards::new(&train, options.ranks, options.sorted, options.seed);
    let sizes = Sizes {
        layers: options.layers,
        experts: options.experts,
    };
    let mut model = Model::new(sizes, options.seed);
    println!(
        "{} training and {} test images, {} parameters",
        train.len(),
        test.len(),
        model.parameters()
    );

    let meta = meta(&options, &model);
    let file = BufWriter::new(File::create(&options.out)?);
    let mut writer = TraceWriter::new(file, &options.out, meta)?;
    let (mut first_loss, mut last_loss) = (0.0, 0.0);
    for step in 0..options.steps {
        let mut counts = vec![Vec::new(); options.layers];
        let (mut loss, mut balance) = (0.0, 0.0);
        model.clear_gradients();
        for rank in 0..options.ranks {
            let batch = shards.next_batch(rank, options.images);
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
            let routing = RoutingStep::new(step, layer, 2, options.experts, counts)?;
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
        "loss {first_loss:.3} -> {last_loss:.3}, test accuracy {:.1}% (chance is 10%)",
        100.0 * accuracy
    );
    if last_loss > 0.5 * first_loss || accuracy < 0.5 {
        return Err("the model has not learnt: this is no trace of training".into());
    }
    Ok(())
}

fn meta(options: &Options, model: &Model) -> TraceMeta {
    TraceMeta {
        model: format!(
            "digits-moe: image classifier, {} top-2 MoE layers of {} experts, {} parameters, trained from scratch",
            options.layers,
            options.experts,
            model.parameters()
        ),
        experts: options.experts,
        top_k: 2,
        source_ranks: options.ranks,
        tokens_per_rank: Some((options.images * data::PATCHES) as u32),
        origin: "handwritten digits of Alpaydin and Kaynak (UCI Machine Learning Repository, 1998), as in sklearn/datasets/data/digits.csv.gz of scikit-learn 1.5.2".to_owned(),
        licence: "data CC BY 4.0 (UCI), through scikit-learn (BSD-3-Clause); this trace MIT OR Apache-2.0".to_owned(),
        recorded_by: options.command(),
        reduced: Vec::new(),
        notes: vec![
            "a token is one of 16 overlapping 4x4 patches of an 8x8 image".to_owned(),
            format!(
                "every source rank trains on its own shard of the images; {} of the images are sorted by class, so shards differ",
                options.sorted
            ),
            format!(
                "balancing loss weight {}; no capacity limit and no gate noise in training; every step trains, each {}th is recorded",
                options.balance, options.every
            ),
        ],
    }
}

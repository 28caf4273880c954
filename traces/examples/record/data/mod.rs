//! What is learnt, cut into tokens, and which rank trains on which part of it.

mod digits;
mod text;

use std::error::Error;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a model sees of a data set.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    /// Tokens of one item (an image, a window of text).
    pub(crate) tokens: usize,
    /// Numbers of one token.
    pub(crate) features: usize,
    /// Answers to choose from.
    pub(crate) classes: usize,
    /// Whether every token has an answer (the next character), or every item (the digit).
    pub(crate) per_token: bool,
}

/// Tokens of all items.
#[derive(Clone)]
enum Tokens {
    /// `[items, tokens, features]`.
    Dense(Vec<f32>),
    /// One of `features` symbols for each token: one of its numbers is 1, the others 0.
    Symbols(Vec<u8>),
}

/// Items with their answers, in an order in which neighbours are alike.
#[derive(Clone)]
pub(crate) struct Items {
    pub(crate) format: Format,
    tokens: Tokens,
    /// `[items]` or `[items, tokens]`.
    labels: Vec<usize>,
    /// Where the data come from, and their licence.
    pub(crate) origin: &'static str,
    pub(crate) licence: &'static str,
    /// What a token is.
    pub(crate) token: &'static str,
}

impl Items {
    /// Reads the digits of scikit-learn, or a text, by the name of the files.
    pub(crate) fn read(paths: &[String]) -> Result<Self, Box<dyn Error>> {
        match paths {
            [path] if path.ends_with(".csv.gz") => digits::read(path),
            [_, ..] => text::read(paths),
            [] => Err("--data FILE is needed".into()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len() / self.labels_per_item()
    }

    fn labels_per_item(&self) -> usize {
        if self.format.per_token {
            self.format.tokens
        } else {
            1
        }
    }

    pub(crate) fn labels(&self, item: usize) -> &[usize] {
        let count = self.labels_per_item();
        &self.labels[item * count..][..count]
    }

    /// Adds `[tokens, features]` of one item to `inputs`.
    pub(crate) fn gather(&self, item: usize, inputs: &mut Vec<f32>) {
        let Format {
            tokens, features, ..
        } = self.format;
        match &self.tokens {
            Tokens::Dense(all) => {
                inputs.extend_from_slice(&all[item * tokens * features..][..tokens * features]);
            }
            Tokens::Symbols(all) => {
                for &symbol in &all[item * tokens..][..tokens] {
                    let start = inputs.len();
                    inputs.resize(start + features, 0.0);
                    inputs[start + symbol as usize] = 1.0;
                }
            }
        }
    }

    /// Items to train on, and every fifth one for the test.
    pub(crate) fn split(self) -> (Self, Self) {
        let pick = |test: bool| {
            let chosen = (0..self.len()).filter(|item| (item % 5 == 4) == test);
            let chosen: Vec<usize> = chosen.collect();
            let Format {
                tokens, features, ..
            } = self.format;
            let tokens = match &self.tokens {
                Tokens::Dense(all) => Tokens::Dense(part(all, tokens * features, &chosen)),
                Tokens::Symbols(all) => Tokens::Symbols(part(all, tokens, &chosen)),
            };
            Self {
                tokens,
                labels: part(&self.labels, self.labels_per_item(), &chosen),
                ..self.clone()
            }
        };
        (pick(false), pick(true))
    }

    /// Random numbers in the shape of the digits, to test gradients on.
    #[cfg(test)]
    pub(crate) fn noise(format: Format, labels: Vec<usize>, rng: &mut ChaCha8Rng) -> Self {
        let items = labels.len() / if format.per_token { format.tokens } else { 1 };
        let count = items * format.tokens * format.features;
        Self {
            format,
            tokens: Tokens::Dense(
                (0..count)
                    .map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5)
                    .collect(),
            ),
            labels,
            origin: "",
            licence: "",
            token: "",
        }
    }
}

fn part<T: Clone>(all: &[T], size: usize, chosen: &[usize]) -> Vec<T> {
    let rows = chosen.iter().map(|&item| &all[item * size..][..size]);
    rows.flatten().cloned().collect()
}

/// The items of every rank, in an order that is shuffled again when it is used up.
pub(crate) struct Shards {
    shards: Vec<Vec<usize>>,
    next: Vec<usize>,
    rng: ChaCha8Rng,
}

impl Shards {
    /// Equal contiguous shards of the items, of which a part `sorted` is in order (of class, of
    /// the text) and the rest in random places: data-parallel shards of real data sets are rarely
    /// alike.
    pub(crate) fn new(items: &Items, ranks: usize, sorted: f64, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5ead);
        let mut order: Vec<usize> = (0..items.len()).collect();
        if !items.format.per_token {
            order.sort_by_key(|&item| items.labels[item]);
        }
        let mut places: Vec<usize> = (0..items.len()).collect();
        shuffle(&mut places, &mut rng);
        places.truncate((items.len() as f64 * (1.0 - sorted)) as usize);
        let mut moved: Vec<usize> = places.iter().map(|&place| order[place]).collect();
        shuffle(&mut moved, &mut rng);
        for (&place, item) in places.iter().zip(moved) {
            order[place] = item;
        }
        let size = items.len() / ranks;
        let mut shards: Vec<Vec<usize>> = order
            .chunks_exact(size)
            .take(ranks)
            .map(<[usize]>::to_vec)
            .collect();
        for shard in &mut shards {
            shuffle(shard, &mut rng);
        }
        let next = vec![0; ranks];
        Self { shards, next, rng }
    }

    /// The next items of a rank.
    pub(crate) fn next_batch(&mut self, rank: usize, items: usize) -> Vec<usize> {
        let shard = &mut self.shards[rank];
        let mut batch = Vec::with_capacity(items);
        while batch.len() < items {
            if self.next[rank] == shard.len() {
                shuffle(shard, &mut self.rng);
                self.next[rank] = 0;
            }
            batch.push(shard[self.next[rank]]);
            self.next[rank] += 1;
        }
        batch
    }
}

fn shuffle(items: &mut [usize], rng: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        let j = (u64::from(rng.next_u32()) * (i as u64 + 1)) >> 32;
        items.swap(i, j as usize);
    }
}

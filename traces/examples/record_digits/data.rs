//! The images, cut into patches, and which rank trains on which.

use std::error::Error;
use std::fs::File;
use std::io::Read;

use flate2::read::GzDecoder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Patches (tokens) of an image: 4x4 windows, two apart, on the image padded by one pixel.
pub(crate) const PATCHES: usize = 16;
/// Pixels of a patch.
pub(crate) const PIXELS: usize = 16;
/// Digits.
pub(crate) const CLASSES: usize = 10;

/// Images as `[images, PATCHES, PIXELS]`, with labels.
pub(crate) struct Images {
    pub(crate) patches: Vec<f32>,
    pub(crate) labels: Vec<usize>,
}

impl Images {
    /// Reads the gzipped CSV of scikit-learn: 64 pixels from 0 to 16, then the digit.
    pub(crate) fn read(path: &str) -> Result<Self, Box<dyn Error>> {
        let mut text = String::new();
        GzDecoder::new(File::open(path)?).read_to_string(&mut text)?;
        let mut images = Self {
            patches: Vec::new(),
            labels: Vec::new(),
        };
        for line in text.lines() {
            let numbers = line.split(',').map(|field| field.trim().parse::<f32>());
            let numbers = numbers.collect::<Result<Vec<f32>, _>>()?;
            let [pixels @ .., label] = numbers.as_slice() else {
                return Err("an empty line".into());
            };
            if pixels.len() != 64 {
                return Err(format!("expected 64 pixels, found {}", pixels.len()).into());
            }
            images.push(pixels, *label as usize % CLASSES);
        }
        Ok(images)
    }

    fn push(&mut self, pixels: &[f32], label: usize) {
        for patch in 0..PATCHES {
            for pixel in 0..PIXELS {
                // Shifted by the padding of one.
                let y = (patch / 4 * 2 + pixel / 4).wrapping_sub(1);
                let x = (patch % 4 * 2 + pixel % 4).wrapping_sub(1);
                let value = if y < 8 && x < 8 {
                    pixels[y * 8 + x]
                } else {
                    0.0
                };
                self.patches.push(value / 8.0 - 0.6);
            }
        }
        self.labels.push(label);
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// Patches of one image.
    pub(crate) fn image(&self, index: usize) -> &[f32] {
        &self.patches[index * PATCHES * PIXELS..][..PATCHES * PIXELS]
    }

    /// Training images, and every fifth one for the test.
    pub(crate) fn split(self) -> (Self, Self) {
        let mut parts = [(); 2].map(|()| Self {
            patches: Vec::new(),
            labels: Vec::new(),
        });
        for index in 0..self.len() {
            let part = &mut parts[usize::from(index % 5 == 4)];
            part.patches.extend_from_slice(self.image(index));
            part.labels.push(self.labels[index]);
        }
        let [train, test] = parts;
        (train, test)
    }
}

/// The images of every rank, in an order that is shuffled again when it is used up.
pub(crate) struct Shards {
    shards: Vec<Vec<usize>>,
    next: Vec<usize>,
    rng: ChaCha8Rng,
}

impl Shards {
    /// Equal contiguous shards of the images, of which a part `sorted` is in order of class and
    /// the rest in random places: data-parallel shards of real data sets are rarely alike.
    pub(crate) fn new(images: &Images, ranks: usize, sorted: f64, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5ead);
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by_key(|&image| images.labels[image]);
        let mut places: Vec<usize> = (0..images.len()).collect();
        shuffle(&mut places, &mut rng);
        places.truncate((images.len() as f64 * (1.0 - sorted)) as usize);
        let mut moved: Vec<usize> = places.iter().map(|&place| order[place]).collect();
        shuffle(&mut moved, &mut rng);
        for (&place, image) in places.iter().zip(moved) {
            order[place] = image;
        }
        let size = images.len() / ranks;
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

    /// The next images of a rank.
    pub(crate) fn next_batch(&mut self, rank: usize, images: usize) -> Vec<usize> {
        let shard = &mut self.shards[rank];
        let mut batch = Vec::with_capacity(images);
        while batch.len() < images {
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

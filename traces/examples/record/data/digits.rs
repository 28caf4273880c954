//! Images of handwritten digits; a token is a patch.

use std::error::Error;
use std::fs::File;
use std::io::Read;

use flate2::read::GzDecoder;

use super::{Format, Items, Tokens};

/// Patches of an image: 4x4 windows, two apart, on the image padded by one pixel.
const PATCHES: usize = 16;
/// Pixels of a patch.
const PIXELS: usize = 16;
/// Digits.
const CLASSES: usize = 10;

/// Reads the gzipped CSV of scikit-learn: 64 pixels from 0 to 16, then the digit.
pub(super) fn read(path: &str) -> Result<Items, Box<dyn Error>> {
    let mut text = String::new();
    GzDecoder::new(File::open(path)?).read_to_string(&mut text)?;
    let (mut patches, mut labels) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let numbers = line.split(',').map(|field| field.trim().parse::<f32>());
        let numbers = numbers.collect::<Result<Vec<f32>, _>>()?;
        let [pixels @ .., label] = numbers.as_slice() else {
            return Err("an empty line".into());
        };
        if pixels.len() != 64 {
            return Err(format!("expected 64 pixels, found {}", pixels.len()).into());
        }
        push(pixels, &mut patches);
        labels.push(*label as usize % CLASSES);
    }
    Ok(Items {
        format: Format {
            tokens: PATCHES,
            features: PIXELS,
            classes: CLASSES,
            per_token: false,
        },
        tokens: Tokens::Dense(patches),
        labels,
        origin: "handwritten digits of Alpaydin and Kaynak (UCI Machine Learning Repository, 1998), as in sklearn/datasets/data/digits.csv.gz of scikit-learn 1.5.2",
        licence: "data CC BY 4.0 (UCI), through scikit-learn (BSD-3-Clause); this trace MIT OR Apache-2.0",
        token: "a token is one of 16 overlapping 4x4 patches of an 8x8 image",
    })
}

fn push(pixels: &[f32], patches: &mut Vec<f32>) {
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
            patches.push(value / 8.0 - 0.6);
        }
    }
}

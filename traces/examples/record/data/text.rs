//! Texts; a token is a character, its answer the next one.

use std::error::Error;

use super::{Format, Items, Tokens};

/// Characters of a window.
const WINDOW: usize = 32;

/// Reads texts one after the other into windows of [`WINDOW`] characters.
pub(super) fn read(paths: &[String]) -> Result<Items, Box<dyn Error>> {
    let mut bytes = Vec::new();
    for path in paths {
        bytes.extend(std::fs::read(path)?);
    }
    let mut alphabet = bytes.clone();
    alphabet.sort_unstable();
    alphabet.dedup();
    // An alphabet is at most 256 bytes long.
    let symbols: Vec<u8> = bytes
        .iter()
        .map(|byte| alphabet.partition_point(|known| known < byte) as u8)
        .collect();
    // The last character of a window is answered by the first one of the next.
    let windows = (symbols.len() - 1) / WINDOW;
    let answers = symbols[1..=windows * WINDOW].iter();
    Ok(Items {
        format: Format {
            tokens: WINDOW,
            features: alphabet.len(),
            classes: alphabet.len(),
            per_token: true,
        },
        labels: answers.map(|&symbol| symbol.into()).collect(),
        tokens: Tokens::Symbols(symbols[..windows * WINDOW].to_vec()),
        origin: "Lewis Carroll, Alice's Adventures in Wonderland (1865), and William Shakespeare, As You Like It (1623): alice29.txt and asyoulik.txt of the Canterbury corpus, as in tests/testdata of the source package of Brotli 1.1.0 on PyPI",
        licence: "texts in the public domain, through Brotli (MIT); this trace MIT OR Apache-2.0",
        token: "a token is a character, predicted from the 8 characters up to it in windows of 32",
    })
}

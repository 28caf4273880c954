//! Whole models, by name or from a file.

use super::Given;
use crate::error::{Error, Place};
use crate::settings::ModelSettings;
use moeplan_sim::model::{ConfigError, ModelSpec, PRESETS, from_config, preset};
use std::path::Path;

/// Tokens of a sequence where nothing is said.
const DEFAULT_SEQUENCE: u64 = 4_096;
/// Largest config.json read.
const MAX_BYTES: u64 = 1 << 20;

/// The model that `settings` name, its MoE layers as they say.
///
/// # Errors
/// No such model, a file that is none, or a number out of range.
pub fn model(given: &Given, settings: &ModelSettings) -> Result<ModelSpec, Error> {
    let counts = [
        ("num-experts", settings.num_experts),
        ("top-k", settings.top_k.map(u64::from)),
    ];
    for (field, value) in counts {
        if let Some(value) = value.filter(|value| !(1..=1 << 14).contains(value)) {
            let message = format!("expected 1 to 16384, found {value}");
            return Err(Error::input(given.place(&["model"], None, field), message));
        }
    }
    let model = read(given, settings)?.with_moe(|moe| {
        moe.experts = settings.num_experts.unwrap_or(moe.experts);
        moe.top_k = settings.top_k.unwrap_or(moe.top_k);
        moe.capacity_factor = settings.capacity_factor.unwrap_or(moe.capacity_factor);
    });
    Ok(model)
}

fn read(given: &Given, settings: &ModelSettings) -> Result<ModelSpec, Error> {
    let tokens = settings.sequence_length.unwrap_or(DEFAULT_SEQUENCE);
    let place = || given.place(&["model"], None, "preset");
    let known = || PRESETS.join(", ");
    let file = match (&settings.file, &settings.preset) {
        (Some(file), _) => file.clone(),
        (None, None) => {
            let message = format!("expected {} or a config.json, found nothing", known());
            return Err(Error::input(Place::flag("PRESET|config.json"), message));
        }
        (None, Some(name)) => match preset(name, tokens) {
            Some(model) => return model.map_err(|error| sequence(given, &error)),
            None if Path::new(name).extension().is_some() || Path::new(name).is_file() => {
                name.into()
            }
            None => {
                let message = format!("expected {} or a config.json, found `{name}`", known());
                return Err(Error::input(place(), message));
            }
        },
    };
    let name = file.display().to_string();
    let failed = |source| Error::Read {
        path: name.clone(),
        source,
    };
    let size = std::fs::metadata(&file).map_err(failed)?.len();
    if size > MAX_BYTES {
        let message = format!("expected at most {MAX_BYTES} bytes of JSON, found {size}");
        return Err(Error::input(Place::file(name), message));
    }
    let text = std::fs::read_to_string(&file).map_err(failed)?;
    let stem = file
        .file_stem()
        .map_or(name.clone(), |stem| stem.to_string_lossy().into());
    from_config(&text, &stem, &name, tokens).map_err(|error| {
        if error.field == "sequence-length" {
            return sequence(given, &error);
        }
        let place = Place {
            field: Some(error.field.clone()).filter(|field| !field.is_empty()),
            ..Place::file(name.clone())
        };
        Error::input(
            place,
            format!("expected {}, found {}", error.expected, error.found),
        )
    })
}

fn sequence(given: &Given, error: &ConfigError) -> Error {
    Error::input(
        given.place(&["model"], None, "sequence-length"),
        format!("expected {}, found {}", error.expected, error.found),
    )
}

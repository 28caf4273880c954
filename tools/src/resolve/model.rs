//! Whole models, by name or from a file.

use super::Given;
use crate::error::{Error, Place};
use crate::settings::{LayerSettings, ModelSettings, PlanSettings, TopK};
use moeplan_sim::model::{
    ConfigError, MemorySaving, ModelSpec, PRESETS, Unit, from_config, preset,
};
use moeplan_sim::spec::LayerSpec;
use std::path::Path;

/// Tokens of a sequence where nothing is said.
const DEFAULT_SEQUENCE: u64 = 4_096;
/// Largest config.json read.
const MAX_BYTES: u64 = 1 << 20;

/// A model and how much of it a GPU gets.
pub struct Model {
    /// The model.
    pub spec: ModelSpec,
    /// Items of a GPU and step where nothing else is said.
    pub batch: u64,
    /// What is done to need less memory.
    pub saving: MemorySaving,
    /// GPUs that share weights.
    pub tensor_parallel: u64,
}

impl Model {
    /// The first MoE layer of the model, whose static plans are those of all.
    ///
    /// # Errors
    /// A model without MoE layers.
    pub fn first_layer(&self) -> Result<LayerSpec, Error> {
        let mut layers = self.spec.moe_layers();
        let first = layers.next().map(|moe| moe.layer(self.batch));
        first.ok_or_else(|| {
            let message = "expected a model with MoE layers, found none";
            Error::input(Place::flag("--model"), message)
        })
    }

    /// The settings it amounts to.
    pub fn settings(&self) -> ModelSettings {
        let moe = self.spec.moe_layers().next();
        ModelSettings {
            preset: Some(self.spec.name.clone()),
            file: None,
            batch: Some(self.batch),
            sequence_length: match self.spec.unit {
                Unit::Images => None,
                Unit::Tokens(tokens) => Some(tokens),
            },
            num_experts: moe.map(|moe| moe.experts),
            top_k: moe.map(|moe| moe.top_k),
            capacity_factor: moe.map(|moe| moe.capacity_factor),
            shard_states: self.saving.shard_states,
            shard_gradients: self.saving.shard_gradients,
            recompute: self.saving.recompute,
            micro_batches: Some(self.saving.micro_batches),
            tensor_parallel: Some(self.tensor_parallel),
        }
    }
}

/// The model that `plan` is asked for, if any: flags of layers refine its MoE layers where they can.
///
/// # Errors
/// No such model, or settings that only a lone layer has.
pub fn planned(given: &Given, plan: &PlanSettings) -> Result<Option<Model>, Error> {
    let (flags, file) = (&given.flags.model, &given.file.model);
    // A study that has both is about its layer, unless a flag says otherwise.
    let settings = match (&flags.preset, given.file.layer == LayerSettings::default()) {
        (Some(_), _) => ModelSettings {
            file: None,
            ..flags.over(file)
        },
        (None, true) => flags.over(file),
        (None, false) => flags.clone(),
    };
    if settings.preset.is_none() && settings.file.is_none() {
        if settings == ModelSettings::default() {
            return Ok(None);
        }
        let message = "expected --model with settings of a model, found none";
        return Err(Error::input(Place::flag("--model"), message));
    }
    let layer = given.flags.layer.clone();
    let rest = LayerSettings {
        num_experts: None,
        top_k: None,
        capacity_factor: None,
        ..layer.clone()
    };
    let of_layers = [
        ("layer", rest != LayerSettings::default()),
        ("try-dtype", !plan.try_dtype.is_empty()),
        ("try-top-k", !plan.try_top_k.is_empty()),
    ];
    if let Some((field, _)) = of_layers.iter().find(|(_, set)| *set) {
        let message =
            "expected a layer to go with it, found a whole model, whose MoE layers are its own";
        return Err(Error::input(Place::flag(format!("--{field}")), message));
    }
    let top_k = match layer.top_k.as_ref().map(TopK::by_step) {
        None => settings.top_k,
        Some(&[only]) => Some(only),
        Some(_) => {
            let message = "expected one number, found one a step";
            return Err(Error::input(Place::flag("--top-k"), message));
        }
    };
    let settings = ModelSettings {
        num_experts: layer.num_experts.or(settings.num_experts),
        top_k,
        capacity_factor: layer.capacity_factor.or(settings.capacity_factor),
        ..settings
    };
    let spec = model(given, &settings)?;
    let batch = settings.batch.unwrap_or(spec.batch);
    if !(1..=1 << 16).contains(&batch) {
        let message = format!("expected 1 to 65536, found {batch}");
        return Err(Error::input(
            given.place(&["model"], None, "batch"),
            message,
        ));
    }
    Ok(Some(Model {
        spec,
        batch,
        saving: settings.saving(),
        tensor_parallel: settings.tensor_parallel.unwrap_or(1),
    }))
}

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

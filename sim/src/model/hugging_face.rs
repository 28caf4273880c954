//! A model from the `config.json` of Hugging Face.

use super::decoder::{Attention, DTYPE, Decoder, FeedForward, Layer};
use super::{ModelSpec, Moe};
use serde_json::{Map, Value};

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}expected {expected}, found {found}", if .field.is_empty() { String::new() } else { format!("`{}`: ", .field) })]
pub struct ConfigError {
    /// The field; empty where the text is no JSON object.
    pub field: String,
    /// What would have been accepted.
    pub expected: String,
    /// What was found.
    pub found: String,
}

/// Architectures that are understood, by `model_type`.
const KNOWN: &[&str] = &["mixtral", "olmoe", "gpt_oss", "qwen3_moe", "deepseek_v3"];

/// Largest width of anything: beyond it parameters could leave 64 bits.
const MAX_WIDTH: u64 = 1 << 17;
/// Most heads, and channels of one.
const MAX_HEADS: u64 = 1 << 12;
const MAX_LAYERS: u64 = 1 << 10;
const MAX_EXPERTS: u64 = 1 << 14;

/// Reads the text of a `config.json`: `name` is what the model is called, `source` where it comes
/// from. The model is on sequences of `tokens`.
///
/// # Errors
/// The first field that is missing, out of range, or asks for what is not modelled.
pub fn from_config(
    text: &str,
    name: &str,
    source: &str,
    tokens: u64,
) -> Result<ModelSpec, ConfigError> {
    let value: Value = serde_json::from_str(text).map_err(|error| ConfigError {
        field: String::new(),
        expected: "JSON".into(),
        found: error.to_string(),
    })?;
    let Value::Object(map) = value else {
        return Err(ConfigError {
            field: String::new(),
            expected: "a JSON object".into(),
            found: kind(&value).into(),
        });
    };
    if !(1..=1 << 20).contains(&tokens) {
        return Err(ConfigError {
            field: "sequence-length".into(),
            expected: "1 to 1048576".into(),
            found: tokens.to_string(),
        });
    }
    let config = Config(map);
    let decoder = decoder(&config, name, source)?;
    Ok(decoder.spec(tokens))
}

fn decoder(config: &Config, name: &str, source: &str) -> Result<Decoder, ConfigError> {
    let family = config.text("model_type")?;
    if !KNOWN.contains(&family) {
        return Err(error("model_type", KNOWN.join(", "), format!("`{family}`")));
    }
    let hidden = config.width("hidden_size")?;
    let count = config.number("num_hidden_layers", 1, MAX_LAYERS)?;
    let attention = attention(config, family, hidden)?;
    let moe = moe(config, family, hidden)?;
    let shared = match family {
        "deepseek_v3" => config.number("n_shared_experts", 0, 64)? * moe.hidden_dim,
        _ => 0,
    };
    let mut layers = Vec::new();
    for index in 0..count {
        let window = window(config, index)?;
        let dense = is_dense(config, family, index)?;
        let feed_forward = match dense {
            true => FeedForward::Dense(config.width("intermediate_size")?),
            false => FeedForward::Moe { moe, shared },
        };
        layers.push(Layer {
            window,
            feed_forward,
        });
    }
    Ok(Decoder {
        name: name.into(),
        source: source.into(),
        hidden,
        vocabulary: config.number("vocab_size", 1, 1 << 22)?,
        tied: config.flag("tie_word_embeddings", false)?,
        attention,
        layers,
    })
}

fn attention(config: &Config, family: &str, hidden: u64) -> Result<Attention, ConfigError> {
    let heads = config.number("num_attention_heads", 1, MAX_HEADS)?;
    if family == "deepseek_v3" {
        return Ok(Attention::Latent {
            heads,
            query_rank: config.width("q_lora_rank")?,
            key_value_rank: config.width("kv_lora_rank")?,
            nope_dim: config.number("qk_nope_head_dim", 1, MAX_HEADS)?,
            rope_dim: config.number("qk_rope_head_dim", 1, MAX_HEADS)?,
            value_dim: config.number("v_head_dim", 1, MAX_HEADS)?,
        });
    }
    let kv_heads = config.number("num_key_value_heads", 1, MAX_HEADS)?;
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of the {heads} attention heads");
        return Err(error("num_key_value_heads", expected, kv_heads));
    }
    let head_dim = match config.has("head_dim") {
        true => config.number("head_dim", 1, MAX_HEADS)?,
        false if hidden.is_multiple_of(heads) => hidden / heads,
        false => {
            let expected = format!("a divisor of hidden_size {hidden}, or `head_dim`");
            return Err(error("num_attention_heads", expected, heads));
        }
    };
    Ok(Attention::Grouped {
        heads,
        kv_heads,
        head_dim,
        bias: config.flag("attention_bias", false)?,
        norm: match family {
            "olmoe" => (heads + kv_heads) * head_dim,
            "qwen3_moe" => 2 * head_dim,
            _ => 0,
        },
        sinks: if family == "gpt_oss" { heads } else { 0 },
    })
}

fn moe(config: &Config, family: &str, hidden: u64) -> Result<Moe, ConfigError> {
    let (experts, width) = match family {
        "mixtral" | "gpt_oss" => ("num_local_experts", "intermediate_size"),
        "olmoe" => ("num_experts", "intermediate_size"),
        "qwen3_moe" => ("num_experts", "moe_intermediate_size"),
        _ => ("n_routed_experts", "moe_intermediate_size"),
    };
    let experts = config.number(experts, 1, MAX_EXPERTS)?;
    let top_k = config.number("num_experts_per_tok", 1, experts)?;
    Ok(Moe {
        tokens: 0,
        model_dim: hidden,
        hidden_dim: config.width(width)?,
        gated: true,
        bias: family == "gpt_oss",
        experts,
        top_k: u32::try_from(top_k).unwrap_or(u32::MAX),
        capacity_factor: 0.0,
        dtype: DTYPE,
    })
}

/// Whether layer `index` has a dense feed-forward.
fn is_dense(config: &Config, family: &str, index: u64) -> Result<bool, ConfigError> {
    Ok(match family {
        "deepseek_v3" => {
            let every = config.number("moe_layer_freq", 1, MAX_LAYERS)?;
            index < config.number("first_k_dense_replace", 0, MAX_LAYERS)?
                || !index.is_multiple_of(every)
        }
        "qwen3_moe" => {
            let every = config.number("decoder_sparse_step", 1, MAX_LAYERS)?;
            let listed = match config.0.get("mlp_only_layers") {
                Some(Value::Array(layers)) => layers.contains(&Value::from(index)),
                Some(Value::Null) | None => false,
                Some(other) => return Err(error("mlp_only_layers", "a list", kind(other))),
            };
            listed || !(index + 1).is_multiple_of(every)
        }
        _ => false,
    })
}

/// Tokens back that layer `index` sees.
fn window(config: &Config, index: u64) -> Result<u64, ConfigError> {
    let Some(types) = config.0.get("layer_types") else {
        return match config.0.get("sliding_window") {
            None | Some(Value::Null) => Ok(u64::MAX),
            Some(_) if !config.flag("use_sliding_window", true)? => Ok(u64::MAX),
            Some(_) => config.number("sliding_window", 1, u64::MAX),
        };
    };
    let field = format!("layer_types[{index}]");
    match types.get(index as usize).and_then(Value::as_str) {
        Some("full_attention") => Ok(u64::MAX),
        Some("sliding_attention") => config.number("sliding_window", 1, u64::MAX),
        other => Err(error(
            field,
            "full_attention or sliding_attention",
            other.map_or("nothing".into(), |name| format!("`{name}`")),
        )),
    }
}

struct Config(Map<String, Value>);

impl Config {
    fn has(&self, field: &str) -> bool {
        !matches!(self.0.get(field), None | Some(Value::Null))
    }

    fn text(&self, field: &str) -> Result<&str, ConfigError> {
        match self.0.get(field) {
            Some(Value::String(text)) => Ok(text),
            other => Err(error(field, "a name", other.map_or("nothing", kind))),
        }
    }

    fn width(&self, field: &str) -> Result<u64, ConfigError> {
        self.number(field, 1, MAX_WIDTH)
    }

    fn number(&self, field: &str, least: u64, most: u64) -> Result<u64, ConfigError> {
        let expected = match most {
            u64::MAX => format!("a whole number from {least}"),
            _ => format!("a whole number from {least} to {most}"),
        };
        match self.0.get(field) {
            Some(value) => match value.as_u64() {
                Some(number) if (least..=most).contains(&number) => Ok(number),
                _ => Err(error(field, expected, value)),
            },
            None => Err(error(field, expected, "nothing")),
        }
    }

    fn flag(&self, field: &str, otherwise: bool) -> Result<bool, ConfigError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(otherwise),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(error(field, "true or false", kind(other))),
        }
    }
}

fn error(
    field: impl Into<String>,
    expected: impl Into<String>,
    found: impl ToString,
) -> ConfigError {
    ConfigError {
        field: field.into(),
        expected: expected.into(),
        found: found.to_string(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

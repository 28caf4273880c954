//! How the gate scores experts.

use super::SpecError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Channels a cosine gate projects tokens to if nothing is said, as the authors' code does.
const PROJECTION_DIM: u64 = 256;

/// How logits follow from tokens (Section 11 of the spec sheet). `linear`, `cosine` or `cosine:P` on the
/// command line and in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Gate {
    /// A product with a weight (D, E), without bias.
    #[default]
    Linear,
    /// The cosine of the angle between the token, projected by (D, P), and the expert's column of (P, E), times the
    /// exponential of a learned temperature.
    Cosine {
        /// P.
        projection_dim: u64,
    },
}

impl Gate {
    /// Whether it is the default, which outputs leave out.
    pub fn is_linear(&self) -> bool {
        *self == Gate::Linear
    }

    /// Weights of a gate of D channels and E experts: (D, E); or (D, P), (P, E) and the temperature, one after the other.
    pub fn weights(self, model_dim: u64, experts: u64) -> u64 {
        match self {
            Gate::Linear => model_dim * experts,
            Gate::Cosine { projection_dim } => (model_dim + experts) * projection_dim + 1,
        }
    }

    /// Numbers that the forward pass leaves to the backward pass besides the scores: every token's and expert's vector
    /// of P channels, normalised, and the factor that did it.
    pub fn saved(self, tokens: u64, experts: u64) -> Option<u64> {
        match self {
            Gate::Linear => None,
            Gate::Cosine { projection_dim } => Some((tokens + experts) * (projection_dim + 1)),
        }
    }

    /// # Errors
    /// A projection of no channels, or of more than byte counts have room for.
    pub(super) fn check(self) -> Result<(), SpecError> {
        match self {
            Gate::Cosine { projection_dim } if !(1..=1 << 16).contains(&projection_dim) => {
                let expected = "a projection of 1 to 65536 channels";
                Err(SpecError::new("gate", expected, self))
            }
            Gate::Linear | Gate::Cosine { .. } => Ok(()),
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gate::Linear => f.write_str("linear"),
            Gate::Cosine { projection_dim } => write!(f, "cosine:{projection_dim}"),
        }
    }
}

impl FromStr for Gate {
    type Err = String;
    fn from_str(text: &str) -> Result<Gate, String> {
        let channels = match text.split_once(':') {
            None if text == "linear" => return Ok(Gate::Linear),
            None if text == "cosine" => Some(PROJECTION_DIM),
            Some(("cosine", channels)) => channels.parse().ok(),
            None | Some(_) => None,
        };
        match channels {
            Some(projection_dim) => Ok(Gate::Cosine { projection_dim }),
            None => Err(format!(
                "expected linear, cosine or cosine:P with P projected channels, found `{text}`"
            )),
        }
    }
}

impl TryFrom<String> for Gate {
    type Error = String;
    fn try_from(text: String) -> Result<Gate, String> {
        text.parse()
    }
}

impl From<Gate> for String {
    fn from(gate: Gate) -> String {
        gate.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for text in ["linear", "cosine:64"] {
            assert_eq!(text.parse::<Gate>().unwrap().to_string(), text);
        }
        let authors = Gate::Cosine {
            projection_dim: 256,
        };
        assert_eq!("cosine".parse(), Ok(authors));
        for bad in ["", "Cosine", "cosine:", "cosine:-1", "linear:3", "cosine:x"] {
            assert!(
                bad.parse::<Gate>().unwrap_err().contains("cosine:P"),
                "{bad}"
            );
        }
        let none = Gate::Cosine { projection_dim: 0 };
        assert_eq!(none.check().unwrap_err().field, "gate");
    }
}

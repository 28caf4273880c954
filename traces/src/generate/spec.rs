//! A specification as text: `zipf:1.2,drift=0.1`.

use std::fmt;
use std::str::FromStr;

use super::{Curve, Domains, Popularity, RoutingSpec, Workload};
use crate::error::{Place, TraceError, quote};

/// What [`RoutingSpec`] reads, for messages.
const BASES: &str = "uniform, zipf:EXPONENT, dirichlet:CONCENTRATION, power:EXPONENT, hot:SHARE or \
                     w0 to w7";
const OPTIONS: &str = "drift=, phase=, burst=, domains=, own=, balance=, capacity=, over=, \
                       affinity= or ragged=, each once";

/// Steps of a capacity curve when nothing is said.
const OVER: u64 = 100;
/// What a domain has of its own when nothing is said.
const OWN: f64 = 0.5;

impl fmt::Display for Popularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(exponent) => write!(f, "zipf:{exponent}"),
            Self::Dirichlet(alpha) => write!(f, "dirichlet:{alpha}"),
            Self::Power(exponent) => write!(f, "power:{exponent}"),
            Self::Hot(share) => write!(f, "hot:{share}"),
            Self::Workload(workload) => f.write_str(workload.name()),
        }
    }
}

impl FromStr for Popularity {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let (kind, value) = match text.split_once(':') {
            Some((kind, value)) => (kind, Some(value)),
            None => (text, None),
        };
        let wrong = |field: &str, expected: String| {
            Err(TraceError::invalid(
                place(field),
                expected,
                quote(text.as_bytes()),
            ))
        };
        if let Some(workload) = Workload::ALL.into_iter().find(|w| w.name() == kind) {
            return match value {
                None => Ok(Self::Workload(workload)),
                Some(_) => wrong(kind, format!("`{kind}` alone")),
            };
        }
        let of: fn(f64) -> Self = match (kind, value) {
            ("uniform", None) => return Ok(Self::Uniform),
            ("zipf", _) => Self::Zipf,
            ("dirichlet", _) => Self::Dirichlet,
            ("power", _) => Self::Power,
            ("hot", _) => Self::Hot,
            _ => return wrong("popularity", BASES.into()),
        };
        match value {
            Some(value) => Ok(of(float(kind, value)?)),
            None => wrong(kind, format!("`{kind}:` and a number")),
        }
    }
}

impl fmt::Display for RoutingSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.popularity)?;
        let mut option = |name: &str, value: f64| match value {
            0.0 => Ok(()),
            value => write!(f, ",{name}={value}"),
        };
        option("drift", self.drift)?;
        option("phase", self.phase as f64)?;
        option("burst", self.burst as f64)?;
        if let Some(Domains { count, own }) = self.domains {
            write!(f, ",domains={count},own={own}")?;
        }
        if self.balance > 0.0 {
            write!(f, ",balance={}", self.balance)?;
        }
        if let Some(Curve { least, most, over }) = self.capacity {
            write!(f, ",capacity={least}..{most},over={over}")?;
        }
        for (name, value) in [("affinity", self.affinity), ("ragged", self.ragged)] {
            if value > 0.0 {
                write!(f, ",{name}={value}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for RoutingSpec {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let mut parts = text.split(',');
        let mut spec = Self::of(parts.next().unwrap_or_default().parse()?);
        let mut seen: Vec<&str> = Vec::new();
        let (mut domains, mut own, mut over) = (None, None, None);
        for part in parts {
            let found = part
                .split_once('=')
                .filter(|(name, _)| !seen.contains(name));
            let Some((name, value)) = found else {
                return Err(TraceError::invalid(
                    place("options"),
                    OPTIONS,
                    quote(part.as_bytes()),
                ));
            };
            seen.push(name);
            match name {
                "drift" => spec.drift = float(name, value)?,
                "phase" => spec.phase = whole(name, value)?,
                "burst" => spec.burst = whole(name, value)?,
                "domains" => domains = Some(whole(name, value)?),
                "own" => own = Some(float(name, value)?),
                "balance" => spec.balance = float(name, value)?,
                "capacity" => spec.capacity = Some(curve(value)?),
                "over" => over = Some(whole(name, value)?),
                "affinity" => spec.affinity = float(name, value)?,
                "ragged" => spec.ragged = float(name, value)?,
                _ => {
                    return Err(TraceError::invalid(
                        place("options"),
                        OPTIONS,
                        quote(part.as_bytes()),
                    ));
                }
            }
        }
        let alone = |name: &str, with: &str| {
            TraceError::invalid(place(name), format!("`{with}=` beside it"), "it alone")
        };
        match (domains, own) {
            (Some(count), own) => {
                let own = own.unwrap_or(OWN);
                spec.domains = Some(Domains { count, own });
            }
            (None, Some(_)) => return Err(alone("own", "domains")),
            (None, None) => {}
        }
        match (&mut spec.capacity, over) {
            (Some(curve), Some(over)) => curve.over = over,
            (None, Some(_)) => return Err(alone("over", "capacity")),
            (Some(_) | None, None) => {}
        }
        spec.check()?;
        Ok(spec)
    }
}

fn place(field: &str) -> Place {
    Place::of("routing").field(field)
}

fn float(field: &str, text: &str) -> Result<f64, TraceError> {
    // `+ 0.0` makes a negative zero plain, which would not print.
    text.parse::<f64>()
        .map(|value| value + 0.0)
        .map_err(|_| TraceError::invalid(place(field), "a number", quote(text.as_bytes())))
}

fn whole(field: &str, text: &str) -> Result<u64, TraceError> {
    // Above 2^53 they would not print as they are.
    text.parse::<u64>()
        .ok()
        .filter(|&value| (1..=1 << 53).contains(&value))
        .ok_or_else(|| {
            let expected = "a whole number from 1 to 2^53";
            TraceError::invalid(place(field), expected, quote(text.as_bytes()))
        })
}

fn curve(text: &str) -> Result<Curve, TraceError> {
    let Some((least, most)) = text.split_once("..") else {
        let expected = "LEAST..MOST, two capacity factors";
        return Err(TraceError::invalid(
            place("capacity"),
            expected,
            quote(text.as_bytes()),
        ));
    };
    Ok(Curve {
        least: float("capacity", least)?,
        most: float("capacity", most)?,
        over: OVER,
    })
}

impl TryFrom<String> for RoutingSpec {
    type Error = TraceError;

    fn try_from(text: String) -> Result<Self, TraceError> {
        text.parse()
    }
}

impl From<RoutingSpec> for String {
    fn from(spec: RoutingSpec) -> Self {
        spec.to_string()
    }
}

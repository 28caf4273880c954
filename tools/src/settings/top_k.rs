//! `top-k`: one number, or the numbers of successive steps (top-ANY).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// k of successive steps, in turn; never empty. Written `2` or `2,1,4`, in TOML `2` or `[2, 1, 4]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopK(Vec<u32>);

impl TopK {
    /// The same k in every step.
    pub fn always(k: u32) -> TopK {
        TopK(vec![k])
    }

    /// k of successive steps, in turn.
    pub fn by_step(&self) -> &[u32] {
        &self.0
    }
}

impl fmt::Display for TopK {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

impl FromStr for TopK {
    type Err = String;

    fn from_str(text: &str) -> Result<TopK, String> {
        let number = |part: &str| {
            part.trim()
                .parse()
                .map_err(|error| format!("expected a number or numbers like 2,1,4: {error}"))
        };
        text.split(',')
            .map(number)
            .collect::<Result<_, _>>()
            .map(TopK)
    }
}

impl Serialize for TopK {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0[..] {
            [only] => serializer.serialize_u32(only),
            _ => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for TopK {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TopK, D::Error> {
        struct OneOrMore;

        impl<'de> de::Visitor<'de> for OneOrMore {
            type Value = TopK;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a list of numbers")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<TopK, E> {
                let unexpected = de::Unexpected::Signed(number);
                let number = u32::try_from(number);
                number
                    .map(TopK::always)
                    .map_err(|_| E::invalid_value(unexpected, &self))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<TopK, E> {
                let unexpected = de::Unexpected::Unsigned(number);
                let number = u32::try_from(number);
                number
                    .map(TopK::always)
                    .map_err(|_| E::invalid_value(unexpected, &self))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<TopK, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = list.next_element()? {
                    numbers.push(number);
                }
                match numbers.is_empty() {
                    true => Err(de::Error::invalid_length(0, &self)),
                    false => Ok(TopK(numbers)),
                }
            }
        }

        deserializer.deserialize_any(OneOrMore)
    }
}

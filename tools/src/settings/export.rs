//! Settings of timelines for other programs.

use clap::Args;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A format of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// Trace Event Format, for ui.perfetto.dev.
    Perfetto,
}

/// `[export]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ExportSettings {
    /// Write the timeline of the slowest step instead: perfetto
    #[arg(long, value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<ExportFormat>,
    /// Ranks in it: all, or like 0-7,12 [default: all up to 64, beyond them the first node and the slowest rank]
    #[arg(long, value_name = "RANKS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export_ranks: Option<Ranks>,
}

impl ExportSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &ExportSettings) -> ExportSettings {
        ExportSettings {
            export: self.export.or(file.export),
            export_ranks: self
                .export_ranks
                .clone()
                .or_else(|| file.export_ranks.clone()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == ExportSettings::default()
    }
}

/// Some ranks of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Ranks {
    /// Every one.
    All,
    /// Those in any of the ranges.
    Some(Vec<RangeInclusive<usize>>),
}

impl FromStr for Ranks {
    type Err = String;

    fn from_str(text: &str) -> Result<Ranks, String> {
        if text.trim() == "all" {
            return Ok(Ranks::All);
        }
        let wrong = || format!("expected `all`, or ranks and ranges like 0-7,12, found `{text}`");
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first <= last {
                Ok(first..=last)
            } else {
                Err(wrong())
            }
        };
        text.split(',')
            .map(range)
            .collect::<Result<_, _>>()
            .map(Ranks::Some)
    }
}

impl TryFrom<String> for Ranks {
    type Error = String;

    fn try_from(text: String) -> Result<Ranks, String> {
        text.parse()
    }
}

impl From<Ranks> for String {
    fn from(ranks: Ranks) -> String {
        match ranks {
            Ranks::All => "all".into(),
            Ranks::Some(ranges) => {
                let range = |range: RangeInclusive<usize>| match range.start() == range.end() {
                    true => range.start().to_string(),
                    false => format!("{}-{}", range.start(), range.end()),
                };
                ranges.into_iter().map(range).collect::<Vec<_>>().join(",")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_read_and_written() {
        for text in ["all", "3", "0-7,12", "5-5,1"] {
            let ranks: Ranks = text.parse().unwrap();
            let written = String::from(ranks.clone());
            assert_eq!(written.parse::<Ranks>().unwrap(), ranks);
        }
        for text in ["", "7-3", "x", "1,,2", "-1", "1-"] {
            assert!(text.parse::<Ranks>().is_err(), "{text}");
        }
    }
}

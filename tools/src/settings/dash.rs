//! `[dash]`: how the dashboard shows a run.

use crate::dash::state::View;
use crate::dash::theme::Ground;
use clap::Args;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// Columns and rows of a screen, written `120x40`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScreenSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

impl FromStr for ScreenSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ScreenSize, String> {
        let sides = text.split_once('x');
        let sides =
            sides.and_then(|(columns, rows)| Some((columns.parse().ok()?, rows.parse().ok()?)));
        match sides {
            Some((columns @ 1..=1_000, rows @ 1..=1_000)) => Ok(ScreenSize { columns, rows }),
            Some(_) | None => Err(format!(
                "expected columns x rows such as 120x40, found `{text}`"
            )),
        }
    }
}

impl fmt::Display for ScreenSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.columns, self.rows)
    }
}

impl Serialize for ScreenSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ScreenSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ScreenSize, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// `[dash]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct DashSettings {
    /// Go on reading a file that another process writes
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
    /// Play from the first step, so many steps a second
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
    /// The view to begin with [default: overview]
    #[arg(long, value_name = "VIEW")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view: Option<View>,
    /// dark or light [default: as the terminal says, or dark]
    #[arg(long, value_name = "GROUND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub theme: Option<Ground>,
    /// Draw this view once, without a terminal: to --output as SVG (FILE.svg), PNG (FILE.png) or text
    #[arg(long, value_name = "VIEW")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub screenshot: Option<View>,
    /// Size of the screenshot [default: 120x40]
    #[arg(long, value_name = "COLUMNSxROWS", requires = "screenshot")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ScreenSize>,
    /// Step of the screenshot, counted from 0 [default: the last]
    #[arg(long = "at-step", value_name = "I", requires = "screenshot")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Keys pressed before the screenshot
    #[arg(long, value_name = "KEYS", requires = "screenshot")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
}

impl DashSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &DashSettings) -> DashSettings {
        DashSettings {
            follow: self.follow || file.follow,
            speed: self.speed.or(file.speed),
            view: self.view.or(file.view),
            theme: self.theme.or(file.theme),
            screenshot: self.screenshot.or(file.screenshot),
            size: self.size.or(file.size),
            step: self.step.or(file.step),
            keys: self.keys.clone().or_else(|| file.keys.clone()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == DashSettings::default()
    }
}

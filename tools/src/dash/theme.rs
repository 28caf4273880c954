//! Colours. Every one of them has a glyph or a word beside it: nothing is told by colour alone.

use ratatui::style::{Color, Modifier, Style};
use serde::{Deserialize, Serialize};

/// How many colours the terminal has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// None, or none wanted (`NO_COLOR`).
    Mono,
    /// The 16 of ANSI.
    Ansi,
    /// The 256 of xterm.
    Indexed,
    /// 24 bits.
    True,
}

/// What a terminal looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ground {
    /// Light text on dark.
    #[default]
    Dark,
    /// Dark text on light.
    Light,
}

/// Colours of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme {
    /// How many there are.
    pub depth: Depth,
    /// On what.
    pub ground: Ground,
}

/// Okabe and Ito's colours, told apart by all kinds of colour vision, without black and yellow,
/// which vanish on dark and light; and the nearest of ANSI.
const HUES: [((u8, u8, u8), Color); 7] = [
    ((230, 159, 0), Color::Yellow),
    ((86, 180, 233), Color::LightBlue),
    ((0, 158, 115), Color::Green),
    ((204, 121, 167), Color::Magenta),
    ((213, 94, 0), Color::Red),
    ((0, 114, 178), Color::Blue),
    ((140, 140, 140), Color::Gray),
];

/// Viridis at six points, dark to bright; and the nearest of ANSI.
const VIRIDIS: [((u8, u8, u8), Color); 6] = [
    ((68, 1, 84), Color::Blue),
    ((65, 68, 135), Color::Blue),
    ((42, 120, 142), Color::Cyan),
    ((34, 168, 132), Color::Green),
    ((122, 209, 81), Color::LightGreen),
    ((253, 231, 37), Color::LightYellow),
];

/// Glyphs of a heat map, cold to hot.
pub const SHADES: [char; 6] = ['·', '░', '▒', '▓', '█', '█'];

impl Theme {
    /// The theme of the terminal that the variables of the environment describe.
    pub fn of_terminal(ground: Option<Ground>, variable: impl Fn(&str) -> Option<String>) -> Theme {
        let set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
        let term = variable("TERM").unwrap_or_default();
        let colours = variable("COLORTERM").unwrap_or_default();
        let depth = if set("NO_COLOR") || term == "dumb" {
            Depth::Mono
        } else if matches!(&colours[..], "truecolor" | "24bit") {
            Depth::True
        } else if term.contains("256") || term.contains("kitty") || term.contains("direct") {
            Depth::Indexed
        } else {
            Depth::Ansi
        };
        // `15;0`: foreground and background, as rxvt, konsole and others set it.
        let background =
            variable("COLORFGBG").and_then(|value| value.rsplit(';').next()?.parse::<u8>().ok());
        let told = match background {
            Some(7 | 9..=15) => Ground::Light,
            Some(_) | None => Ground::Dark,
        };
        Theme {
            depth,
            ground: ground.unwrap_or(told),
        }
    }

    fn colour(self, (r, g, b): (u8, u8, u8), ansi: Color) -> Option<Color> {
        match self.depth {
            Depth::Mono => None,
            Depth::Ansi => Some(ansi),
            Depth::Indexed => Some(Color::Indexed(nearest((r, g, b)))),
            Depth::True => Some(Color::Rgb(r, g, b)),
        }
    }

    fn foreground(self, colour: Option<Color>) -> Style {
        colour.map_or_else(Style::new, |colour| Style::new().fg(colour))
    }

    /// The colour of the `index`-th of several things.
    pub fn hue(self, index: usize) -> Style {
        let (mut rgb, ansi) = HUES[index % HUES.len()];
        if self.ground == Ground::Light && index.is_multiple_of(HUES.len()) {
            // Orange is hard to read on white.
            rgb = (180, 110, 0);
        }
        self.foreground(self.colour(rgb, ansi))
    }

    /// As [`Theme::hue`], as a filled block with text on it.
    pub fn block(self, index: usize) -> Style {
        match self.hue(index).fg {
            Some(colour) => Style::new().bg(colour).fg(match self.depth {
                Depth::True | Depth::Indexed => self.black(),
                Depth::Ansi | Depth::Mono => Color::Black,
            }),
            None => Style::new().add_modifier(Modifier::REVERSED),
        }
    }

    fn black(self) -> Color {
        self.colour((0, 0, 0), Color::Black).unwrap_or(Color::Black)
    }

    /// The glyph and colour of `share`, 0 to 1, on a heat map.
    pub fn heat(self, share: f64) -> (char, Style) {
        let share = if share.is_finite() {
            share.clamp(0.0, 1.0)
        } else {
            0.0
        };
        let glyph = SHADES[((share * SHADES.len() as f64) as usize).min(SHADES.len() - 1)];
        let scale = share * (VIRIDIS.len() - 1) as f64;
        let low = (scale as usize).min(VIRIDIS.len() - 2);
        let part = scale - low as f64;
        let ((r, g, b), ansi) = VIRIDIS[low];
        let ((r2, g2, b2), ansi2) = VIRIDIS[low + 1];
        let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * part) as u8;
        let mut rgb = (mix(r, r2), mix(g, g2), mix(b, b2));
        if self.ground == Ground::Light {
            // On white the bright end would vanish: run from pale to dark.
            rgb = (
                235u8.saturating_sub((share * 230.0) as u8),
                235u8.saturating_sub((share * 215.0) as u8),
                240u8.saturating_sub((share * 130.0) as u8),
            );
        } else if self.depth != Depth::Mono && share < 0.25 {
            // The dark end must be seen on black.
            rgb = (rgb.0.max(80), rgb.1.max(60), rgb.2.max(120));
        }
        let ansi = if part < 0.5 { ansi } else { ansi2 };
        (glyph, self.foreground(self.colour(rgb, ansi)))
    }

    /// What matters less.
    pub fn dim(self) -> Style {
        match (self.depth, self.ground) {
            (Depth::Mono, _) => Style::new().add_modifier(Modifier::DIM),
            (_, Ground::Dark) => self.foreground(self.colour((150, 150, 150), Color::DarkGray)),
            (_, Ground::Light) => self.foreground(self.colour((100, 100, 100), Color::DarkGray)),
        }
    }

    /// What matters most.
    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Good news.
    pub fn good(self) -> Style {
        self.hue(2)
    }

    /// Bad news.
    pub fn bad(self) -> Style {
        self.hue(4).add_modifier(Modifier::BOLD)
    }

    /// What is selected.
    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}

/// The nearest of xterm's 6 x 6 x 6 colours.
fn nearest((r, g, b): (u8, u8, u8)) -> u8 {
    let level = |value: u8| -> u8 {
        match value {
            0..48 => 0,
            48..115 => 1,
            _ => (value - 35) / 40,
        }
    };
    16 + 36 * level(r) + 6 * level(g) + level(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theme(variables: &[(&str, &str)]) -> Theme {
        Theme::of_terminal(None, |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_decides_on_colours() {
        assert_eq!(theme(&[("TERM", "linux")]).depth, Depth::Ansi);
        assert_eq!(theme(&[("TERM", "xterm-256color")]).depth, Depth::Indexed);
        let colours = [("TERM", "xterm"), ("COLORTERM", "truecolor")];
        assert_eq!(theme(&colours).depth, Depth::True);
        let none = [("NO_COLOR", "1"), ("COLORTERM", "truecolor")];
        assert_eq!(theme(&none).depth, Depth::Mono);
        assert_eq!(theme(&[("COLORFGBG", "0;15")]).ground, Ground::Light);
        assert_eq!(theme(&[("COLORFGBG", "15;0")]).ground, Ground::Dark);
    }

    #[test]
    fn without_colours_no_style_has_one() {
        let mono = theme(&[("NO_COLOR", "1")]);
        for index in 0..10 {
            let styles = [
                mono.hue(index),
                mono.block(index),
                mono.heat(index as f64 / 9.0).1,
                mono.dim(),
                mono.bad(),
            ];
            assert!(
                styles
                    .iter()
                    .all(|style| style.fg.is_none() && style.bg.is_none())
            );
        }
        // Heat is then in the glyphs.
        assert_ne!(mono.heat(0.1).0, mono.heat(0.5).0);
    }
}

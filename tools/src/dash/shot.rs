//! The screen as a file: text, and SVG that looks the same everywhere.

use super::state::State;
use super::theme::Ground;
use super::view::view;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Columns and rows of a character, in pixels.
const CELL: (f64, f64) = (8.0, 17.0);

/// The screen that `state` draws.
pub fn screen(state: &State) -> Buffer {
    let (columns, rows) = state.size;
    let Ok(mut terminal) = Terminal::new(TestBackend::new(columns, rows));
    let Ok(_) = terminal.draw(|frame| view(state, frame));
    terminal.backend().buffer().clone()
}

/// The screen as lines of text.
pub fn text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for row in rows(buffer) {
        let line: String = row.iter().map(Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn rows(buffer: &Buffer) -> impl Iterator<Item = &[Cell]> {
    buffer.content.chunks(usize::from(buffer.area.width).max(1))
}

/// The screen as SVG. Blocks, dots and lines are drawn, so that no font can tear them.
pub fn svg(buffer: &Buffer, ground: Ground) -> String {
    let (width, height) = (
        f64::from(buffer.area.width) * CELL.0,
        f64::from(buffer.area.height) * CELL.1,
    );
    let (paper, ink) = match ground {
        Ground::Dark => ("#16181d", "#d4d4d4"),
        Ground::Light => ("#ffffff", "#202020"),
    };
    let mut below: BTreeMap<String, String> = BTreeMap::new();
    let mut shapes: BTreeMap<(String, u8), String> = BTreeMap::new();
    let mut words = String::new();
    for (row, cells) in rows(buffer).enumerate() {
        let y = row as f64 * CELL.1;
        let mut column = 0;
        while column < cells.len() {
            let cell = &cells[column];
            let (front, back) = colours(cell, paper, ink);
            let x = column as f64 * CELL.0;
            if back != paper {
                rectangle(below.entry(back.clone()).or_default(), (x, y), CELL);
            }
            let glyph = cell.symbol().chars().next().unwrap_or(' ');
            if let Some((opacity, path)) = shape(glyph, x, y) {
                shapes.entry((front, opacity)).or_default().push_str(&path);
                column += 1;
                continue;
            }
            // A word: as long as the style stays and glyphs are letters.
            let mut word = String::new();
            let start = column;
            while column < cells.len() {
                let next = &cells[column];
                let glyph = next.symbol().chars().next().unwrap_or(' ');
                let alike = colours(next, paper, ink) == (front.clone(), back.clone())
                    && next.modifier == cell.modifier
                    && shape(glyph, 0.0, 0.0).is_none();
                if !alike {
                    break;
                }
                if column > start && back != paper {
                    let at = (column as f64 * CELL.0, y);
                    rectangle(below.entry(back.clone()).or_default(), at, CELL);
                }
                word.push_str(next.symbol());
                column += 1;
            }
            if !word.trim().is_empty() {
                write_word(
                    &mut words,
                    (x, y),
                    &word,
                    column - start,
                    &front,
                    cell.modifier,
                );
            }
        }
    }
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" \
         font-size=\"13.2\">\n<rect width=\"100%\" height=\"100%\" fill=\"{paper}\"/>\n"
    );
    for (colour, path) in below {
        let _ = writeln!(svg, "<path fill=\"{colour}\" d=\"{path}\"/>");
    }
    for ((colour, opacity), path) in shapes {
        let share = f64::from(opacity) / 100.0;
        let _ = writeln!(
            svg,
            "<path fill=\"{colour}\" fill-opacity=\"{share}\" d=\"{path}\"/>"
        );
    }
    svg.push_str(&words);
    svg.push_str("</svg>\n");
    svg
}

fn write_word(
    words: &mut String,
    (x, y): (f64, f64),
    word: &str,
    columns: usize,
    colour: &str,
    modifier: Modifier,
) {
    // Spaces at the ends would be lost, or stretched.
    let lead = word.chars().take_while(|c| *c == ' ').count();
    let text = word.trim();
    let length = (columns - (word.chars().count() - text.chars().count())) as f64 * CELL.0;
    let weight = match modifier.contains(Modifier::BOLD) {
        true => " font-weight=\"bold\"",
        false => "",
    };
    let faint = match modifier.contains(Modifier::DIM) {
        true => " opacity=\"0.6\"",
        false => "",
    };
    let escaped = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let (x, y) = (x + lead as f64 * CELL.0, y + 12.8);
    let _ = writeln!(
        words,
        "<text x=\"{x}\" y=\"{y}\" textLength=\"{length}\" lengthAdjust=\"spacingAndGlyphs\" \
         xml:space=\"preserve\" fill=\"{colour}\"{weight}{faint}>{escaped}</text>"
    );
}

fn rectangle(path: &mut String, (x, y): (f64, f64), (width, height): (f64, f64)) {
    let _ = write!(path, "M{x:.4} {y:.4}h{width:.4}v{height:.4}h-{width:.4}z");
}

/// A glyph that is drawn, at this place: its opacity in percent, and its outline.
fn shape(glyph: char, x: f64, y: f64) -> Option<(u8, String)> {
    let (width, height) = CELL;
    let mut path = String::new();
    let mut opacity = 100;
    let code = u32::from(glyph);
    match glyph {
        '▁'..='█' => {
            let part = f64::from(code - 0x2580) / 8.0 * height;
            rectangle(&mut path, (x, y + height - part), (width, part));
        }
        '▉'..='▏' => {
            let part = f64::from(8 - (code - 0x2588)) / 8.0 * width;
            rectangle(&mut path, (x, y), (part, height));
        }
        '░' | '▒' | '▓' => {
            opacity = [30, 50, 75][(code - 0x2591) as usize];
            rectangle(&mut path, (x, y), CELL);
        }
        '\u{2800}'..='\u{28ff}' => {
            let bits = code - 0x2800;
            const PLACES: [(f64, f64); 8] = [
                (0.0, 0.0),
                (0.0, 1.0),
                (0.0, 2.0),
                (1.0, 0.0),
                (1.0, 1.0),
                (1.0, 2.0),
                (0.0, 3.0),
                (1.0, 3.0),
            ];
            for (bit, (column, row)) in PLACES.iter().enumerate() {
                if bits >> bit & 1 == 1 {
                    let at = (x + 1.0 + column * 4.0, y + 1.0 + row * 4.25);
                    rectangle(&mut path, at, (2.2, 2.2));
                }
            }
        }
        '─' | '│' | '╭' | '╮' | '╰' | '╯' | '┤' | '└' | '┊' => {
            let (middle, centre) = (x + width / 2.0 - 0.5, y + height / 2.0 - 0.5);
            let mut line = |left: bool, right: bool, up: bool, down: bool| {
                let (half_width, half_height) = (width / 2.0 + 0.5, height / 2.0 + 0.5);
                for (there, at, size) in [
                    (left, (x, centre), (half_width, 1.0)),
                    (right, (middle, centre), (half_width, 1.0)),
                    (up, (middle, y), (1.0, half_height)),
                    (down, (middle, centre), (1.0, half_height)),
                ] {
                    if there {
                        rectangle(&mut path, at, size);
                    }
                }
            };
            match glyph {
                '─' => line(true, true, false, false),
                '╭' => line(false, true, false, true),
                '╮' => line(true, false, false, true),
                '╰' | '└' => line(false, true, true, false),
                '╯' => line(true, false, true, false),
                '┤' => line(true, false, true, true),
                _ => line(false, false, true, true),
            }
            if glyph == '┊' {
                opacity = 50;
            }
        }
        _ => return None,
    }
    Some((opacity, path))
}

/// Front and back of a cell.
fn colours(cell: &Cell, paper: &str, ink: &str) -> (String, String) {
    let front = hex(cell.fg).unwrap_or_else(|| ink.to_owned());
    let back = hex(cell.bg).unwrap_or_else(|| paper.to_owned());
    match cell.modifier.contains(Modifier::REVERSED) {
        true => (back, front),
        false => (front, back),
    }
}

fn hex(colour: Color) -> Option<String> {
    let (r, g, b) = match colour {
        Color::Reset => return None,
        Color::Rgb(r, g, b) => (r, g, b),
        Color::Indexed(index) => indexed(index),
        Color::Black => (0, 0, 0),
        Color::Red => (205, 49, 49),
        Color::Green => (13, 188, 121),
        Color::Yellow => (229, 179, 16),
        Color::Blue => (36, 114, 200),
        Color::Magenta => (188, 63, 188),
        Color::Cyan => (17, 168, 205),
        Color::Gray => (170, 170, 170),
        Color::DarkGray => (120, 120, 120),
        Color::LightRed => (241, 76, 76),
        Color::LightGreen => (35, 209, 139),
        Color::LightYellow => (245, 245, 67),
        Color::LightBlue => (86, 156, 214),
        Color::LightMagenta => (214, 112, 214),
        Color::LightCyan => (41, 184, 219),
        Color::White => (229, 229, 229),
    };
    Some(format!("#{r:02x}{g:02x}{b:02x}"))
}

fn indexed(index: u8) -> (u8, u8, u8) {
    match index {
        0..16 => (128, 128, 128),
        16..232 => {
            let level = |value: u8| if value == 0 { 0 } else { 55 + value * 40 };
            let index = index - 16;
            (level(index / 36), level(index / 6 % 6), level(index % 6))
        }
        232.. => {
            let grey = 8 + (index - 232) * 10;
            (grey, grey, grey)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::layout::Rect;
    use ratatui::style::Style;

    #[test]
    fn a_screen_becomes_text_and_svg() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 12, 2));
        buffer.set_string(0, 0, "a < b", Style::new().fg(Color::Rgb(1, 2, 3)));
        buffer.set_string(0, 1, "█⣿", Style::new().add_modifier(Modifier::REVERSED));
        assert_eq!(text(&buffer), "a < b\n█⣿\n");
        let svg = svg(&buffer, Ground::Dark);
        assert!(svg.contains("fill=\"#010203\"") && svg.contains("a &lt; b"));
        // Reversed: ink behind, paper in front.
        assert!(svg.contains("<path fill=\"#d4d4d4\" d=\"M0.0000 17.0000"));
        assert!(svg.ends_with("</svg>\n"));
    }
}

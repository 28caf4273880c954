//! Aligned columns of text.

use std::fmt::Write;

/// Widest a table may get before its text is wrapped.
pub const WIDTH: usize = 118;

/// A grid of cells: the first column left, the others right.
#[derive(Debug, Clone, Default)]
pub struct Grid {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// A grid with these column titles.
    pub fn new(header: impl IntoIterator<Item = impl Into<String>>) -> Grid {
        Grid {
            header: header.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    /// Appends a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The grid as lines. Titles longer than `title_width` break at spaces.
    pub fn render(&self, title_width: usize) -> String {
        let titles: Vec<Vec<String>> = self
            .header
            .iter()
            .map(|title| wrap(title, title_width))
            .collect();
        let tall = titles.iter().map(Vec::len).max().unwrap_or(0);
        // Titles stand on the rule: short ones get blank lines above.
        let header = (0..tall).map(|line| {
            titles
                .iter()
                .map(|title| {
                    let blank = tall - title.len();
                    let cell = line.checked_sub(blank).and_then(|line| title.get(line));
                    cell.cloned().unwrap_or_default()
                })
                .collect::<Vec<_>>()
        });
        let header: Vec<Vec<String>> = header.collect();
        let columns = self.header.len();
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                header
                    .iter()
                    .chain(&self.rows)
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in &header {
            line(&mut text, row, &widths);
        }
        let rule: usize = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
        let _ = writeln!(text, "{}", "-".repeat(rule));
        for row in &self.rows {
            line(&mut text, row, &widths);
        }
        text
    }
}

fn line(text: &mut String, cells: &[String], widths: &[usize]) {
    let mut shown = String::new();
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        // Writing to a String cannot fail.
        let _ = match column {
            0 => write!(shown, "{cell:<width$}"),
            _ => write!(shown, "  {cell:>width$}"),
        };
    }
    text.push_str(shown.trim_end());
    text.push('\n');
}

/// `text` in lines of at most `width` characters where spaces allow it.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(last) if last.chars().count() + 1 + word.chars().count() <= width => {
                last.push(' ');
                last.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// `text` as a paragraph, its later lines indented by `indent`.
pub fn paragraph(text: &str, indent: usize) -> String {
    let lines = wrap(text, WIDTH - indent);
    let mut shown = lines.join(&format!("\n{}", " ".repeat(indent)));
    shown.push('\n');
    shown
}

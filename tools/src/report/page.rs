//! What a report holds, before it is a file.

use crate::error::Error;

/// A whole report.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Its title.
    pub title: String,
    /// What it is about, a line each.
    pub about: Vec<String>,
    /// Facts to make it again: name and value.
    pub facts: Vec<(String, String)>,
    /// Its parts.
    pub sections: Vec<Section>,
    /// The settings in force, as TOML or JSON.
    pub settings: String,
}

/// A part of a report.
#[derive(Debug, Clone, Default)]
pub struct Section {
    /// Its title.
    pub title: String,
    /// What is to be read out of it, a paragraph each.
    pub text: Vec<String>,
    /// Figures.
    pub figures: Vec<Figure>,
    /// Tables.
    pub tables: Vec<Table>,
}

/// A plot and the numbers it was drawn from.
#[derive(Debug, Clone)]
pub struct Figure {
    /// Name of its files.
    pub id: String,
    /// For those who cannot see it.
    pub caption: String,
    /// The plot.
    pub svg: String,
    /// The numbers.
    pub data: Table,
}

/// Rows of cells.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Name of its file.
    pub id: String,
    /// Above it.
    pub caption: String,
    /// Names of columns.
    pub columns: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<Cell>>,
}

/// A cell: what is shown, and what it is sorted by.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Shown.
    pub text: String,
    /// The number behind it.
    pub value: Option<f64>,
}

impl Cell {
    /// A number as it is shown.
    pub fn number(value: f64, text: impl Into<String>) -> Cell {
        Cell {
            text: text.into(),
            value: Some(value),
        }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell { text, value: None }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        text.to_owned().into()
    }
}

impl Table {
    /// Columns of numbers below a first one, as curves and bars have them.
    pub fn of_numbers(
        id: &str,
        first: &str,
        columns: impl IntoIterator<Item = String>,
        rows: impl IntoIterator<Item = (String, Vec<f64>)>,
    ) -> Table {
        let rows = rows.into_iter().map(|(name, values)| {
            let first = match name.parse() {
                Ok(value) => Cell::number(value, name),
                Err(_) => name.into(),
            };
            let cells = values
                .into_iter()
                .map(|value| Cell::number(value, crate::output::numbers::three(value)));
            std::iter::once(first).chain(cells).collect()
        });
        Table {
            id: id.to_owned(),
            caption: String::new(),
            columns: std::iter::once(first.to_owned()).chain(columns).collect(),
            rows: rows.collect(),
        }
    }

    /// As CSV: numbers where there are any, not how they are shown.
    ///
    /// # Errors
    /// None of the user's.
    pub fn csv(&self) -> Result<Vec<u8>, Error> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let unexpected = |error: &dyn std::fmt::Display| Error::Unexpected(error.to_string());
        writer
            .write_record(&self.columns)
            .map_err(|error| unexpected(&error))?;
        for row in &self.rows {
            let cells = row.iter().map(|cell| match cell.value {
                Some(value) => value.to_string(),
                None => cell.text.clone(),
            });
            writer
                .write_record(cells)
                .map_err(|error| unexpected(&error))?;
        }
        writer.into_inner().map_err(|error| unexpected(&error))
    }
}

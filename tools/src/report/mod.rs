//! Reports to hand to others: one HTML file, and the same figures and numbers as files.

mod html;
mod page;
mod paper;
mod runs;
mod trust;

pub use page::{Cell, Figure, Page, Section, Table};
pub use paper::paper;
pub use runs::runs;

use crate::error::Error;
use crate::output::raster;
use std::fs;
use std::path::Path;

/// The page as one HTML file.
pub fn render(page: &Page) -> String {
    html::render(page)
}

/// Writes every figure of `page` as SVG and PNG and every table as CSV into `folder`.
///
/// # Errors
/// A file that cannot be written.
pub fn write_assets(page: &Page, folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|source| Error::Write {
        path: folder.display().to_string(),
        source,
    })?;
    let write = |name: String, bytes: &[u8]| crate::output::replace(&folder.join(name), bytes);
    for section in &page.sections {
        for figure in &section.figures {
            write(format!("{}.svg", figure.id), figure.svg.as_bytes())?;
            write(format!("{}.png", figure.id), &raster::png(&figure.svg)?)?;
            write(format!("{}.csv", figure.id), &figure.data.csv()?)?;
        }
        for table in &section.tables {
            write(format!("{}.csv", table.id), &table.csv()?)?;
        }
    }
    Ok(())
}

/// What makes a report again.
fn facts(seed: u64, command: &str) -> Vec<(String, String)> {
    let version = env!("CARGO_PKG_VERSION");
    [
        ("moeplan", version.to_owned()),
        ("seed", seed.to_string()),
        ("command", command.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// Curves as a figure: their points are its numbers.
fn lines(id: &str, chart: &crate::output::chart::Lines<'_>) -> Result<Figure, Error> {
    let mut places: Vec<f64> = Vec::new();
    for curve in chart.curves {
        places.extend(curve.points.iter().map(|point| point.0));
    }
    places.sort_by(f64::total_cmp);
    places.dedup();
    let names = || chart.curves.iter().map(|curve| curve.name.clone());
    let rows = places.iter().map(|&x| {
        let at = |curve: &crate::output::chart::Curve| {
            let found = curve.points.iter().find(|point| point.0 == x);
            found.map_or_else(
                || Cell::from("-"),
                |point| Cell::number(point.1, crate::output::numbers::three(point.1)),
            )
        };
        let first = Cell::number(x, x.to_string());
        std::iter::once(first)
            .chain(chart.curves.iter().map(at))
            .collect()
    });
    let data = Table {
        id: id.to_owned(),
        caption: format!("{} by {}", chart.y, chart.x),
        columns: std::iter::once(chart.x.to_owned()).chain(names()).collect(),
        rows: rows.collect(),
    };
    Ok(Figure {
        id: id.to_owned(),
        caption: chart.title.to_owned(),
        svg: chart.render()?,
        data,
    })
}

/// Bars as a figure.
fn bars(id: &str, chart: &crate::output::chart::Bars<'_>) -> Result<Figure, Error> {
    let names = chart.series.iter().map(|(name, _)| name.clone());
    let rows = chart.groups.iter().enumerate().map(|(group, name)| {
        let heights = chart.series.iter().map(|(_, heights)| heights[group]);
        (name.clone(), heights.collect())
    });
    let mut data = Table::of_numbers(id, "", names, rows);
    data.caption = chart.y.to_owned();
    Ok(Figure {
        id: id.to_owned(),
        caption: chart.title.to_owned(),
        svg: chart.render()?,
        data,
    })
}

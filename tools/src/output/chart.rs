//! Charts as SVG, in one style for reports and studies.

use crate::error::Error;
use plotters::coord::Shift;
use plotters::prelude::*;

/// Colours that also differ in brightness (after Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(150, 150, 150),
];

const SIZE: (u32, u32) = (760, 420);

/// Where the names of curves stand.
const LEGEND: (i32, i32) = (560, 46);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// A curve with its name.
pub struct Curve {
    /// Its name.
    pub name: String,
    /// In ascending order of x.
    pub points: Vec<(f64, f64)>,
}

/// Curves over a common axis.
#[derive(Default)]
pub struct Lines<'a> {
    /// Above the chart.
    pub title: &'a str,
    /// What x is.
    pub x: &'a str,
    /// What y is.
    pub y: &'a str,
    /// The curves.
    pub curves: &'a [Curve],
    /// Whether x is logarithmic; points are then marked.
    pub log_x: bool,
    /// Whether y is.
    pub log_y: bool,
    /// Published figures, drawn as crosses.
    pub published: &'a [(f64, f64)],
}

/// Groups of bars.
#[derive(Default)]
pub struct Bars<'a> {
    /// Above the chart.
    pub title: &'a str,
    /// What a bar's height is.
    pub y: &'a str,
    /// Names of the groups.
    pub groups: &'a [String],
    /// A name and a height for every group.
    pub series: &'a [(String, Vec<f64>)],
    /// On top of each other, or side by side.
    pub stacked: bool,
    /// A level across, with its name.
    pub level: Option<(&'a str, f64)>,
    /// Published figures of a series and group, drawn as crosses.
    pub published: &'a [(usize, usize, f64)],
}

fn svg(draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, Error> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)
            .map_err(|error| Error::Unexpected(format!("plot: {error}")))?;
        draw(&root).map_err(|error| Error::Unexpected(format!("plot: {error}")))?;
        root.present()
            .map_err(|error| Error::Unexpected(format!("plot: {error}")))?;
    }
    Ok(svg)
}

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// A name in the legend. Once the colours are used up, its line is broken.
fn name(root: &Area<'_>, index: usize, name: &str) -> Drawn {
    let (left, top) = LEGEND;
    let line = top + 18 * index as i32;
    let parts: &[(i32, i32)] = if is_broken(index) {
        &[(0, 10), (14, 24)]
    } else {
        &[(0, 24)]
    };
    for (from, to) in parts {
        root.draw(&PathElement::new(
            vec![(left + from, line), (left + to, line)],
            colour(index).stroke_width(3),
        ))?;
    }
    text(root, (left + 30, line - 6), name)
}

fn text(root: &Area<'_>, at: (i32, i32), words: &str) -> Drawn {
    root.draw(&Text::new(words.to_owned(), at, ("sans-serif", 12)))?;
    Ok(())
}

fn published_name(root: &Area<'_>, index: usize) -> Drawn {
    let (left, top) = LEGEND;
    let line = top + 18 * index as i32;
    root.draw(&Cross::new((left + 12, line), 5, BLACK.stroke_width(2)))?;
    text(root, (left + 30, line - 6), "published")
}

fn is_broken(index: usize) -> bool {
    index >= COLOURS.len()
}

/// A number on an axis of logarithms.
fn short(value: f64) -> String {
    if value == 0.0 {
        "0".into()
    } else if value >= 10_000.0 {
        format!("{:.0}K", value / 1000.0)
    } else if value >= 10.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

/// Title and margins; names of curves stand at the right.
fn frame<'a, 'b>(root: &'a Area<'b>, title: &'a str) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(root);
    builder
        .caption(title, ("sans-serif", 17))
        .margin(10)
        .margin_right(210)
        .x_label_area_size(40)
        .y_label_area_size(56);
    builder
}

impl Lines<'_> {
    /// As SVG.
    ///
    /// # Errors
    /// None of the user's.
    pub fn render(&self) -> Result<String, Error> {
        svg(|root| self.draw(root))
    }

    fn draw(&self, root: &Area<'_>) -> Drawn {
        let all = || {
            let curves = self.curves.iter().flat_map(|curve| &curve.points);
            curves.chain(self.published).copied()
        };
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            })
        };
        let (left, right) = range(&mut all().map(|point| point.0));
        let (low, top) = range(&mut all().map(|point| point.1));
        let place_x = |value: f64| if self.log_x { value.log2() } else { value };
        let place_y = |value: f64| match self.log_y {
            true => value.max(f64::MIN_POSITIVE).log10(),
            false => value,
        };
        let right = right.max(left + 1.0);
        let (bottom, top) = match self.log_y {
            true => (place_y(low).floor(), place_y(top).ceil()),
            false => (0.0, if top > 0.0 { top * 1.05 } else { 1.0 }),
        };
        let mut builder = frame(root, self.title);
        // Scales of logarithms without a second type of chart.
        let mut chart = builder.build_cartesian_2d(
            place_x(left)..place_x(right),
            bottom..top.max(bottom + 1e-9),
        )?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_labels(match self.log_x {
                true => (place_x(right) - place_x(left)) as usize + 1,
                false => 8,
            })
            .x_label_formatter(&|value| match self.log_x {
                true => format!("{:.0}", value.exp2()),
                false => format!("{value:.0}"),
            })
            .y_label_formatter(&|value| match self.log_y {
                true => short(10_f64.powf(*value)),
                false => short(*value),
            })
            .light_line_style(WHITE)
            .draw()?;
        for (index, curve) in self.curves.iter().enumerate() {
            let points = || {
                let placed = curve.points.iter();
                placed.map(|&(x, y)| (place_x(x), place_y(y)))
            };
            let line = colour(index).stroke_width(2);
            if is_broken(index) {
                chart.draw_series(DashedLineSeries::new(points(), 6, 4, line))?;
            } else {
                chart.draw_series(LineSeries::new(points(), line))?;
            }
            if self.log_x {
                let marks = points().map(|at| Circle::new(at, 3, colour(index).filled()));
                chart.draw_series(marks)?;
            }
            name(root, index, &curve.name)?;
        }
        if !self.published.is_empty() {
            let placed = self.published.iter();
            let placed = placed.map(|&(x, y)| (place_x(x), place_y(y)));
            chart.draw_series(placed.map(|at| Cross::new(at, 5, BLACK.stroke_width(2))))?;
            published_name(root, self.curves.len())?;
        }
        Ok(())
    }
}

impl Bars<'_> {
    /// As SVG.
    ///
    /// # Errors
    /// None of the user's.
    pub fn render(&self) -> Result<String, Error> {
        svg(|root| self.draw(root))
    }

    fn heights(&self) -> Vec<f64> {
        match self.stacked {
            true => (0..self.groups.len())
                .map(|group| self.series.iter().map(|(_, of)| of[group]).sum())
                .collect(),
            false => self.series.iter().flat_map(|(_, of)| of.clone()).collect(),
        }
    }

    fn draw(&self, root: &Area<'_>) -> Drawn {
        let level = self.level.map(|(_, level)| level);
        let published = self.published.iter().map(|(_, _, value)| *value);
        let all = self.heights().into_iter().chain(level).chain(published);
        let top = all.fold(0.0, f64::max);
        let top = if top > 0.0 { top * 1.08 } else { 1.0 };
        let count = self.groups.len().max(1) as f64;
        let mut builder = frame(root, self.title);
        let mut chart = builder.build_cartesian_2d(0.0..count, 0.0..top)?;
        let group_at = |value: f64| {
            let index = value - 0.5;
            (index.fract() == 0.0 && index >= 0.0)
                .then(|| self.groups.get(index as usize))
                .flatten()
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(2 * self.groups.len() + 1)
            .x_label_formatter(&|value| group_at(*value).cloned().unwrap_or_default())
            .y_desc(self.y)
            .y_label_formatter(&|value| short(*value))
            .light_line_style(WHITE)
            .draw()?;
        let mut below = vec![0.0; self.groups.len()];
        let across = match self.stacked {
            true => 1.0,
            false => self.series.len().max(1) as f64,
        };
        let bounds = |series: usize, group: usize| {
            let width = 0.7 / across;
            let nth = if self.stacked { 0.0 } else { series as f64 };
            let left = group as f64 + 0.15 + nth * width;
            (left, left + width)
        };
        for (index, (series, heights)) in self.series.iter().enumerate() {
            for (group, height) in heights.iter().enumerate() {
                let (left, right) = bounds(index, group);
                let bottom = if self.stacked { below[group] } else { 0.0 };
                let corners = [(left, bottom), (right, bottom + height)];
                chart.draw_series([Rectangle::new(corners, colour(index + 1).filled())])?;
                below[group] += height;
            }
            name(root, index + 1, series)?;
        }
        if let Some((words, level)) = self.level {
            let line = [(0.0, level), (count, level)];
            chart.draw_series(DashedLineSeries::new(line, 6, 4, BLACK.stroke_width(2)))?;
            text(root, (LEGEND.0, LEGEND.1 - 6), &format!("- - {words}"))?;
        }
        if !self.published.is_empty() {
            for &(series, group, value) in self.published {
                let (left, right) = bounds(series, group);
                let at = (f64::midpoint(left, right), value);
                chart.draw_series([Cross::new(at, 5, BLACK.stroke_width(2))])?;
            }
            published_name(root, self.series.len() + 1)?;
        }
        Ok(())
    }
}

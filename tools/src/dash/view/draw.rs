//! Pieces that views are drawn from. All of them clip: nothing is drawn outside its area.

use crate::dash::theme::Theme;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::Span;
use ratatui::widgets::{Block, BorderType, Widget};

/// An area of the screen, written to in its own coordinates.
pub(crate) struct Pane<'a> {
    /// Where it is.
    pub(crate) area: Rect,
    /// Colours.
    pub(crate) theme: Theme,
    buffer: &'a mut Buffer,
}

impl<'a> Pane<'a> {
    /// `area` of `buffer`.
    pub(crate) fn new(buffer: &'a mut Buffer, area: Rect, theme: Theme) -> Pane<'a> {
        let area = area.intersection(buffer.area);
        Pane {
            area,
            theme,
            buffer,
        }
    }

    /// Columns.
    pub(crate) fn width(&self) -> usize {
        usize::from(self.area.width)
    }

    /// Rows.
    pub(crate) fn height(&self) -> usize {
        usize::from(self.area.height)
    }

    /// Writes `text`; returns the column after it.
    pub(crate) fn put(&mut self, x: usize, y: usize, text: &str, style: Style) -> usize {
        if y >= self.height() || x >= self.width() {
            return x;
        }
        let left = self.width() - x;
        let (end, _) = self.buffer.set_stringn(
            self.area.x + x as u16,
            self.area.y + y as u16,
            text,
            left,
            style,
        );
        usize::from(end - self.area.x)
    }

    /// Writes `text` so that it ends before column `end`.
    pub(crate) fn put_right(&mut self, end: usize, y: usize, text: &str, style: Style) {
        let width = Span::raw(text).width();
        self.put(end.saturating_sub(width), y, text, style);
    }

    /// Writes one glyph.
    pub(crate) fn glyph(&mut self, x: usize, y: usize, glyph: char, style: Style) {
        let mut bytes = [0; 4];
        self.put(x, y, glyph.encode_utf8(&mut bytes), style);
    }

    /// Adds `style` to a line.
    pub(crate) fn restyle(&mut self, x: usize, y: usize, width: usize, style: Style) {
        if y < self.height() && x < self.width() {
            let width = width.min(self.width() - x) as u16;
            let line = Rect::new(self.area.x + x as u16, self.area.y + y as u16, width, 1);
            self.buffer.set_style(line, style);
        }
    }

    /// A part of it.
    pub(crate) fn part(&mut self, x: usize, y: usize, width: usize, height: usize) -> Pane<'_> {
        let x = x.min(self.width());
        let y = y.min(self.height());
        let area = Rect::new(
            self.area.x + x as u16,
            self.area.y + y as u16,
            width.min(self.width() - x) as u16,
            height.min(self.height() - y) as u16,
        );
        Pane {
            area,
            theme: self.theme,
            buffer: self.buffer,
        }
    }

    /// A frame with `title`; returns what is inside.
    pub(crate) fn framed(&mut self, title: &str) -> Pane<'_> {
        let block = Block::bordered()
            .border_type(BorderType::Rounded)
            .border_style(self.theme.dim())
            .title(Span::styled(format!(" {title} "), self.theme.strong()));
        let inner = block.inner(self.area);
        block.render(self.area, self.buffer);
        Pane {
            area: inner,
            theme: self.theme,
            buffer: self.buffer,
        }
    }

    /// A bar of `share` of `width`, in eighths of a column.
    pub(crate) fn bar(&mut self, x: usize, y: usize, width: usize, share: f64, style: Style) {
        const PARTS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
        let share = if share.is_finite() {
            share.clamp(0.0, 1.0)
        } else {
            0.0
        };
        let eighths = (share * width as f64 * 8.0).round() as usize;
        for column in 0..eighths / 8 {
            self.glyph(x + column, y, '█', style);
        }
        if !eighths.is_multiple_of(8) {
            self.glyph(x + eighths / 8, y, PARTS[eighths % 8], style);
        }
    }

    /// Lines of words, wrapped to the width; returns how many lines.
    pub(crate) fn words(&mut self, y: usize, text: &str, style: Style) -> usize {
        let mut line = String::new();
        let mut row = y;
        for word in text.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > self.width() {
                self.put(0, row, &line, style);
                line.clear();
                row += 1;
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.put(0, row, &line, style);
        row + 1 - y
    }
}

/// One value a column, largest of those that share it, as eighths of a line.
pub(crate) fn spark(share: f64) -> char {
    const PARTS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    if !share.is_finite() || share <= 0.0 {
        return ' ';
    }
    // What is not nothing shows.
    PARTS[((share.min(1.0) * 8.0).round() as usize).max(1)]
}

/// The items of `0..count` that column `column` of `columns` stands for; never empty.
pub(crate) fn share_of(count: usize, columns: usize, column: usize) -> std::ops::Range<usize> {
    if count <= columns {
        let item = (column * count / columns.max(1)).min(count.saturating_sub(1));
        return item..(item + 1).min(count);
    }
    let start = column * count / columns;
    start..((column + 1) * count / columns).max(start + 1).min(count)
}

/// The column that item `item` of `count` is in.
pub(crate) fn column_of(count: usize, columns: usize, item: usize) -> usize {
    if count == 0 {
        return 0;
    }
    if count <= columns {
        return (item * columns)
            .div_ceil(count)
            .min(columns.saturating_sub(1));
    }
    (0..columns)
        .find(|&column| share_of(count, columns, column).contains(&item))
        .unwrap_or(0)
}

/// A line of a plot.
pub(crate) struct Series {
    /// What it is called.
    pub(crate) name: String,
    /// Its hue.
    pub(crate) hue: usize,
    /// Whether it stands out.
    pub(crate) strong: bool,
    /// Values in order; what is no number is left out.
    pub(crate) values: Vec<f64>,
}

/// Lines over steps, with an axis of values; each line is named at its end.
pub(crate) fn plot(
    pane: &mut Pane<'_>,
    series: &[Series],
    format: &dyn Fn(f64) -> String,
    cursor: Option<usize>,
) {
    let finite = || {
        series
            .iter()
            .flat_map(|series| series.values.iter().copied())
            .filter(|value| value.is_finite())
    };
    let (mut low, mut high) = (
        finite().fold(f64::INFINITY, f64::min),
        finite().fold(f64::NEG_INFINITY, f64::max),
    );
    if !low.is_finite() || pane.height() < 3 || pane.width() < 20 {
        return;
    }
    // Strategies lie far apart: then equal distances are equal ratios.
    let logarithmic = low > 0.0 && high / low > 8.0;
    if logarithmic {
        (low, high) = (low / 1.1, high * 1.1);
    } else {
        let room = ((high - low) * 0.1).max(high.abs() * 0.02).max(1e-12);
        (low, high) = ((low - room).max(0.0_f64.min(low)), high + room);
    }
    let scale = |value: f64| {
        if logarithmic {
            (value.max(low) / low).ln() / (high / low).ln()
        } else {
            (value - low) / (high - low)
        }
    };
    let back = |share: f64| {
        if logarithmic {
            low * (high / low).powf(share)
        } else {
            low + (high - low) * share
        }
    };
    let rows = pane.height() - 1;
    let labels: Vec<String> = (0..rows)
        .map(|row| format(back(1.0 - (row as f64 + 0.5) / rows as f64)))
        .collect();
    let every = if rows > 12 { 3 } else { 2 };
    let left = labels
        .iter()
        .map(|label| label.chars().count())
        .max()
        .unwrap_or(0)
        + 1;
    let names = series
        .iter()
        .map(|series| series.name.chars().count())
        .max()
        .unwrap_or(0);
    let right = (names + 2).min(pane.width() / 4);
    let width = pane.width().saturating_sub(left + right + 1);
    let dim = pane.theme.dim();
    for (row, label) in labels.iter().enumerate() {
        let labelled = row.is_multiple_of(every);
        if labelled {
            pane.put_right(left - 1, row, label, dim);
        }
        pane.glyph(left - 1, row, if labelled { '┤' } else { '│' }, dim);
    }
    pane.glyph(left - 1, rows, '└', dim);
    for column in 0..width {
        pane.glyph(left + column, rows, '─', dim);
    }
    let count = series
        .iter()
        .map(|series| series.values.len())
        .max()
        .unwrap_or(0);
    if let Some(cursor) = cursor.filter(|_| count > 1) {
        let column = column_of(count, width, cursor.min(count - 1));
        for row in 0..rows {
            pane.glyph(left + column, row, '┊', dim);
        }
        pane.glyph(left + column, rows, '▲', pane.theme.strong());
    }
    let mut taken: Vec<usize> = Vec::new();
    // What stands out is drawn last, on top, but named first.
    let mut order: Vec<&Series> = series.iter().collect();
    order.sort_by_key(|series| series.strong);
    for series in &order {
        curve(&mut pane.part(left, 0, width, rows), series, &scale);
    }
    for series in order.iter().rev() {
        let Some(last) = series.values.iter().rev().find(|value| value.is_finite()) else {
            continue;
        };
        let wanted = ((1.0 - scale(*last)) * rows as f64) as usize;
        let free = (0..rows)
            .filter(|row| !taken.contains(row))
            .min_by_key(|row| row.abs_diff(wanted.min(rows - 1)));
        if let Some(row) = free {
            taken.push(row);
            let style = pane.theme.hue(series.hue);
            let style = if series.strong {
                style.patch(pane.theme.strong())
            } else {
                style
            };
            let name: String = series.name.chars().take(right.saturating_sub(1)).collect();
            pane.put(left + width + 1, row, &name, style);
        }
    }
    if logarithmic {
        pane.put(left + 1, rows, " log scale ", dim);
    }
}

/// One line in dots of braille, two a column and four a row.
fn curve(pane: &mut Pane<'_>, series: &Series, scale: &dyn Fn(f64) -> f64) {
    let (width, height) = (pane.width() * 2, pane.height() * 4);
    let count = series.values.len();
    if count == 0 || width == 0 || height == 0 {
        return;
    }
    let mut dots = vec![0u8; pane.width() * pane.height()];
    let place = |value: f64| {
        let share = scale(value).clamp(0.0, 1.0);
        (((1.0 - share) * height as f64) as usize).min(height - 1)
    };
    // Which bit a dot is, by row and column.
    const BITS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
    let mut before: Option<usize> = None;
    for x in 0..width {
        let values = &series.values[share_of(count, width, x)];
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let (low, high) = (
            finite().fold(f64::INFINITY, f64::min),
            finite().fold(f64::NEG_INFINITY, f64::max),
        );
        if !low.is_finite() {
            before = None;
            continue;
        }
        let (mut top, mut bottom) = (place(high), place(low));
        // Joined to the dot before.
        if let Some(before) = before {
            top = top.min(before.saturating_add(1)).min(bottom);
            bottom = bottom.max(before.saturating_sub(1)).max(top);
        }
        before = Some(place(
            values
                .last()
                .copied()
                .filter(|v| v.is_finite())
                .unwrap_or(low),
        ));
        for y in top..=bottom.min(height - 1) {
            dots[y / 4 * (width / 2) + x / 2] |= BITS[y % 4][x % 2];
        }
    }
    let style = pane.theme.hue(series.hue);
    let style = if series.strong {
        style.patch(pane.theme.strong())
    } else {
        style
    };
    let columns = width / 2;
    for (index, bits) in dots.into_iter().enumerate().filter(|(_, bits)| *bits > 0) {
        let glyph = char::from_u32(0x2800 + u32::from(bits)).unwrap_or('*');
        pane.glyph(index % columns, index / columns, glyph, style);
    }
}

/// What the glyphs of a heat map mean.
pub(crate) fn heat_key(pane: &mut Pane<'_>, x: usize, y: usize, low: &str, high: &str) {
    let dim = pane.theme.dim();
    let mut x = pane.put(x, y, low, dim) + 1;
    for step in 0..6 {
        let (glyph, style) = pane.theme.heat(f64::from(step) / 5.0);
        pane.glyph(x, y, glyph, style);
        x += 1;
    }
    pane.put(x + 1, y, high, dim);
}

/// Stages as parts of one bar of `width`; each has its letter and, where there is room, its name.
pub(crate) fn stage_bar(
    pane: &mut Pane<'_>,
    x: usize,
    y: usize,
    width: usize,
    stages: &[u64],
    whole: u64,
) {
    let mut sum = 0u64;
    for (stage, time) in stages.iter().enumerate() {
        let at = |time: u64| (time as f64 / whole.max(1) as f64 * width as f64).round() as usize;
        let (start, end) = (at(sum).min(width), at(sum + time).min(width));
        sum += time;
        if start == end {
            continue;
        }
        let style = pane.theme.block(stage);
        let name = stage_name(stage);
        let text: String = match end - start {
            room if room >= name.len() + 2 => format!(" {name}"),
            room if room >= 2 => format!(" {}", stage_letter(stage)),
            _ => stage_letter(stage).to_string(),
        };
        let room = end - start;
        pane.put(x + start, y, &format!("{text:<room$}"), style);
    }
}

/// The name of stage `index`.
pub(crate) fn stage_name(index: usize) -> &'static str {
    moeplan_sim::ir::Stage::ALL
        .get(index)
        .map_or("?", |stage| stage.name())
}

/// The letter of stage `index`: Gate, eNcode, Dispatch, Expert, Combine, decOde, Weights.
pub(crate) fn stage_letter(index: usize) -> char {
    ['G', 'N', 'D', 'E', 'C', 'O', 'W']
        .get(index)
        .copied()
        .unwrap_or('?')
}

//! Small plots in text.

/// Heights of a sparkline, lowest first.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Values as bars from `low` to `high`, at most `width` of them: neighbours share one, which shows
/// the largest. What is zero is a space in a strip that starts at zero.
pub fn sparkline(values: &[f64], width: usize, low: f64, high: f64) -> String {
    let width = width.min(values.len());
    (0..width)
        .map(|bar| {
            let (from, to) = (bar * values.len() / width, (bar + 1) * values.len() / width);
            let most = values[from..to.max(from + 1)]
                .iter()
                .copied()
                .fold(f64::NEG_INFINITY, f64::max);
            if low == 0.0 && most <= 0.0 {
                return ' ';
            }
            let height = (most - low) / (high - low).max(f64::MIN_POSITIVE);
            // A float to integer cast saturates; NaN becomes 0.
            let bar = (height * BARS.len() as f64) as usize;
            BARS[bar.min(BARS.len() - 1)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heights_and_neighbours() {
        assert_eq!(sparkline(&[0.0, 1.0, 2.0, 7.9], 8, 0.0, 8.0), " ▂▃█");
        assert_eq!(sparkline(&[1.0, 8.0, 4.0, 2.0], 2, 0.0, 8.0), "█▅");
        assert_eq!(sparkline(&[3.0, 3.0], 8, 3.0, 3.0), "▁▁");
        assert_eq!(sparkline(&[], 8, 0.0, 1.0), "");
    }
}

//! Numbers for people: three digits and a unit.

/// `value` with three significant digits, never in exponents.
pub fn three(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        s if s >= 99.95 => 0,
        s if s >= 9.995 => 1,
        s if s >= 0.9995 => 2,
        s if s >= 0.09995 => 3,
        s if s > 0.0 => 4,
        _ => 0,
    };
    format!("{value:.digits$}")
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let (scale, unit) = units
        .iter()
        .find(|(scale, _)| value / scale >= 0.9995)
        .or(units.last())
        .copied()
        .unwrap_or((1.0, ""));
    format!("{} {unit}", three(value / scale))
}

/// A time.
pub fn time(nanoseconds: u64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns")];
    match nanoseconds {
        0 => "0".into(),
        _ => scaled(nanoseconds as f64, &units),
    }
}

/// A size.
pub fn bytes(bytes: u64) -> String {
    let (k, m, g) = (1024.0, 1_048_576.0, 1_073_741_824.0);
    scaled(
        bytes as f64,
        &[
            (1024.0 * g, "TiB"),
            (g, "GiB"),
            (m, "MiB"),
            (k, "KiB"),
            (1.0, "B"),
        ],
    )
}

/// A share, 0 to 1.
pub fn percent(share: f64) -> String {
    if share == 0.0 {
        "0 %".into()
    } else if share < 0.0001 {
        "< 0.01 %".into()
    } else if share < 0.1 {
        format!("{:.2} %", share * 100.0)
    } else {
        format!("{:.1} %", share * 100.0)
    }
}

/// A ratio of times.
pub fn times(ratio: f64) -> String {
    if ratio < 99.5 {
        format!("{ratio:.2}x")
    } else {
        format!("{ratio:.0}x")
    }
}

/// A whole number with its thousands apart.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        let shown: Vec<String> = [0, 7, 999, 1_000, 12_345, 999_960, 2_670_000_000, u64::MAX]
            .into_iter()
            .map(time)
            .collect();
        assert_eq!(
            shown,
            [
                "0",
                "7.00 ns",
                "999 ns",
                "1.00 us",
                "12.3 us",
                "1.00 ms",
                "2.67 s",
                "18446744074 s"
            ]
        );
        assert_eq!(bytes(80 << 30), "80.0 GiB");
        assert_eq!(
            [
                percent(0.0),
                percent(0.00001),
                percent(0.0183),
                percent(0.5)
            ],
            ["0 %", "< 0.01 %", "1.83 %", "50.0 %"]
        );
        assert_eq!(count(1_234_567), "1,234,567");
    }
}

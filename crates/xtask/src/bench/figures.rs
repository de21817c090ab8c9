//! Medians, spread and growth.

/// The median; `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The least and the greatest.
pub(crate) fn spread(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().min_by(f64::total_cmp)?;
    let greatest = values.iter().copied().max_by(f64::total_cmp)?;
    Some((least, greatest))
}

/// The exponent `k` of the `cost = a * size^k` that fits best: 0 is flat, 1 linear, 2 quadratic.
pub(crate) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> =
        points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0).map(|(x, y)| (x.ln(), y.ln())).collect();
    if logs.len() < 2 {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a handful of points")]
    let count = logs.len() as f64;
    let mean_x = logs.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = logs.iter().map(|(_, y)| y).sum::<f64>() / count;
    let above: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let below: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    (below > 0.0).then_some(above / below)
}

/// Seconds as people read them.
pub(crate) fn seconds(value: f64) -> String {
    match value {
        v if v < 0.0001 => format!("{:.1} µs", v * 1e6),
        v if v < 0.01 => format!("{:.2} ms", v * 1e3),
        v if v < 0.1 => format!("{:.1} ms", v * 1e3),
        v if v < 1.0 => format!("{:.0} ms", v * 1e3),
        v if v < 10.0 => format!("{v:.2} s"),
        v => format!("{v:.1} s"),
    }
}

/// Bytes as people read them, in powers of ten.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(crate) fn bytes(value: u64) -> String {
    let v = value as f64;
    match value {
        0..1_000 => format!("{value} B"),
        1_000..1_000_000 => format!("{:.1} kB", v / 1e3),
        1_000_000..10_000_000 => format!("{:.1} MB", v / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} MB", v / 1e6),
        _ => format!("{:.2} GB", v / 1e9),
    }
}

/// How many times as much.
pub(crate) fn ratio(value: f64) -> String {
    if value >= 10.0 { format!("{value:.0}x") } else { format!("{value:.1}x") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spread() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((1.0, 3.0)));
    }

    #[test]
    fn slopes_tell_flat_linear_and_quadratic_apart() {
        let fit = |power: i32| {
            let points: Vec<(f64, f64)> = [1.0, 10.0, 100.0].map(|x: f64| (x, 3.0 * x.powi(power))).to_vec();
            slope(&points).unwrap()
        };
        for power in [0, 1, 2] {
            assert!((fit(power) - f64::from(power)).abs() < 1e-9);
        }
        assert_eq!(slope(&[(1.0, 1.0)]), None);
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 1.0)]), None);
    }

    #[test]
    fn shown_as_people_read_them() {
        assert_eq!(seconds(0.000_012), "12.0 µs");
        assert_eq!(seconds(0.004_56), "4.56 ms");
        assert_eq!(seconds(0.25), "250 ms");
        assert_eq!(seconds(8.1), "8.10 s");
        assert_eq!(bytes(173_000_000), "173 MB");
        assert_eq!(ratio(3.25), "3.2x");
    }
}

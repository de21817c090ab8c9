//! Cost against size as SVG.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::figures::{median, seconds, slope, spread};
use super::outcome::Run;
use super::workload::grouped;

/// A curve for each engine.
#[derive(Debug)]
pub(crate) struct Curve {
    pub(crate) name: String,
    /// By engine: size and median seconds, the smallest size first.
    pub(crate) points: BTreeMap<String, Vec<(f64, f64)>>,
    /// By engine: size, the least and the greatest seconds.
    spread: BTreeMap<String, Vec<(f64, f64, f64)>>,
}

impl Curve {
    /// Its file's name, without the ending.
    pub(crate) fn file(&self) -> String {
        self.name.replace(' ', "-")
    }

    /// What its size counts: "files" of "cold COPY by files of the context".
    fn unit(&self) -> &str {
        let after = self.name.split_once(" by ").map_or(self.name.as_str(), |(_, unit)| unit);
        if after == self.name { after.rsplit(' ').next().unwrap_or(after) } else { after }
    }

    /// All sizes, the smallest first.
    pub(crate) fn sizes(&self) -> Vec<f64> {
        let mut sizes: Vec<f64> = self.points.values().flatten().map(|(size, _)| *size).collect();
        sizes.sort_by(f64::total_cmp);
        sizes.dedup();
        sizes
    }
}

/// The curves of a run that have at least two points.
pub(crate) fn curves(run: &Run) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for row in &run.rows {
        let Some((name, size)) = &row.growth else { continue };
        let position = curves.iter().position(|curve| curve.name == *name).unwrap_or_else(|| {
            curves.push(Curve { name: name.clone(), points: BTreeMap::new(), spread: BTreeMap::new() });
            curves.len() - 1
        });
        for engine in row.results.keys() {
            let Some(measured) = row.measured(engine) else { continue };
            let curve = &mut curves[position];
            if let (Some(middle), Some((least, most))) =
                (median(&measured.seconds), spread(&measured.seconds))
            {
                curve.points.entry(engine.clone()).or_default().push((*size, middle));
                curve.spread.entry(engine.clone()).or_default().push((*size, least, most));
            }
        }
    }
    for points in curves.iter_mut().flat_map(|curve| curve.points.values_mut()) {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    curves.retain(|curve| curve.points.values().any(|points| points.len() > 1));
    curves
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 80.0;
/// Where the names stand.
const RIGHT: f64 = 184.0;
const TOP: f64 = 52.0;
const BOTTOM: f64 = 56.0;
/// Told apart by people who do not tell all colours apart.
const COLOURS: [&str; 6] = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];

/// Both axes are logarithmic, from one power of ten to another.
struct Axis {
    from: i32,
    to: i32,
    start: f64,
    end: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64> + Clone, start: f64, end: f64) -> Self {
        let least = values.clone().min_by(f64::total_cmp).unwrap_or(1.0);
        let greatest = values.max_by(f64::total_cmp).unwrap_or(10.0);
        #[expect(clippy::cast_possible_truncation, reason = "logarithms are small")]
        let (from, to) = (least.log10().floor() as i32, greatest.log10().ceil() as i32);
        Self { from, to: to.max(from + 1), start, end }
    }

    fn place(&self, value: f64) -> f64 {
        let part = (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        self.start + part * (self.end - self.start)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        (self.from..=self.to).map(|power| 10_f64.powi(power))
    }
}

/// A plot as a file that a browser shows.
pub(crate) fn svg(curve: &Curve) -> String {
    let points = || curve.points.values().flatten();
    let across = Axis::new(points().map(|(x, _)| *x), LEFT, WIDTH - RIGHT);
    let ends = || curve.spread.values().flatten().flat_map(|(_, least, most)| [*least, *most]);
    let up = Axis::new(points().map(|(_, y)| *y).chain(ends()), HEIGHT - BOTTOM, TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<title>{0}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"16\" font-weight=\"bold\">{0}</text>\n",
        escaped(&curve.name)
    );
    frame(&mut svg, &across, &up, curve.unit());
    for (number, (engine, points)) in curve.points.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        for (size, least, most) in curve.spread.get(engine).into_iter().flatten() {
            let (x, from, to) = (across.place(*size), up.place(*least), up.place(*most));
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{from:.1}\" x2=\"{x:.1}\" y2=\"{to:.1}\" stroke=\"{colour}\" stroke-opacity=\"0.4\" stroke-width=\"5\"/>"
            );
        }
        line(&mut svg, engine, points, colour, &across, &up);
        let fitted = slope(points).map_or_else(String::new, |slope| format!(", slope {slope:.2}"));
        #[expect(clippy::cast_precision_loss, reason = "a handful of engines")]
        let y = TOP + 16.0 + 19.0 * number as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"{y}\">{}{fitted}</text>",
            WIDTH - RIGHT + 16.0,
            y - 11.0,
            WIDTH - RIGHT + 34.0,
            escaped(engine)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn frame(svg: &mut String, across: &Axis, up: &Axis, unit: &str) {
    let (top, bottom, left, right) = (TOP, HEIGHT - BOTTOM, LEFT, WIDTH - RIGHT);
    for tick in across.ticks() {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a power of ten, at least one"
        )]
        let shown = grouped(tick.max(1.0) as usize);
        let x = across.place(tick);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{shown}</text>",
            bottom + 20.0
        );
    }
    for tick in up.ticks() {
        let y = up.place(tick);
        let shown = if tick >= 1.0 { format!("{tick} s") } else { short(tick) };
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{shown}</text>",
            left - 8.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}; both axes are logarithmic</text>",
        f64::midpoint(left, right),
        HEIGHT - 12.0,
        escaped(unit)
    );
}

fn short(tick: f64) -> String {
    if tick >= 0.001 { format!("{:.0} ms", tick * 1e3) } else { format!("{:.0} µs", tick * 1e6) }
}

fn line(svg: &mut String, engine: &str, points: &[(f64, f64)], colour: &str, across: &Axis, up: &Axis) {
    let path: Vec<String> =
        points.iter().map(|(x, y)| format!("{:.1},{:.1}", across.place(*x), up.place(*y))).collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
        path.join(" ")
    );
    for (x, y) in points {
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"><title>{}: {x}, {}</title></circle>",
            across.place(*x),
            up.place(*y),
            escaped(engine),
            seconds(*y)
        );
    }
    // The figures of the smallest and the largest.
    let ends = points.first().into_iter().chain(points.last().filter(|_| points.len() > 1));
    for ((x, y), (anchor, aside)) in ends.zip([("start", 6.0), ("end", -6.0)]) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" font-size=\"12\" fill=\"{colour}\">{}</text>",
            across.place(*x) + aside,
            up.place(*y) - 9.0,
            seconds(*y)
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_places_what_it_is_given() {
        let points = BTreeMap::from([
            ("kiln".to_owned(), vec![(1.0, 0.01), (100.0, 0.1)]),
            ("a<b".to_owned(), vec![(1.0, 1.0), (100.0, 1.0)]),
        ]);
        let spread = BTreeMap::from([("kiln".to_owned(), vec![(1.0, 0.005, 0.02)])]);
        let curve = Curve { name: "cost by files".to_owned(), points, spread };
        assert_eq!(curve.unit(), "files");
        let svg = svg(&curve);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("kiln, slope 0.50") && svg.contains("a&lt;b, slope 0.00"), "{svg}");
        let axis = Axis::new([1.0, 100.0].into_iter(), 0.0, 200.0);
        assert!((axis.place(10.0) - 100.0).abs() < 1e-9);
    }
}

//! A chart as SVG: axes, lines and points by plotters, and over each point an area that shows and copies its text.

use anyhow::{Result, anyhow};
use maud::{Markup, PreEscaped, html};
use plotters::prelude::*;

/// A chart of one or more series.
pub struct Chart<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub series: Vec<Series>,
    /// Whether the line on which both values are equal is drawn.
    pub diagonal: bool,
    /// Values of x at which a numbered vertical line is drawn.
    pub lines: Vec<f64>,
}

/// Values that belong together.
pub struct Series {
    pub name: String,
    pub points: Vec<Point>,
    /// Whether a line joins the points, in place of a mark at each.
    pub joined: bool,
}

/// A value of a series.
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// Half the length of the vertical bar through the point.
    pub interval: f64,
    /// Text that is shown over the point; empty for none.
    pub text: String,
    /// Text that a click copies; empty for none.
    pub copy: String,
}

/// Colours that people with any colour vision tell apart (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Most points of a joined series that has a mark at each.
const MARKED: usize = 40;

/// Largest value on an axis. The span of an axis of infinite length has no marks.
const LARGEST: f64 = 1e100;

/// Width and height in the units of the drawing; the page scales it.
const SIZE: (u32, u32) = (640, 360);

impl Chart<'_> {
    /// The chart with its legend; `None` without a point. Points that are no numbers, or too large for an axis, are
    /// left out.
    pub fn draw(mut self) -> Result<Option<Markup>> {
        let fits = |value: f64| value.abs() <= LARGEST;
        let fits = |point: &Point| fits(point.x) && fits(point.y) && fits(point.interval);
        self.series.iter_mut().for_each(|series| series.points.retain(fits));
        let points = || self.series.iter().flat_map(|series| &series.points);
        let Some(([mut x0, mut x1], [mut y0, mut y1])) = ranges(points()) else { return Ok(None) };
        if self.diagonal {
            (x0, y0, x1, y1) = (x0.min(y0), x0.min(y0), x1.max(y1), x1.max(y1));
        }
        let mut svg = String::new();
        let areas = {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let areas = self.draw_on(&root, [x0, x1], [y0, y1]).map_err(|error| anyhow!("{}: {error}", self.title))?;
            root.present().map_err(|error| anyhow!("{}: {error}", self.title))?;
            areas
        };
        let inside = svg.trim_end().trim_end_matches("</svg>");
        Ok(Some(html! {
            figure {
                figcaption { (self.title) }
                (PreEscaped(inside))
                @for (point, (x, y)) in points().zip(areas) {
                    @if !point.text.is_empty() {
                        circle class="point" cx=(x) cy=(y) r="7" data-copy=[(!point.copy.is_empty()).then_some(&point.copy)] {
                            title { (point.text) }
                        }
                    }
                }
                (PreEscaped("</svg>"))
                @if self.series.len() > 1 {
                    p class="legend" {
                        @for (index, series) in self.series.iter().enumerate() {
                            span { span class=(format!("key k{}", index % COLOURS.len())) { (mark(index, series.joined)) } " " (series.name) }
                        }
                    }
                }
            }
        }))
    }

    /// Draws axes and series; returns the place of every point.
    fn draw_on<B: DrawingBackend>(
        &self,
        root: &DrawingArea<B, plotters::coord::Shift>,
        x: [f64; 2],
        y: [f64; 2],
    ) -> Result<Vec<(i32, i32)>, DrawingAreaErrorKind<B::ErrorType>> {
        let mut chart = ChartBuilder::on(root)
            .margin(8)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(x[0]..x[1], y[0]..y[1])?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&|value| on_axis(*value, x))
            .y_label_formatter(&|value| on_axis(*value, y))
            .light_line_style(TRANSPARENT)
            .draw()?;
        if self.diagonal {
            let ends = [(x[0], y[0]), (x[1], y[1])];
            chart.draw_series(LineSeries::new(ends, BLACK.mix(0.3)))?;
        }
        for (number, &line) in (1..).zip(&self.lines) {
            let ends = [(line, y[0]), (line, y[1])];
            chart.draw_series(LineSeries::new(ends, BLACK.mix(0.2)))?;
            chart.draw_series([Text::new(format!("{number}"), ends[1], ("sans-serif", 12).into_font())])?;
        }
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let places = series.points.iter().map(|point| (point.x, point.y));
            let bars = series.points.iter().filter(|point| point.interval > 0.0);
            chart.draw_series(bars.map(|point| {
                let ends = [-1.0, 1.0].map(|side| (point.x, point.y + side * point.interval));
                PathElement::new(ends.to_vec(), colour.mix(0.4))
            }))?;
            if series.joined && series.points.len() <= MARKED {
                chart.draw_series(places.clone().map(|at| Circle::new(at, 3, colour.filled())))?;
            }
            match (series.joined, index % 3) {
                (true, _) => drop(chart.draw_series(LineSeries::new(places, colour.stroke_width(2)))?),
                (false, 0) => drop(chart.draw_series(places.map(|at| Circle::new(at, 4, colour.filled())))?),
                (false, 1) => drop(chart.draw_series(places.map(|at| TriangleMarker::new(at, 6, colour.filled())))?),
                _ => drop(chart.draw_series(places.map(|at| Cross::new(at, 5, colour.stroke_width(2))))?),
            }
        }
        let points = self.series.iter().flat_map(|series| &series.points);
        Ok(points.map(|point| chart.backend_coord(&(point.x, point.y))).collect())
    }
}

/// The mark of a series in the legend.
fn mark(index: usize, joined: bool) -> &'static str {
    match (joined, index % 3) {
        (true, _) => "—",
        (false, 0) => "●",
        (false, 1) => "▲",
        _ => "✕",
    }
}

/// Ranges of both values with a margin; `None` without a point.
fn ranges<'a>(points: impl Iterator<Item = &'a Point>) -> Option<([f64; 2], [f64; 2])> {
    let mut of = None;
    for point in points {
        let (x, y) = of.get_or_insert(([point.x; 2], [point.y; 2]));
        *x = [x[0].min(point.x), x[1].max(point.x)];
        *y = [y[0].min(point.y - point.interval), y[1].max(point.y + point.interval)];
    }
    let wider = |[low, high]: [f64; 2]| {
        let margin = if high > low { 0.04 * (high - low) } else { low.abs().max(1.0) * 0.05 };
        [low - margin, high + margin]
    };
    of.map(|(x, y)| (wider(x), wider(y)))
}

/// A number on an axis of the range `ends`, with as many digits as tell its marks apart.
fn on_axis(value: f64, [low, high]: [f64; 2]) -> String {
    let digits = (0.9 - (high - low).log10()).ceil().clamp(0.0, 9.0) as usize;
    match value.abs() {
        v if v >= 1e6 => format!("{:.1}M", value / 1e6),
        v if v >= 1e4 => format!("{:.0}k", value / 1e3),
        v if v < 1e-9 * (high - low) => "0".into(),
        _ => format!("{value:.digits$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_an_axis_differ() {
        let shown = |range, values: [f64; 3]| values.map(|value| on_axis(value, range));
        assert_eq!(shown([0.0, 0.04], [0.0, 0.005, 0.01]), ["0", "0.005", "0.010"]);
        assert_eq!(shown([58.0, 84.0], [60.0, 65.0, 70.0]), ["60", "65", "70"]);
        assert_eq!(shown([0.0, 5000.0], [0.0, 2500.0, 5000.0]), ["0", "2500", "5000"]);
        assert_eq!(shown([0.0, 3e6], [5e4, 2.5e5, 1.5e6]), ["50k", "250k", "1.5M"]);
    }

    #[test]
    fn a_chart_has_its_axes_a_text_over_each_point_and_no_markup_of_names() {
        let point = |x, y| Point { x, y, interval: 0.1, text: format!("<b>{x}"), copy: "r32 \"d1\"".into() };
        let series =
            |name: &str, joined| Series { name: name.into(), points: vec![point(1.0, 2.0), point(3.0, 4.0)], joined };
        let series = vec![series("<i>a", false), series("b", true), series("c", false)];
        let chart = Chart { title: "T & U", x: "time", y: "accuracy", series, diagonal: true, lines: vec![2.0] };
        let drawn = chart.draw().unwrap().unwrap().into_string();
        assert!(drawn.contains("T &amp; U") && drawn.contains("time") && drawn.contains("accuracy"), "{drawn}");
        assert_eq!(drawn.matches("<title>&lt;b&gt;").count(), 6);
        assert!(drawn.contains("data-copy=\"r32 &quot;d1&quot;\"") && drawn.contains("&lt;i&gt;a"));
        assert_eq!((drawn.matches("<svg").count(), drawn.matches("</svg>").count()), (1, 1));
        let empty = Chart { title: "", x: "", y: "", series: Vec::new(), diagonal: false, lines: Vec::new() };
        assert!(empty.draw().unwrap().is_none());
        // One point, and values that are no numbers.
        let series =
            vec![Series { name: "d".into(), points: vec![point(1.0, 1.0), point(f64::NAN, 1.0)], joined: false }];
        assert!(
            Chart { title: "t", x: "x", y: "y", series, diagonal: false, lines: Vec::new() }.draw().unwrap().is_some()
        );
    }
}

//! The front as a figure for print: SVG, axes with units, every kind of point told apart without colour.

use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

const SIZE: (u32, u32) = (720, 480);
const BLUE: RGBColor = RGBColor(0x1f, 0x4e, 0x9c);
const ORANGE: RGBColor = RGBColor(0xc4, 0x55, 0x10);
const GREY: RGBColor = RGBColor(0xa8, 0xa8, 0xa8);
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
/// A logarithmic axis is used where the largest cost is this many times the least.
const LOG_FROM: f64 = 20.0;

type Point = (f64, f64);

/// What is drawn: use against cost.
pub struct Figure<'a> {
    pub x: &'a str,
    pub y: &'a str,
    pub front: Vec<Point>,
    /// Uniform plans, each with its name.
    pub uniform: Vec<(String, Point)>,
    pub random: Vec<Point>,
    pub chosen: Option<Point>,
}

/// The figure as SVG; equal figures give equal bytes.
pub fn svg(figure: &Figure) -> Result<String, String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|e| e.to_string())?;
        let uniform = figure.uniform.iter().map(|(_, p)| *p);
        let points: Vec<Point> = figure
            .front
            .iter()
            .copied()
            .chain(uniform)
            .chain(figure.random.iter().copied())
            .chain(figure.chosen)
            .collect();
        let range = |of: fn(&Point) -> f64| {
            let values = points.iter().map(of);
            (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max))
        };
        let ((left, right), (low, high)) = (range(|p| p.0), range(|p| p.1));
        let pad = (right - left).max(right.abs() * 1e-3).max(1e-12) * 0.05;
        let mut builder = ChartBuilder::on(&area);
        builder.margin(14).margin_right(24).x_label_area_size(52).y_label_area_size(84);
        let x = left - pad..right + pad;
        if low > 0.0 && high / low >= LOG_FROM {
            let y = (low / 1.5..high * 1.5).log_scale();
            draw(builder.build_cartesian_2d(x, y).map_err(|e| e.to_string())?, figure)?;
        } else {
            let pad = (high - low).max(high.abs() * 1e-3).max(1e-12) * 0.08;
            draw(builder.build_cartesian_2d(x, low - pad..high + pad).map_err(|e| e.to_string())?, figure)?;
        }
        area.present().map_err(|e| e.to_string())?;
    }
    Ok(text)
}

type Chart<'a, 'b, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, Y>>;

fn draw<'b: 'a, 'a, Y>(mut chart: Chart<'a, 'b, Y>, figure: &Figure) -> Result<(), String>
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let error = |e: DrawingAreaErrorKind<_>| e.to_string();
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(WHITE.mix(0.0))
        .x_labels(8)
        .y_labels(8)
        .x_desc(figure.x)
        .y_desc(figure.y)
        .axis_desc_style(("sans-serif", 17))
        .label_style(("sans-serif", 14))
        .x_label_formatter(&|v| number(*v))
        .y_label_formatter(&|v| number(*v))
        .draw()
        .map_err(error)?;
    let random = figure.random.iter().map(|&p| Circle::new(p, 2, GREY.filled()));
    let series = chart.draw_series(random).map_err(error)?;
    if !figure.random.is_empty() {
        series.label("random plans").legend(|(x, y)| Circle::new((x + 12, y), 2, GREY.filled()));
    }
    let line = BLUE.stroke_width(1);
    chart.draw_series([PathElement::new(figure.front.clone(), line)]).map_err(error)?;
    chart
        .draw_series(figure.front.iter().map(|&p| Circle::new(p, 4, BLUE.filled())))
        .map_err(error)?
        .label("optimal plans")
        .legend(|(x, y)| Circle::new((x + 12, y), 4, BLUE.filled()));
    for (index, (name, point)) in figure.uniform.iter().enumerate() {
        let mark = move |at: Point| {
            let shape = |size: i32| match index {
                0 => vec![(-size, -size), (size, -size), (size, size), (-size, size)],
                1 => vec![(-size - 1, size), (size + 1, size), (0, -size - 1)],
                _ => vec![(0, -size - 1), (size + 1, 0), (0, size + 1), (-size - 1, 0)],
            };
            EmptyElement::at(at) + Polygon::new(shape(5), ORANGE.filled())
        };
        let legend = move |(x, y): (i32, i32)| {
            let shape = match index {
                0 => vec![(-5, -5), (5, -5), (5, 5), (-5, 5)],
                1 => vec![(-6, 5), (6, 5), (0, -6)],
                _ => vec![(0, -6), (6, 0), (0, 6), (-6, 0)],
            };
            Polygon::new(shape.into_iter().map(|(dx, dy)| (x + 12 + dx, y + dy)).collect::<Vec<_>>(), ORANGE.filled())
        };
        chart.draw_series([mark(*point)]).map_err(error)?.label(name.clone()).legend(legend);
    }
    if let Some(point) = figure.chosen {
        chart
            .draw_series([Circle::new(point, 9, BLACK.stroke_width(2))])
            .map_err(error)?
            .label("chosen plan")
            .legend(|(x, y)| Circle::new((x + 12, y), 7, BLACK.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .label_font(("sans-serif", 15))
        .draw()
        .map_err(error)
}

/// A number on an axis: plain where that is short, else with an exponent.
fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_name_their_axes_and_marks() {
        let figure = Figure {
            x: "latency (ms)",
            y: "sum of costs",
            front: vec![(1.0, 100.0), (2.0, 10.0), (3.0, 1.0)],
            uniform: vec![("uniform w8a8".into(), (3.0, 1.0)), ("uniform w4a4".into(), (1.0, 100.0))],
            random: vec![(2.0, 60.0)],
            chosen: Some((2.0, 10.0)),
        };
        let text = svg(&figure).unwrap();
        for part in ["latency (ms)", "sum of costs", "optimal plans", "uniform w4a4", "random plans", "chosen plan"] {
            assert!(text.contains(part), "{part}");
        }
        assert_eq!(text.matches("<polygon").count(), 4);
        assert_eq!(text, svg(&figure).unwrap());
        let flat = Figure { random: Vec::new(), chosen: None, uniform: Vec::new(), front: vec![(1.0, 0.0)], ..figure };
        assert!(!svg(&flat).unwrap().contains("NaN"));
    }

    #[test]
    fn numbers_stay_short() {
        let texts = [0.0, 0.5, 12.25, 1500.0, 3e5, 2.5e-5].map(number);
        assert_eq!(texts, ["0", "0.5", "12.25", "1500", "3e5", "2.5e-5"]);
    }
}

//! Perplexity against bits per weight, as SVG.

use fourbit::{Error, Result, compare::Row};
use plotters::prelude::*;

const SIZE: (u32, u32) = (900, 560);
/// Pixels of a label's letters.
const HEIGHT: i32 = 11;

/// Rows whose perplexity is more than this many times the best are left out: they have lost the model.
const WORST: f64 = 20.0;

/// The plot of all rows; perplexity is on a logarithmic axis. Errors: Config where there is nothing to draw.
pub fn svg(rows: &[Row], title: &str) -> Result<String> {
    let finite = rows.iter().filter(|row| row.perplexity.is_finite());
    let best = finite.clone().map(|row| row.perplexity).fold(f64::INFINITY, f64::min);
    let shown: Vec<&Row> = finite.filter(|row| row.perplexity <= WORST * best).collect();
    let mut text = String::new();
    draw(&mut text, &shown, rows.len() - shown.len(), title)
        .map_err(|e| Error::config("plot", format!("{title}: {e}")))?;
    Ok(text)
}

fn draw(
    text: &mut String,
    rows: &[&Row],
    left_out: usize,
    title: &str,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    // Plain floats are far to the right of all that matters.
    let bits = |row: &Row| row.bits_per_weight.min(16.5);
    let most = rows.iter().map(|row| bits(row)).fold(2.0, f64::max) + 1.5;
    let low = rows.iter().map(|row| row.perplexity).fold(f64::INFINITY, f64::min).min(1e30) * 0.97;
    let high = rows.iter().map(|row| row.perplexity).fold(low, f64::max) * 1.05;
    let caption = match left_out {
        0 => title.to_owned(),
        n => format!("{title} ({n} with more than {WORST} times the best perplexity left out)"),
    };
    let mut chart = ChartBuilder::on(&root)
        .caption(caption, ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(1.5..most, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("bits per weight of the linear layers")
        .y_desc("perplexity")
        .y_label_formatter(&|y| format!("{y:.1}"))
        .light_line_style(WHITE)
        .draw()?;
    let mut methods: Vec<&str> = rows.iter().map(|row| method(row)).collect();
    methods.sort_unstable();
    methods.dedup();
    // From the lowest point up, as labels make way.
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| a.perplexity.total_cmp(&b.perplexity));
    let mut labels = Labels::default();
    for row in rows {
        let index = methods.iter().position(|&name| name == method(row)).unwrap_or(0);
        let color = Palette99::pick(index).to_rgba();
        let at = (bits(row), row.perplexity);
        let (x, y) = chart.backend_coord(&at);
        let above = labels.place(x, y, row.recipe.len());
        let label = Text::new(row.recipe.clone(), (7, above), ("sans-serif", HEIGHT).into_font());
        chart.draw_series([EmptyElement::at(at) + Circle::new((0, 0), 4, color.filled()) + label])?;
    }
    root.present()?;
    Ok(())
}

/// Where labels are, in pixels, so that those of near points do not lie on each other.
#[derive(Default)]
struct Labels {
    placed: Vec<[i32; 3]>,
}

impl Labels {
    /// How far below its point, at (x, y), a label of so many letters begins: beside it, or above where there is room.
    fn place(&mut self, x: i32, y: i32, letters: usize) -> i32 {
        // A letter is about half as wide as it is high.
        let width = letters as i32 * HEIGHT / 2;
        let free = |top: i32| {
            let apart =
                |&[other, at, wide]: &[i32; 3]| (top - at).abs() >= HEIGHT || x + width <= other || other + wide <= x;
            self.placed.iter().all(apart)
        };
        let top = (0..y).map(|up| y - HEIGHT / 2 - up).find(|&top| free(top)).unwrap_or(y);
        self.placed.push([x, top, width]);
        top - y
    }
}

fn method(row: &Row) -> &str {
    row.recipe.split(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(recipe: &str, bits_per_weight: f64, perplexity: f64) -> Row {
        Row {
            recipe: recipe.into(),
            bits_per_weight,
            bytes: 1,
            quantize_seconds: 1.0,
            loss: perplexity.ln(),
            perplexity,
            tokens_per_second: None,
            quantize_peak_bytes: 1,
            peak_bytes: 1,
        }
    }

    #[test]
    fn labels_of_near_points_do_not_lie_on_each_other() {
        let mut labels = Labels::default();
        let tops = [306, 302, 300, 300].map(|y| y + labels.place(100, y, 10));
        for (i, a) in tops.iter().enumerate() {
            assert!(tops[..i].iter().all(|b| (a - b).abs() >= HEIGHT), "{tops:?}");
        }
        assert_eq!(labels.place(400, 300, 10), -HEIGHT / 2, "far from all others");
    }

    #[test]
    fn every_row_is_drawn_but_those_that_lost_the_model() {
        let rows = [row("stored", 16.0, 15.0), row("gptq:int4-g64", 4.5, 16.0), row("hqq:int2-g64", 2.5, 3e5)];
        let text = svg(&rows, "model").unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
        assert!(text.contains("gptq:int4-g64") && text.contains("perplexity") && !text.contains("hqq:int2-g64"));
        assert_eq!(text.matches("<circle").count(), 2);
        assert!(svg(&[row("stored", 16.0, f64::NAN)], "model").is_ok());
    }
}

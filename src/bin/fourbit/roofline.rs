//! Speed against operations a byte, under the device's roof, as SVG.

use fourbit::{
    Error, Result,
    bench::{CaseResult, Results, families::FAMILIES},
};
use plotters::prelude::*;

const SIZE: (u32, u32) = (900, 560);
const COLORS: [RGBColor; 6] = [BLUE, RED, GREEN, MAGENTA, CYAN, BLACK];

/// The plot of all cases that count operations; both axes are logarithmic. Errors: Config where there is nothing to draw, or no limits.
pub fn svg(results: &Results) -> Result<String> {
    let fail = |message: String| Error::config("--svg", message);
    let limits = results.limits.as_ref().ok_or_else(|| fail("needs the limits: measure `limits` too".to_owned()))?;
    let counted = |case: &&CaseResult| case.error.is_none() && case.flops > 0.0 && case.bytes > 0.0;
    let cases: Vec<&CaseResult> = results.cases.iter().filter(counted).collect();
    if cases.is_empty() {
        return Err(fail("no case that counts operations was measured".to_owned()));
    }
    let roof = [limits.gflops, limits.read_gb_per_second.max(limits.copy_gb_per_second)];
    let mut text = String::new();
    draw(&mut text, &cases, roof, &results.device.name).map_err(|error| fail(error.to_string()))?;
    Ok(text)
}

fn draw(
    text: &mut String,
    cases: &[&CaseResult],
    [gflops, gb]: [f64; 2],
    title: &str,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let point = |case: &CaseResult| (case.flops / case.bytes, case.gflops());
    let least = |of: fn((f64, f64)) -> f64| cases.iter().map(|case| of(point(case))).fold(f64::INFINITY, f64::min);
    let most = |of: fn((f64, f64)) -> f64| cases.iter().map(|case| of(point(case))).fold(0.0, f64::max);
    let across = (least(|p| p.0) / 2.0)..(most(|p| p.0).max(2.0 * gflops / gb) * 2.0);
    let up = (least(|p| p.1) / 2.0)..(gflops.max(most(|p| p.1)) * 2.0);
    let ends = [across.start, gflops / gb, across.end];
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(across.log_scale(), up.log_scale())?;
    chart.configure_mesh().x_desc("operations a byte").y_desc("GFLOP/s").light_line_style(WHITE).draw()?;
    let roof = ends.map(|x| (x, (x * gb).min(gflops)));
    chart.draw_series(LineSeries::new(roof, BLACK.stroke_width(2)))?;
    let families = FAMILIES.iter().filter(|family| cases.iter().any(|case| case.family == family.name));
    for (number, family) in families.enumerate() {
        let color = COLORS[number % COLORS.len()];
        let of_family = cases.iter().filter(|case| case.family == family.name);
        chart
            .draw_series(of_family.map(|case| Circle::new(point(case), 3, color.filled())))?
            .label(family.name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 3, color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    root.present()?;
    Ok(())
}

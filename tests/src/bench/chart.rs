//! Bars per workload, as SVG: each figure as a share of the greatest beside it.

use std::fmt::Write as _;

const LABEL_WIDTH: u32 = 190;
const BAR_WIDTH: f64 = 480.0;
const ROW_HEIGHT: u32 = 16;
const FIGURE_WIDTH: u32 = 150;

/// What is drawn side by side.
#[derive(Debug)]
pub struct Row {
    /// Beside the bars.
    pub name: String,
    /// One for each name of the legend; nothing where there is no figure.
    pub figures: Vec<Option<f64>>,
}

/// Draws all rows below each other; the legend has names and colours.
pub fn draw(legend: &[(&str, &str)], rows: &[Row], unit: &str) -> String {
    let mut bars = String::new();
    let mut y = 30;
    for row in rows {
        y = draw_row(&mut bars, legend, row, unit, y);
    }
    let width = LABEL_WIDTH + 480 + FIGURE_WIDTH;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        y + 10
    );
    for (place, (name, colour)) in (0_u32..).zip(legend) {
        let x = 10 + place * 190;
        writeln!(
            text,
            "<rect x=\"{x}\" y=\"8\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"17\">{name}</text>",
            x + 14,
        )
        .unwrap_or_default();
    }
    text + &bars + "</svg>\n"
}

fn draw_row(bars: &mut String, legend: &[(&str, &str)], row: &Row, unit: &str, top: u32) -> u32 {
    let longest = row.figures.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut y = top;
    for ((_, colour), figure) in legend.iter().zip(&row.figures) {
        let Some(figure) = figure else { continue };
        let length = (figure / longest * BAR_WIDTH).max(1.0);
        writeln!(
            bars,
            "<rect x=\"{LABEL_WIDTH}\" y=\"{y}\" width=\"{length:.1}\" height=\"12\" \
             fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{}\">{figure:.2} {unit}</text>",
            f64::from(LABEL_WIDTH) + length + 5.0,
            y + 10
        )
        .unwrap_or_default();
        y += ROW_HEIGHT;
    }
    writeln!(
        bars,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        LABEL_WIDTH - 8,
        top + 12,
        row.name
    )
    .unwrap_or_default();
    y + 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greatest_figure_fills_the_width_and_a_missing_one_has_no_bar() {
        let legend = [("ours", "#1b7f5c"), ("theirs", "#c0504d"), ("gone", "#a0a0a0")];
        let row = Row { name: "lookup".to_owned(), figures: vec![Some(10.0), Some(40.0), None] };
        let svg = draw(&legend, &[row], "us");
        assert!(svg.contains("width=\"480.0\" height=\"12\" fill=\"#c0504d\""), "{svg}");
        assert!(svg.contains("width=\"120.0\" height=\"12\" fill=\"#1b7f5c\""), "{svg}");
        assert_eq!(svg.matches("height=\"12\"").count(), 2, "{svg}");
    }
}

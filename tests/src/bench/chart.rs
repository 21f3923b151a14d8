//! Bars per workload, as SVG: the time of each daemon as a share of the slowest.

use std::fmt::Write as _;

use super::report::Outcome;
use super::subject::Kind;

const LABEL_WIDTH: u32 = 190;
const BAR_WIDTH: f64 = 480.0;
const ROW_HEIGHT: u32 = 16;
const FIGURE_WIDTH: u32 = 150;

const COLOURS: [(Kind, &str); 3] =
    [(Kind::Thinroot, "#1b7f5c"), (Kind::Overlayfs, "#c0504d"), (Kind::Plain, "#a0a0a0")];

/// Draws all workloads below each other.
pub fn draw(outcomes: &[Outcome]) -> String {
    let mut rows = String::new();
    let mut y = 30;
    for outcome in outcomes {
        y = draw_workload(&mut rows, outcome, y);
    }
    let width = LABEL_WIDTH + 480 + FIGURE_WIDTH;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        y + 10
    );
    for (place, (kind, colour)) in (0_u32..).zip(COLOURS) {
        let x = LABEL_WIDTH + place * 170;
        writeln!(
            text,
            "<rect x=\"{x}\" y=\"8\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"17\">{}</text>",
            x + 14,
            kind.name()
        )
        .unwrap_or_default();
    }
    text + &rows + "</svg>\n"
}

fn draw_workload(rows: &mut String, outcome: &Outcome, top: u32) -> u32 {
    let walls = COLOURS.map(|(kind, _)| outcome.wall(kind).map(|wall| wall.median));
    let longest = walls.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut y = top;
    for ((_, colour), wall) in COLOURS.iter().zip(walls) {
        let Some(wall) = wall else { continue };
        let length = (wall / longest * BAR_WIDTH).max(1.0);
        writeln!(
            rows,
            "<rect x=\"{LABEL_WIDTH}\" y=\"{y}\" width=\"{length:.1}\" height=\"12\" \
             fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{}\">{wall:.1} us</text>",
            f64::from(LABEL_WIDTH) + length + 5.0,
            y + 10
        )
        .unwrap_or_default();
        y += ROW_HEIGHT;
    }
    writeln!(
        rows,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        LABEL_WIDTH - 8,
        top + 12,
        outcome.workload.name
    )
    .unwrap_or_default();
    y + 10
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::bench::run::Sample;
    use crate::bench::workloads;

    #[test]
    fn slowest_daemon_fills_the_width_and_a_failed_one_has_no_bar() {
        let sample = |us| {
            vec![Sample { operations: 1, wall: Duration::from_micros(us), ..Sample::default() }]
        };
        let samples = BTreeMap::from([(Kind::Thinroot, sample(10)), (Kind::Overlayfs, sample(40))]);
        let failures = BTreeMap::from([(Kind::Plain, "gone".to_owned())]);
        let workload = workloads().next().unwrap();
        let svg = draw(&[Outcome { workload, samples, failures }]);
        assert!(svg.contains("width=\"480.0\" height=\"12\" fill=\"#c0504d\""), "{svg}");
        assert!(svg.contains("width=\"120.0\" height=\"12\" fill=\"#1b7f5c\""), "{svg}");
        assert_eq!(svg.matches("height=\"12\"").count(), 2, "{svg}");
    }
}

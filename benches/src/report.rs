//! The table and the picture.

use std::fmt::Write;

/// One thing that was measured, several times.
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    pub reference: String,
    /// What this project wants: at least so many times the reference; or at most.
    pub target: Target,
    /// Ours and the reference's, of each run.
    pub runs: Vec<(f64, f64)>,
    /// What else was seen: processor time, latency.
    pub more: String,
}

#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
        }
    }
}

impl Row {
    pub fn ratio(&self) -> f64 {
        median(self.runs.iter().map(|(ours, theirs)| ours / theirs))
    }

    fn ours(&self) -> f64 {
        median(self.runs.iter().map(|(ours, _)| *ours))
    }

    fn theirs(&self) -> f64 {
        median(self.runs.iter().map(|(_, theirs)| *theirs))
    }

    /// How far the ratios of single runs lie apart.
    fn spread(&self) -> (f64, f64) {
        let ratios = || self.runs.iter().map(|(ours, theirs)| ours / theirs);
        (ratios().fold(f64::MAX, f64::min), ratios().fold(0.0, f64::max))
    }
}

/// Of several figures the one in the middle.
pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.len() / 2;
    let lower = sorted.len().saturating_sub(1) / 2;
    sorted
        .get(lower)
        .zip(sorted.get(upper))
        .map_or(0.0, |(lower, upper)| f64::midpoint(*lower, *upper))
}

pub fn number(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| job | Gabion | reference | ratio (least, most) | target | |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let (least, most) = row.spread();
        let (ratio, target) = (row.ratio(), row.target);
        let wanted = match target {
            Target::AtLeast(least) => format!("≥ {least}"),
            Target::AtMost(most) => format!("≤ {most}"),
        };
        let missed = if target.is_met(ratio) { "" } else { ", **missed**" };
        // A String takes every write.
        let _ = writeln!(
            text,
            "| {} | {} {} | {} ({}) | {ratio:.2} ({least:.2}, {most:.2}) | {wanted}{missed} | {} |",
            row.what,
            number(row.ours()),
            row.unit,
            number(row.theirs()),
            row.reference,
            row.more
        );
    }
    text
}

const BAR: f64 = 300.0;
const LEFT: f64 = 330.0;
const LINE: f64 = 26.0;

/// Ratios as bars, with the target as a mark. Light and dark by the viewer's wish.
pub fn picture(rows: &[Row]) -> String {
    let most = rows.iter().map(Row::ratio).fold(3.0, f64::max);
    let height = LINE * rows.len() as f64 + 60.0;
    let width = LEFT + BAR + 90.0;
    let at = |ratio: f64| LEFT + BAR * ratio / most;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <style>.t{{fill:#1c2320}}.b{{fill:#1f6f54}}.m{{fill:#b4520b}}.l{{stroke:#9aa69f}}.w{{stroke:#b3261e;stroke-width:2}}\
         @media(prefers-color-scheme:dark){{.t{{fill:#e6ebe8}}.b{{fill:#63c69d}}.m{{fill:#f2a25f}}}}</style>\n\
         <text class=\"t\" x=\"10\" y=\"18\">How many times the reference of the same run (line: as much; red mark: what is wanted)</text>\n"
    );
    for (index, row) in rows.iter().enumerate() {
        let y = 34.0 + LINE * index as f64;
        let ratio = row.ratio();
        let (Target::AtLeast(wanted) | Target::AtMost(wanted)) = row.target;
        let class = if row.target.is_met(ratio) { "b" } else { "m" };
        let (name, bar, mark) = (&row.what, at(ratio) - LEFT, at(wanted));
        let (left, middle, bottom) = (LEFT - 8.0, y + 12.0, y + 16.0);
        let right = at(ratio).max(mark) + 6.0;
        let _ = writeln!(
            svg,
            "<text class=\"t\" x=\"{left}\" y=\"{middle}\" text-anchor=\"end\">{name}</text>\
             <rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{bar:.1}\" height=\"16\"/>\
             <text class=\"t\" x=\"{right:.1}\" y=\"{middle}\">{ratio:.2}</text>\
             <line class=\"w\" x1=\"{mark:.1}\" x2=\"{mark:.1}\" y1=\"{y}\" y2=\"{bottom}\"/>"
        );
    }
    let _ = writeln!(
        svg,
        "<line class=\"l\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"28\" y2=\"{1}\" stroke-dasharray=\"3 3\"/>\n</svg>",
        at(1.0),
        height - 20.0
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(runs: Vec<(f64, f64)>, target: Target) -> Row {
        let (what, reference, more) = ("a job".into(), "a peer".into(), String::new());
        Row { what, unit: "IOPS", reference, target, runs, more }
    }

    #[test]
    fn ratios_are_of_the_same_run() {
        let row = row(vec![(10.0, 5.0), (30.0, 10.0), (8.0, 8.0)], Target::AtLeast(2.5));
        assert!((row.ratio() - 2.0).abs() < 1e-9);
        let text = table(std::slice::from_ref(&row));
        assert!(text.contains("2.00 (1.00, 3.00)") && text.contains("missed"), "{text}");
        assert!(picture(&[row]).ends_with("</svg>\n"));
        assert!(Target::AtMost(1.0).is_met(0.5) && !Target::AtMost(1.0).is_met(1.5));
    }

    #[test]
    fn the_middle() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0].into_iter()) - 2.5).abs() < 1e-9);
        assert!(median(std::iter::empty()).abs() < 1e-9);
    }
}

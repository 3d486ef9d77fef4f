//! What was measured, as Markdown and as JSON.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use super::process::Used;
use super::servers::repository;

/// Several measurements of one thing.
#[derive(Clone, Debug)]
pub struct Series {
    /// What it is.
    pub name: String,
    /// Unit.
    pub unit: &'static str,
    /// One a run, in the order of runs.
    pub values: Vec<f64>,
}

/// What a ratio or a figure has to be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At least.
    AtLeast(f64),
    /// At most.
    AtMost(f64),
}

/// A target and what was found.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What it is.
    pub found: Series,
    /// What it has to be.
    pub target: Target,
}

/// One row of the specification's table, measured.
#[derive(Clone, Debug)]
pub struct Row {
    /// For `--filter`.
    pub id: &'static str,
    /// What was measured, in a sentence.
    pub what: String,
    /// Everything that was measured.
    pub series: Vec<Series>,
    /// Targets.
    pub verdicts: Vec<Verdict>,
    /// What to know about the figures.
    pub notes: Vec<String>,
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match (sorted.get(sorted.len().saturating_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}

/// One value by another, run by run.
pub fn ratios(values: &[f64], others: &[f64]) -> Vec<f64> {
    values.iter().zip(others).map(|(value, other)| value / other).collect()
}

/// A number with as many digits as mean something.
fn shown(value: f64) -> String {
    match value.abs() {
        v if v.is_nan() => "–".to_owned(),
        v if v >= 1_000.0 => {
            let digits = format!("{value:.0}");
            let mut out = String::new();
            for (i, digit) in digits.char_indices() {
                if i > 0 && (digits.len() - i).is_multiple_of(3) && !out.ends_with('-') {
                    out.push(',');
                }
                out.push(digit);
            }
            out
        }
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

impl Series {
    /// A series.
    pub fn new(name: impl Into<String>, unit: &'static str, values: Vec<f64>) -> Self {
        Self { name: name.into(), unit, values }
    }

    /// The middle value with its unit.
    pub fn middle(&self) -> String {
        format!("{} {}", shown(median(&self.values)), self.unit).trim_end().to_owned()
    }

    /// Least and greatest.
    fn spread(&self) -> String {
        let sorted = sorted(&self.values);
        match (sorted.first(), sorted.last()) {
            (Some(low), Some(high)) => format!("{} – {}", shown(*low), shown(*high)),
            _ => String::new(),
        }
    }

    fn json(&self) -> Value {
        let sorted = sorted(&self.values);
        json!({ "name": self.name, "unit": self.unit, "median": median(&self.values), "min": sorted.first(), "max": sorted.last(), "runs": self.values })
    }
}

impl Verdict {
    /// A ratio.
    pub fn ratio(name: impl Into<String>, target: Target, values: Vec<f64>) -> Self {
        Self { found: Series::new(name, "×", values), target }
    }

    /// Whether the median is as it has to be.
    pub fn met(&self) -> bool {
        let found = median(&self.found.values);
        match self.target {
            Target::AtLeast(bound) => found >= bound,
            Target::AtMost(bound) => found <= bound,
        }
    }

    fn target(&self) -> String {
        match self.target {
            Target::AtLeast(bound) => format!("≥ {bound} {}", self.found.unit),
            Target::AtMost(bound) => format!("≤ {bound} {}", self.found.unit),
        }
    }

    /// One line for somebody who waits.
    pub fn line(&self) -> String {
        let word = if self.met() { "met" } else { "NOT MET" };
        format!("{}: {} (target {}): {word}", self.found.name, self.found.middle(), self.target())
    }
}

impl Row {
    /// A row without figures yet.
    pub fn new(id: &'static str, what: impl Into<String>) -> Self {
        Self { id, what: what.into(), series: Vec::new(), verdicts: Vec::new(), notes: Vec::new() }
    }

    /// Adds CPU an event of each process and the share of strangers, out of one `Used` a run.
    pub fn cpu(&mut self, of: &str, events: u64, used: &[Used]) {
        let mut names: Vec<_> = used.iter().flat_map(|used| used.each.keys().copied()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let each: Vec<f64> =
                used.iter().map(|used| used.each.get(name).copied().unwrap_or_default() * 1e6 / events as f64).collect();
            if each.iter().any(|us| *us >= 0.005) {
                self.series.push(Series::new(format!("{of}: CPU of {name} an event"), "µs", each));
            }
        }
        self.series.push(Series::new(
            format!("{of}: machine taken by others"),
            "%",
            used.iter().map(|used| used.strangers * 100.0).collect(),
        ));
    }
}

/// Everything of one run of the bench.
pub struct Report {
    /// Full or short, and when.
    pub title: String,
    /// What the figures were taken on.
    pub machine: Vec<(&'static str, String)>,
    /// Rows so far.
    pub rows: Vec<Row>,
}

impl Report {
    fn markdown(&self) -> String {
        let mut out =
            format!("# {}\n\n| target | found (median) | spread | wanted | |\n| --- | --- | --- | --- | --- |\n", self.title);
        for verdict in self.rows.iter().flat_map(|row| &row.verdicts) {
            let met = if verdict.met() { "met" } else { "**not met**" };
            let (found, target) = (&verdict.found, verdict.target());
            // Writing to memory cannot fail.
            let _ = writeln!(out, "| {} | {} | {} | {target} | {met} |", found.name, found.middle(), found.spread());
        }
        let _ = writeln!(out, "\n| machine | |\n| --- | --- |");
        for (name, value) in &self.machine {
            let _ = writeln!(out, "| {name} | {value} |");
        }
        for row in &self.rows {
            let _ = writeln!(out, "\n## {}\n\n{}\n\n| | median | spread | runs |\n| --- | --- | --- | --- |", row.id, row.what);
            for series in &row.series {
                let _ =
                    writeln!(out, "| {} | {} | {} | {} |", series.name, series.middle(), series.spread(), series.values.len());
            }
            for note in &row.notes {
                let _ = writeln!(out, "\n{note}");
            }
        }
        out
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            let verdict =
                |verdict: &Verdict| json!({ "found": verdict.found.json(), "target": verdict.target(), "met": verdict.met() });
            json!({
                "id": row.id,
                "what": row.what,
                "series": row.series.iter().map(Series::json).collect::<Vec<_>>(),
                "targets": row.verdicts.iter().map(verdict).collect::<Vec<_>>(),
                "notes": row.notes,
            })
        };
        let machine: serde_json::Map<String, Value> =
            self.machine.iter().map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str()))).collect();
        json!({ "title": self.title, "machine": machine, "rows": self.rows.iter().map(row).collect::<Vec<_>>() })
    }

    /// Writes both forms to `bench-results/`; the path of the Markdown.
    pub fn write(&self, name: &str) -> Result<PathBuf> {
        let folder = repository().join("bench-results");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("{name}.json")), serde_json::to_string_pretty(&self.json())?)?;
        let path = folder.join(format!("{name}.md"));
        std::fs::write(&path, self.markdown())?;
        Ok(path)
    }
}

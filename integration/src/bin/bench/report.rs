//! The figures of the runs, their medians, and the table.

use std::fmt::Write;

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Unit {
    Millis,
    Seconds,
    Kilobytes,
    Megabytes,
    Count,
    Ratio,
    Percent,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Target {
    None,
    AtMost(f64),
    AtLeast(f64),
}

/// CPU seconds per million changes.
#[derive(Clone, Copy, Default)]
pub struct Cpu {
    pub bridge: f64,
    pub broker: f64,
    pub bus: f64,
    pub fakes: f64,
    pub subscriber: f64,
}

/// What a load gave. Times in ms, shares in %.
#[derive(Clone, Copy, Default)]
pub struct Load {
    pub cpu: Cpu,
    pub rate: f64,
    pub delivered: f64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    pub lag: f64,
    pub wrong: f64,
    pub behind: f64,
    pub other: f64,
    pub steal: f64,
}

/// One line of the table, in one run.
#[derive(Clone)]
pub struct Figure {
    name: String,
    value: f64,
    unit: Unit,
    target: Target,
    ratio: Option<f64>,
    noise: Option<(f64, f64)>,
}

/// The figures of one run.
#[derive(Default)]
pub struct Figures {
    figures: Vec<Figure>,
    loads: Vec<(String, Load)>,
}

impl Figures {
    pub fn add(&mut self, name: &str, value: f64, unit: Unit, target: Target) -> &mut Figure {
        let at = self.figures.len();
        self.figures.push(Figure { name: name.to_owned(), value, unit, target, ratio: None, noise: None });
        // just pushed
        &mut self.figures.as_mut_slice()[at]
    }

    /// A load: a line for its CPU if `ratio` is a target, one for its latency if `p99` is, and one each for what was lost or is wrong.
    pub fn load(&mut self, name: &str, load: Load, ratio: Target, p99: Target) {
        let (bridge_to_bus, noise) = (load.cpu.bridge / load.cpu.bus, (load.other, load.steal));
        self.add(&format!("{name}: bridge CPU / bus CPU"), bridge_to_bus, Unit::Ratio, ratio).noise(noise).ratio = Some(bridge_to_bus);
        if p99 != Target::None {
            self.add(&format!("{name}: p99"), load.p99, Unit::Millis, p99);
        }
        if load.rate < 50_000.0 {
            self.add(&format!("{name}: delivered"), load.delivered, Unit::Percent, Target::AtLeast(100.0));
        }
        self.add(&format!("{name}: wrong last values"), load.wrong, Unit::Count, Target::AtMost(0.0));
        self.loads.push((name.to_owned(), load));
    }
}

impl Figure {
    pub fn noise(&mut self, noise: (f64, f64)) -> &mut Self {
        self.noise = Some(noise);
        self
    }
}

/// The medians of all runs, as Markdown.
pub fn table(runs: &[Figures]) -> String {
    let mut out =
        String::from("| figure | median | target | met | bridge/bus CPU | other CPU % | steal % |\n|---|---:|---:|---|---:|---:|---:|\n");
    let Some(first) = runs.first() else { return out };
    for (n, figure) in first.figures.iter().enumerate() {
        let all: Vec<&Figure> = runs.iter().filter_map(|run| run.figures.get(n)).collect();
        let value = median(&mut all.iter().map(|figure| figure.value).collect::<Vec<_>>());
        let optional = |pick: &dyn Fn(&Figure) -> Option<f64>, unit| {
            let mut values: Vec<f64> = all.iter().filter_map(|figure| pick(figure)).collect();
            if values.is_empty() { String::new() } else { show(median(&mut values), unit) }
        };
        let ratio = optional(&|figure| figure.ratio, Unit::Ratio);
        let other = optional(&|figure| figure.noise.map(|noise| noise.0), Unit::Count);
        let steal = optional(&|figure| figure.noise.map(|noise| noise.1), Unit::Count);
        let (target, met) = match figure.target {
            Target::None => (String::new(), ""),
            Target::AtMost(most) => (format!("≤ {}", show(most, figure.unit)), yes_or_no(value <= most)),
            Target::AtLeast(least) => (format!("≥ {}", show(least, figure.unit)), yes_or_no(value >= least)),
        };
        let value = show(value, figure.unit);
        let _ = writeln!(out, "| {} | {value} | {target} | {met} | {ratio} | {other} | {steal} |", figure.name);
    }
    out
}

/// The loads in detail: CPU seconds per million changes, delivery and latency.
pub fn loads(runs: &[Figures]) -> String {
    let mut out = String::from(
        "CPU seconds per million changes; latency in ms; lag = last value after the last change, ms\n\n\
         | load | bridge | broker | bus | fakes | subscriber | delivered % | p50 | p99 | max | lag |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let Some(first) = runs.first() else { return out };
    for (n, (name, _)) in first.loads.iter().enumerate() {
        let all: Vec<&Load> = runs.iter().filter_map(|run| run.loads.get(n).map(|(_, load)| load)).collect();
        let median_of = |pick: fn(&Load) -> f64| median(&mut all.iter().map(|load| pick(load)).collect::<Vec<_>>());
        let columns: [fn(&Load) -> f64; 10] = [
            |load| load.cpu.bridge,
            |load| load.cpu.broker,
            |load| load.cpu.bus,
            |load| load.cpu.fakes,
            |load| load.cpu.subscriber,
            |load| load.delivered,
            |load| load.p50,
            |load| load.p99,
            |load| load.max,
            |load| load.lag,
        ];
        let cells: Vec<String> = columns.into_iter().map(|pick| format!("{:.2}", median_of(pick))).collect();
        let _ = writeln!(out, "| {name} | {} |", cells.join(" | "));
    }
    out
}

/// The middle one; of an even number, the mean of the two in the middle.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match (values.get(half), values.len() % 2) {
        (Some(middle), 1) => *middle,
        (Some(upper), _) => (upper + values.get(half.saturating_sub(1)).unwrap_or(upper)) / 2.0,
        (None, _) => f64::NAN,
    }
}

fn yes_or_no(met: bool) -> &'static str {
    if met { "yes" } else { "**no**" }
}

fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Millis if value < 1.0 => format!("{value:.3} ms"),
        Unit::Millis if value < 10.0 => format!("{value:.2} ms"),
        Unit::Millis => format!("{value:.0} ms"),
        Unit::Seconds => format!("{value:.2} s"),
        Unit::Kilobytes => format!("{value:.1} KB"),
        Unit::Megabytes => format!("{value:.1} MB"),
        Unit::Count => format!("{value:.0}"),
        Unit::Ratio => format!("{value:.2}"),
        Unit::Percent => format!("{value:.2} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0]), 2.5);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn the_table_has_the_median_and_says_whether_the_target_is_met() {
        let run = |value| {
            let mut figures = Figures::default();
            figures.add("RSS", value, Unit::Megabytes, Target::AtMost(8.0)).noise((1.0, 0.0));
            figures
        };
        let table = table(&[run(9.0), run(5.0), run(7.0)]);
        assert!(table.ends_with("| RSS | 7.0 MB | ≤ 8.0 MB | yes |  | 1 | 0 |\n"), "{table}");
    }
}

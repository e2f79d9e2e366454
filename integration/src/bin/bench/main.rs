//! Measures the bridge between a private D-Bus and a private Mosquitto: 24 fake services with 5,000 items, a counting subscriber, CPU time from
//! the scheduler. One command, one table.
//!
//! Everything that is measured shares one CPU, the measuring thread has another (except flat out, in the flood and while the broker stands still,
//! where the parts use all there are). Compare ratios to dbus-daemon's CPU in the same run, not seconds: those differ from machine to machine and
//! from day to day.

mod cases;
mod clock;
mod connection;
mod devices;
mod emission;
mod fake;
mod histogram;
mod http;
mod measure;
mod model;
mod packet;
mod report;
mod rig;
mod subscriber;
mod turns;
mod wire;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use cases::{CASES, OWN, Size};
use report::Figures;
use rig::Rig;

const HELP: &str = "\
usage: bench [--only NAME,NAME…] [--secs N] [--runs N] [--quick] [--bridge 'COMMAND']

  --only NAMES   only these measurements (the start runs always)
  --secs N       length of the longest load, the others take half of it (30)
  --runs N       runs, of which the table shows the medians (3)
  --quick        one run of a few minutes
  --copies N     all services N times: 4 make 20,000 items (1)
  --bridge CMD   measure another program; {port}, {bus}, {portal}, {dir} and {level} (of the log) are filled in,
                 words are split at blanks; the measurements \"http\" and \"devices\" only if they are named

Without --bridge: the program in $VENUS_MQTT_BIN, else venus-mqtt of this checkout, built for release; localsettings likewise, from
$VENUS_SETTINGS_BIN.

measurements:
";

const FULL: Size = Size {
    seconds: 30.0,
    flat_out: 300_000,
    republishes: 5,
    writes: 200,
    device_writes: 2000,
    cycles: 1000,
    measurements: 1000,
    unreachable: 10_000,
};

const QUICK: Size = Size {
    seconds: 8.0,
    flat_out: 100_000,
    republishes: 2,
    writes: 100,
    device_writes: 300,
    cycles: 100,
    measurements: 200,
    unreachable: 400,
};

struct Options {
    only: Vec<String>,
    runs: usize,
    size: Size,
    bridge: Option<String>,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        match self.only.as_slice() {
            [] => !OWN.contains(&name) || self.bridge.is_none(),
            only => only.iter().any(|only| only == name),
        }
    }
}

fn main() -> Result<()> {
    let Some(options) = options(std::env::args().skip(1))? else {
        print!("{HELP}");
        for (name, what, _) in CASES {
            println!("  {name:<14} {what}");
        }
        return Ok(());
    };
    end_politely_when_told()?;
    clock::now();
    let bridge = match &options.bridge {
        Some(bridge) => bridge.clone(),
        None => own_bridge()?,
    };
    let cases: Vec<_> = CASES.iter().filter(|(name, ..)| options.wants(name)).collect();
    let mut runs = Vec::new();
    for n in 1..=options.runs {
        let mut figures = Figures::default();
        let mut rig = Rig::prepare()?;
        eprintln!("run {n} of {}: start", options.runs);
        cases::start(&mut rig, &bridge, &mut figures)?;
        for (name, what, case) in &cases {
            eprintln!("run {n} of {}: {name} ({what})", options.runs);
            let measured = case(&mut rig, &options.size, &mut figures);
            measured.with_context(|| format!("in the measurement {name}; the bridge's log ends with: {}", rig.last_words()))?;
        }
        runs.push(figures);
    }
    println!("{}, {} runs, loads of up to {} s; {}\n", rig_description(), options.runs, options.size.seconds, bridge);
    println!("{}\n{}", report::table(&runs), report::loads(&runs));
    Ok(())
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options { only: Vec::new(), runs: 3, size: FULL, bridge: None };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} wants a value; see --help"));
        match argument.as_str() {
            "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
            "--secs" => options.size.seconds = value()?.parse().context("--secs wants a number")?,
            "--runs" => options.runs = value()?.parse().context("--runs wants a number")?,
            "--copies" => {
                let copies = value()?.parse().context("--copies wants a number")?;
                if !(1..=8).contains(&copies) {
                    bail!("--copies goes from 1 to 8");
                }
                model::COPIES.store(copies, Ordering::Relaxed);
            }
            "--quick" => {
                options.runs = 1;
                options.size = QUICK;
            }
            "--bridge" => options.bridge = Some(value()?),
            "--help" | "-h" => return Ok(None),
            other => bail!("unknown argument {other}; see --help"),
        }
    }
    if let Some(unknown) = options.only.iter().find(|only| *only != "start" && !CASES.iter().any(|(name, ..)| name == only)) {
        bail!("--only: there is no measurement {unknown}; see --help");
    }
    if !(2.0..=600.0).contains(&options.size.seconds) || !(1..=100).contains(&options.runs) {
        bail!("--secs goes from 2 to 600, --runs from 1 to 100");
    }
    Ok(Some(options))
}

/// The parts must end in order, and the folder with them. Signals are not blocked for it: the parts would inherit that, and could not be told
/// to end.
fn end_politely_when_told() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    drop(entered);
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                }
                rig::INTERRUPTED.store(true, Ordering::Relaxed);
            }
        })
    })?;
    Ok(())
}

/// Builds the daemon for release beside this program, unless one is named.
fn own_bridge() -> Result<String> {
    let program = match std::env::var_os("VENUS_MQTT_BIN") {
        Some(program) => PathBuf::from(program),
        None => built("venus-mqtt", "venus-mqtt")?,
    };
    let program = program.to_str().context("the path of venus-mqtt is not UTF-8")?;
    Ok(format!(
        "{program} --dbus {{bus}} --host 127.0.0.1 --port {{port}} --portal-id {{portal}} --bridge true --state-dir {{dir}}/state --log-level {{level}}"
    ))
}

/// The program of another part of this workspace, built for release beside this one.
pub fn built(package: &str, program: &str) -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let this = std::env::current_exe()?;
    let target = this.ancestors().nth(2).context("the bench is not in a target directory")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--package", package, "--bin", program, "--manifest-path"]).arg(&manifest);
    command.arg("--target-dir").arg(target);
    if !command.status().context("cannot run cargo")?.success() {
        bail!("{program} does not build; name another program with --bridge, VENUS_MQTT_BIN or VENUS_SETTINGS_BIN");
    }
    Ok(target.join("release").join(program))
}

/// What the figures were taken on.
fn rig_description() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |rest| rest.trim_start_matches(['\t', ' ', ':']));
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let cpus = info.lines().filter(|line| line.starts_with("processor")).count().max(cpus);
    format!("{model}, {cpus} CPUs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Option<Options>> {
        options(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn options_are_read_and_checked() {
        let options = parsed(&["--quick", "--runs", "2", "--only", "start,flat", "--bridge", "x {port}"]).unwrap().unwrap();
        assert_eq!((options.runs, options.only.len(), options.bridge.as_deref()), (2, 2, Some("x {port}")));
        assert!(parsed(&["--help"]).unwrap().is_none());
        for wrong in [&["--only", "nothing"][..], &["--secs"], &["--secs", "0"], &["--runs", "x"], &["--faster"]] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_our_own_is_measured_with_another_program_only_when_named() {
        let wants = |arguments: &[&str], name| parsed(arguments).unwrap().unwrap().wants(name);
        assert!(!wants(&["--bridge", "x"], "http") && wants(&["--bridge", "x"], "steady"));
        for own in OWN {
            assert!(wants(&[], own) && !wants(&["--bridge", "x"], own) && wants(&["--bridge", "x", "--only", own], own));
            assert!(!wants(&["--only", own], "steady") && CASES.iter().any(|(name, ..)| *name == own));
        }
    }
}

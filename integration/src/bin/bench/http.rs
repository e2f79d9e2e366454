//! Measurements over HTTP: what one costs when it is delivered, what an outage costs, and how it is caught up.
//!
//! The backend is in this process, on the measuring thread's CPU. Time is scaled down, a measurement each 50 ms in place of 30 s: the client keeps
//! no connection for 30 s, so the backend closes it after each answer. Bytes written are those the kernel counts for the process; what a file system
//! adds for its own purposes is not in them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use flate2::Crc;
use venus_mqtt_integration::certs::Certs;
use venus_mqtt_integration::{Answer, Backend, Request};

use crate::cases::{self, Size, TEN, sleep, steadily, wake};
use crate::measure::{Machine, Written, cpu_seconds, resident_kb};
use crate::model;
use crate::report::{Figures, Target, Unit};
use crate::rig::{Rig, wait_until};

const INTERVAL: f64 = 0.05;

/// Measurements in a day, at 30 s.
const A_DAY: f64 = 2880.0;

/// Measurements in a week.
const A_WEEK: u64 = 21_000;

/// Delivered before anything is counted: what is kept for ever is there by then.
const WARM_UP: usize = 50;

/// After an outage the next attempt is not due at once.
const BACK_OFF_MAX: Duration = Duration::from_secs(70);

/// What the bridge calls it in its summary.
const MEASURED: &str = "measured";

/// A segment of a queue on disk.
const SEGMENT: usize = 512 * 1024;

pub fn http(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    beside(rig, size, figures)?;
    let left = leave_a_usual_house(rig)?;
    // its summary is in the log then
    rig.log_level = "info";
    without(rig, figures)?;
    let base = delivered(rig, size, figures)?;
    delivered_with_tls(rig, size, figures)?;
    outage(rig, size, figures)?;
    let body = unreachable(rig, size, figures)?;
    week(rig, &body, base, figures)?;
    rig.log_level = "warn";
    rig.restart_bridge("")?;
    for service in left {
        rig.fake.come_back(service)?;
    }
    wake(rig)
}

/// A target must not cost the bridge anything while nothing is measured. Both are measured twice, in turn.
fn beside(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    let backend = Backend::start();
    let with_target = config(rig, "beside", &backend.section(""))?;
    let mut ratios = [0.0; 2];
    for (arguments, name) in [("", "without a target"), (&*with_target, "with a target")].into_iter().cycle().take(4) {
        rig.restart_bridge(arguments)?;
        wake(rig)?;
        let load = cases::load(rig, steadily(2000.0, size.seconds / 5.0, TEN))?;
        ratios[usize::from(!arguments.is_empty())] += load.cpu.bridge / load.cpu.bus;
        figures.load(&format!("2,000/s x10, {name}"), load, Target::AtMost(1.3), Target::None);
    }
    figures.add("  bridge CPU / bus CPU, as a multiple of that without a target", ratios[1] / ratios[0], Unit::Ratio, Target::AtMost(1.05));
    Ok(())
}

/// One solar charger and 13 other services; gives who had to leave for it.
fn leave_a_usual_house(rig: &Rig) -> Result<Vec<usize>> {
    let stay = [("solarcharger", 1), ("battery", 1), ("tank", 1), ("temperature", 3)];
    let mut left = Vec::new();
    let house = model::house();
    for (index, service) in house.iter().enumerate() {
        let nth = house.iter().take(index).filter(|other| other.kind == service.kind).count();
        if stay.iter().any(|(kind, most)| service.kind == *kind && nth >= *most) {
            rig.fake.leave(index)?;
            left.push(index);
        }
    }
    match house.len() - left.len() {
        14 => Ok(left),
        others => bail!("the house has {others} services left, not 14"),
    }
}

fn without(rig: &mut Rig, figures: &mut Figures) -> Result<()> {
    rig.restart_bridge("")?;
    wake(rig)?;
    let rss = resident_kb(rig.bridge_pid());
    figures.add("14 services, no target: RSS of the bridge", rss / 1024.0, Unit::Megabytes, Target::AtMost(8.0));
    Ok(())
}

/// Gives the memory of a bridge in which nothing waits.
fn delivered(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<f64> {
    let backend = Backend::start();
    let arguments = config(rig, "plain", &backend.section(&every(INTERVAL)))?;
    deliver(rig, &backend, &arguments, size, "delivered", figures)
}

/// With the roots that the system trusts beside the backend's, as in life.
fn delivered_with_tls(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    let certs = Certs::make("localhost")?;
    let backend = Backend::tls(&certs.server_identity());
    let roots = rig.folder().join("roots.pem");
    let system = fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
    fs::write(&roots, system + &certs.ca)?;
    let section = format!("url = \"{}\"\nca_file = \"{}\"\n{}", backend.url_as("localhost"), roots.display(), every(INTERVAL));
    let arguments = config(rig, "tls", &section)?;
    deliver(rig, &backend, &arguments, size, "delivered, with TLS", figures).map(drop)
}

fn deliver(rig: &mut Rig, backend: &Backend, arguments: &str, size: &Size, what: &str, figures: &mut Figures) -> Result<f64> {
    backend.answer(Answer::text(201, "{}").with("Connection", "close"));
    rig.restart_bridge(arguments)?;
    wake(rig)?;
    await_delivered(rig, backend, WARM_UP)?;
    let span = Span::begin(rig);
    await_delivered(rig, backend, count(backend) + size.measurements)?;
    let used = span.end(rig, size.measurements);
    figures.add(&format!("a measurement {what}: CPU of the bridge"), used.cpu * 1e3, Unit::Millis, Target::None).noise(used.noise);
    figures.add("  in a day of 30 s intervals", used.cpu * A_DAY, Unit::Seconds, Target::None);
    figures.add("  bytes handed to write(2)", used.handed / 1024.0, Unit::Kilobytes, Target::None);
    figures.add("  bytes that go to the disk", used.written / 1024.0, Unit::Kilobytes, Target::AtMost(0.1));
    figures.add("  bytes cut off before they got there", used.cancelled / 1024.0, Unit::Kilobytes, Target::None);
    figures.add("  bytes that go to the disk in a day", used.written * A_DAY / 1024.0 / 1024.0, Unit::Megabytes, Target::None);
    figures.add("  RSS of the bridge", used.rss_kb / 1024.0, Unit::Megabytes, Target::AtMost(8.0));
    figures.add("  RSS of the bridge grows by", used.rss_grown_kb / 1024.0, Unit::Megabytes, Target::AtMost(0.5));
    add_intact(rig, backend, 0, figures)?;
    Ok(used.rss_kb)
}

/// The backend is gone for a while: what is posted when it is back, and how fast.
fn outage(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    let backend = Backend::start();
    let arguments = config(rig, "outage", &backend.section(&every(INTERVAL)))?;
    rig.restart_bridge(&arguments)?;
    wake(rig)?;
    await_delivered(rig, &backend, WARM_UP)?;
    backend.down();
    let before = count(&backend);
    sleep(rig, size.measurements as f64 * INTERVAL)?;
    backend.up();
    wait_until(BACK_OFF_MAX, "the first measurement after the outage", || Ok(count(&backend) > before))?;
    let (machine, cpu) = (Machine::now(), cpu_seconds(rig.bridge_pid()));
    let began = Instant::now();
    await_caught_up(&backend)?;
    let (took, used) = (began.elapsed().as_secs_f64(), cpu_seconds(rig.bridge_pid()) - cpu);
    let caught_up = count(&backend).saturating_sub(before) as f64;
    figures.add("an outage: measurements that waited", caught_up, Unit::Count, Target::AtLeast(size.measurements as f64));
    figures.add("  are posted, at an unbounded rate, in", took, Unit::Seconds, Target::None).noise(machine.noise_since(used));
    figures.add("  at the default rate of 5 a second they would take", caught_up / (5.0 - 1.0 / 30.0), Unit::Seconds, Target::None);
    figures.add("  CPU of the bridge for each, on a kept connection", used * 1e3 / caught_up, Unit::Millis, Target::None);
    add_intact(rig, &backend, 0, figures)
}

/// The backend is gone for long; gives a measurement that was posted afterwards.
fn unreachable(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<Vec<u8>> {
    let backend = Backend::start();
    backend.down();
    let arguments = config(rig, "unreachable", &backend.section(&every(INTERVAL)))?;
    rig.restart_bridge(&arguments)?;
    wake(rig)?;
    let span = Span::begin(rig);
    sleep(rig, size.unreachable as f64 * INTERVAL)?;
    let measured = rig.counted(MEASURED)?;
    let used = span.end(rig, measured as usize);
    let (records, disk_kb) = (measured as f64, queue_kb(rig, "unreachable")?);
    figures.add(
        &format!("unreachable for {} measurements: CPU of the bridge for each", size.unreachable),
        used.cpu * 1e3,
        Unit::Millis,
        Target::None,
    );
    figures.add("  RSS of the bridge grows by", used.rss_grown_kb / 1024.0, Unit::Megabytes, Target::AtMost(1.0)).noise(used.noise);
    figures.add("  queue on disk", disk_kb / 1024.0, Unit::Megabytes, Target::AtMost(32.0));
    figures.add("  on disk for each", disk_kb / records, Unit::Kilobytes, Target::None);
    figures.add("  bytes handed to write(2), for each", used.handed / 1024.0, Unit::Kilobytes, Target::None);
    figures.add("  bytes that go to the disk, for each", used.written / 1024.0, Unit::Kilobytes, Target::None);
    rig.end_bridge();
    backend.up();
    figures.add("  from a start to the first one posted", first_post(rig, &backend, &arguments)? * 1e3, Unit::Millis, Target::None);
    await_caught_up(&backend)?;
    add_intact(rig, &backend, measured, figures)?;
    Ok(backend.delivered().pop().context("nothing was delivered")?.body)
}

/// A queue as long as a week's outage leaves it.
fn week(rig: &mut Rig, body: &[u8], base: f64, figures: &mut Figures) -> Result<()> {
    let backend = Backend::start();
    // the first is posted, and nothing more
    backend.answer(Answer::Hang);
    let mut took = Vec::new();
    for (name, records) in [("one", 1), ("week", A_WEEK)] {
        rig.end_bridge();
        write_queue(&queue(rig, name), body, records)?;
        let arguments = config(rig, name, &backend.section(&format!("{}timeout = 300\n", every(3600.0))))?;
        let machine = Machine::now();
        let first = first_post(rig, &backend, &arguments)?;
        let used = cpu_seconds(rig.bridge_pid());
        took.push((first, used, machine.noise_since(used)));
    }
    let [(first, first_used, _), (week, week_used, noise)] = took[..] else { bail!("two queues were opened") };
    wake(rig)?;
    let grown = resident_kb(rig.bridge_pid()) - base;
    figures.add("a week of measurements waits: from a start to the first one posted", week * 1e3, Unit::Millis, Target::None).noise(noise);
    figures.add("  longer than with one that waits", (week - first) * 1e3, Unit::Millis, Target::None);
    figures.add("  CPU of the bridge more", (week_used - first_used) * 1e3, Unit::Millis, Target::None);
    figures.add("  RSS of the bridge above that with an empty queue", grown / 1024.0, Unit::Megabytes, Target::AtMost(1.5));
    figures.add("  queue on disk", queue_kb(rig, "week")? / 1024.0, Unit::Megabytes, Target::AtMost(32.0));
    Ok(())
}

/// What a number of measurements cost.
struct Span {
    machine: Machine,
    cpu: f64,
    rss_kb: f64,
    written: Written,
}

/// For each measurement, but for the memory.
struct Used {
    cpu: f64,
    handed: f64,
    /// Not cut off again.
    written: f64,
    cancelled: f64,
    rss_kb: f64,
    rss_grown_kb: f64,
    noise: (f64, f64),
}

impl Span {
    fn begin(rig: &Rig) -> Self {
        let pid = rig.bridge_pid();
        Self { machine: Machine::now(), cpu: cpu_seconds(pid), rss_kb: resident_kb(pid), written: Written::by(pid) }
    }

    fn end(&self, rig: &Rig, measurements: usize) -> Used {
        let pid = rig.bridge_pid();
        let (cpu, written, rss_kb) = (cpu_seconds(pid) - self.cpu, Written::by(pid).since(self.written), resident_kb(pid));
        let each = |all: f64| all / measurements as f64;
        Used {
            cpu: each(cpu),
            handed: each(written.handed),
            written: each((written.dirtied - written.cancelled).max(0.0)),
            cancelled: each(written.cancelled),
            rss_kb,
            rss_grown_kb: rss_kb - self.rss_kb,
            noise: self.machine.noise_since(cpu),
        }
    }
}

/// The arguments of a bridge with one target.
fn config(rig: &Rig, name: &str, section: &str) -> Result<String> {
    let file = rig.folder().join(format!("{name}.toml"));
    fs::write(&file, format!("[[http]]\nname = \"{name}\"\n{section}"))?;
    Ok(format!("--config {}", file.display()))
}

/// The pace must allow for more than one post in an interval.
fn every(seconds: f64) -> String {
    format!("update_interval = {seconds:?}\ncatch_up_rate = 1000\n")
}

fn queue(rig: &Rig, name: &str) -> PathBuf {
    rig.folder().join(format!("state/http/{name}.victron-measurements"))
}

fn queue_kb(rig: &Rig, name: &str) -> Result<f64> {
    let blocks: u64 = fs::read_dir(queue(rig, name))?.map(|entry| Ok(entry?.metadata()?.blocks())).sum::<Result<u64>>()?;
    Ok(blocks as f64 / 2.0)
}

/// A queue as an earlier life of the bridge leaves it, each record with the same body.
fn write_queue(folder: &Path, body: &[u8], records: u64) -> Result<()> {
    fs::create_dir_all(folder)?;
    let (mut first, mut segment) = (1, Vec::new());
    for seq in 1..=records {
        let record = record(seq, body);
        if segment.len() + record.len() > SEGMENT {
            fs::write(folder.join(format!("{first:016x}.queue")), &segment)?;
            (first, segment) = (seq, Vec::new());
        }
        segment.extend(record);
    }
    Ok(fs::write(folder.join(format!("{first:016x}.queue")), &segment)?)
}

fn record(seq: u64, body: &[u8]) -> Vec<u8> {
    let sum = [&(body.len() as u32).to_le_bytes()[..], &seq.to_le_bytes(), body].concat();
    let mut crc = Crc::new();
    crc.update(&sum);
    let mut bytes = [&crc.sum().to_le_bytes()[..], &sum].concat();
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    bytes
}

/// Seconds from the start of a bridge to its first post.
fn first_post(rig: &mut Rig, backend: &Backend, arguments: &str) -> Result<f64> {
    backend.forget();
    let started = Instant::now();
    rig.restart_bridge(arguments)?;
    let came = || look(backend, |requests| requests.first().map(|request| request.at));
    wait_until(Duration::from_secs(30), "the first post", || Ok(came().is_some()))?;
    let at = came().context("the first post")?;
    Ok(at.duration_since(started).as_secs_f64())
}

fn await_delivered(rig: &mut Rig, backend: &Backend, measurements: usize) -> Result<()> {
    let until = Instant::now() + Duration::from_secs_f64(30.0 + 2.0 * INTERVAL * measurements as f64);
    while count(backend) < measurements {
        if Instant::now() > until {
            bail!("{} of {measurements} measurements came", count(backend));
        }
        sleep(rig, INTERVAL)?;
    }
    Ok(())
}

/// Until what comes was measured just now.
fn await_caught_up(backend: &Backend) -> Result<()> {
    wait_until(Duration::from_secs(120), "the queue to be empty", || {
        Ok(look(backend, |requests| requests.last().map(lag)).context("nothing came")?? < 2.0 * INTERVAL)
    })
}

fn count(backend: &Backend) -> usize {
    look(backend, |requests| requests.iter().filter(|request| request.delivered()).count())
}

/// At what has come by now.
fn look<T>(backend: &Backend, look: impl Fn(&[Request]) -> T) -> T {
    backend.wait("nothing", Duration::ZERO, |requests| Some(look(requests)))
}

/// All that was measured came, in order, and each once. So many were `measured_before` the bridge was started again.
fn add_intact(rig: &Rig, backend: &Backend, measured_before: u64, figures: &mut Figures) -> Result<()> {
    let measured = (measured_before + rig.counted(MEASURED)?) as usize;
    // the last one may be on its way; what never comes is the figure
    let _ = wait_until(Duration::from_secs(2), "the last one", || Ok(count(backend) >= measured));
    let stamps: Vec<String> = backend.delivered().iter().take(measured).map(Request::stamp).collect();
    let came: BTreeSet<_> = stamps.iter().collect();
    let disordered = stamps.windows(2).filter(|pair| pair[1] <= pair[0]).count();
    figures.add("  of them missing", (measured - came.len()) as f64, Unit::Count, Target::AtMost(0.0));
    figures.add("  out of order, or twice", disordered as f64, Unit::Count, Target::AtMost(0.0));
    Ok(())
}

/// Seconds from a measurement to its post.
fn lag(request: &Request) -> Result<f64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    Ok(between(time_of_day(&request.stamp())?, now - request.at.elapsed().as_secs_f64()))
}

const DAY: f64 = 86400.0;

/// Seconds from one time of day to another, less than half a day away.
fn between(from: f64, to: f64) -> f64 {
    (to - from + DAY / 2.0).rem_euclid(DAY) - DAY / 2.0
}

/// Of a stamp like 2025-10-30T15:27:33.058551+00:00, in seconds.
fn time_of_day(stamp: &str) -> Result<f64> {
    let time = stamp.split_once('T').and_then(|(_, time)| time.strip_suffix("+00:00"));
    let parts: Option<Vec<f64>> = time.and_then(|time| time.split(':').map(|part| part.parse().ok()).collect());
    match parts.as_deref() {
        Some([hours, minutes, seconds]) => Ok((hours * 60.0 + minutes) * 60.0 + seconds),
        _ => bail!("{stamp} is no time stamp"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_are_read_and_go_on_at_midnight() {
        assert!((time_of_day("2025-10-30T15:27:33.058551+00:00").unwrap() - 55_653.058_551).abs() < 1e-6);
        assert!(time_of_day("2025-10-30 12:00").is_err());
        assert!((between(DAY - 1.0, 1.0) - 2.0).abs() < 1e-9 && (between(1.0, DAY - 1.0) + 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_record_has_the_form_of_the_queue() {
        let record = record(7, b"123456789");
        assert_eq!(record.len(), 32);
        assert_eq!(record[4..25], [9, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, b'1', b'2', b'3', b'4', b'5', b'6', b'7', b'8', b'9']);
    }
}

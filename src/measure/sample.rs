//! Items to a measurement: what is posted, as bytes.

use std::fmt;

use serde::Serialize;

use crate::bridge::filter::Filter;
use crate::bridge::value::Value;
use crate::bridge::{Bridge, ServiceView, Time, limits};

use super::options::{Format, Options};
use super::stamp::Wall;

/// One measurement.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    pub body: Vec<u8>,
    pub count: Count,
}

/// How much there is in a measurement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    Devices(usize),
    Values(usize),
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices(1) => f.write_str("1 solar charger"),
            Self::Devices(n) => write!(f, "{n} solar chargers"),
            Self::Values(1) => f.write_str("1 value"),
            Self::Values(n) => write!(f, "{n} values"),
        }
    }
}

/// Takes measurements for one target, and knows who was there the last time.
#[derive(Debug, Default)]
pub struct Sampler {
    last: Vec<Charger>,
}

/// When a measurement is taken, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Time,
    pub wall: Wall,
}

impl Sampler {
    /// What there is to tell now; `None`: nothing.
    pub fn sample(&mut self, options: &Options, portal: &str, at: Moment, bridge: &Bridge) -> Option<Sample> {
        match &options.format {
            Format::VictronMeasurements => self.chargers(options.cerbo_serial.as_deref().unwrap_or(portal), at, bridge),
            Format::JsonLines(filters) => values(portal, filters, at, bridge),
        }
    }

    fn chargers(&mut self, serial: &str, at: Moment, bridge: &Bridge) -> Option<Sample> {
        let present = bridge.services().filter(|service| service.service_type() == "solarcharger");
        let mut present: Vec<Charger> = present.filter_map(|service| Charger::read(service, at)).collect();
        // in an order of their own: that of the bus changes when a driver starts again
        present.sort_by(|a, b| (a.device.device_instance, &a.name).cmp(&(b.device.device_instance, &b.name)));
        let is_present = |gone: &Charger| present.iter().any(|charger| charger.name == gone.name || charger.is_same_device(gone));
        let gone: Vec<Charger> = std::mem::take(&mut self.last).into_iter().filter(|charger| !is_present(charger)).collect();
        if present.is_empty() && gone.is_empty() {
            return None;
        }
        let left = gone.into_iter().map(|charger| Device { reachable: false, ..charger.device });
        let devices: Vec<Device> = present.iter().map(|charger| charger.device.clone()).chain(left).collect();
        self.last = present;
        let count = Count::Devices(devices.len());
        let body = json(&Measurement { timestamp: at.wall.to_string(), cerbo_serial: serial, devices });
        Some(Sample { body, count })
    }
}

#[derive(Serialize)]
struct Measurement<'a> {
    timestamp: String,
    cerbo_serial: &'a str,
    devices: Vec<Device>,
}

#[derive(Clone, Debug, Serialize)]
struct Device {
    device_instance: i64,
    serial: String,
    name: String,
    product_name: String,
    reachable: bool,
    producing: bool,
    last_update: u64,
    yield_power_w: f64,
    yield_total_kwh: f64,
    trackers: Vec<Tracker>,
}

#[derive(Clone, Debug, Serialize)]
struct Tracker {
    tracker: usize,
    name: String,
    voltage: f64,
    power: f64,
}

/// A solar charger, and its name on the bus.
#[derive(Debug)]
struct Charger {
    name: Box<str>,
    device: Device,
}

const NO_SERIAL: &str = "UNKNOWN";

impl Charger {
    /// `None`: it has no instance, and nobody could tell it from others.
    fn read(service: ServiceView<'_>, at: Moment) -> Option<Self> {
        let device_instance = service.value("/DeviceInstance").and_then(integer)?;
        let number_at = |path: &str| service.value(path).and_then(number);
        let text_at = |path: &str| service.value(path).and_then(text);
        let power = number_at("/Yield/Power").unwrap_or(0.0);
        let product_name = text_at("/ProductName").unwrap_or_else(|| "Unknown Product".into());
        let device = Device {
            device_instance,
            serial: text_at("/Serial").unwrap_or_else(|| NO_SERIAL.into()),
            name: text_at("/CustomName").unwrap_or_else(|| product_name.clone()),
            product_name,
            reachable: true,
            producing: is_producing(service.value("/State").and_then(integer), power),
            last_update: at.wall.before(at.now.after(service.heard())).unix(),
            yield_power_w: power,
            yield_total_kwh: number_at("/Yield/System").unwrap_or(0.0),
            trackers: trackers(service.value("/NrOfTrackers").and_then(integer), power, number_at),
        };
        Some(Self { name: service.name().into(), device })
    }

    /// It may have come back under another name: plugged into another socket, say.
    fn is_same_device(&self, other: &Self) -> bool {
        self.device.serial == other.device.serial && self.device.serial != NO_SERIAL
    }
}

/// Bulk, absorption and float produce by definition; off and fault never do; what else there is does when power comes out of it.
fn is_producing(state: Option<i64>, power: f64) -> bool {
    match state {
        Some(3..=5) => true,
        Some(0 | 2) => false,
        _ => power > 0.0,
    }
}

fn trackers(count: Option<i64>, total: f64, number_at: impl Fn(&str) -> Option<f64>) -> Vec<Tracker> {
    let voltage_at = |path: &str| number_at(path).filter(|voltage| *voltage > 0.0);
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(1);
    if count <= 1 {
        let one = voltage_at("/Pv/V").map(|voltage| Tracker { tracker: 0, name: "PV".into(), voltage, power: total });
        return one.into_iter().collect();
    }
    let each = (0..count.min(limits::TRACKERS)).filter_map(|n| {
        let voltage = voltage_at(&format!("/Pv/{n}/V"))?;
        let power = number_at(&format!("/Pv/{n}/P")).unwrap_or(0.0);
        Some(Tracker { tracker: n, name: format!("PV-{}", n + 1), voltage, power })
    });
    each.collect()
}

/// What is not finite is no number.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Int(n) => Some(*n as f64),
        Value::UInt(n) => Some(*n as f64),
        Value::Double(d) => Some(*d).filter(|d| d.is_finite()),
        _ => None,
    }
}

/// Some services have their integers as doubles.
fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Int(n) => Some(*n),
        Value::Double(d) if d.fract() == 0.0 && d.abs() < 1e15 => Some(*d as i64),
        _ => None,
    }
}

/// Numbers are what some have for a serial.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Str(text) if !text.is_empty() => Some(text.chars().take(limits::NAME).collect()),
        Value::Int(n) => Some(n.to_string()),
        _ => None,
    }
}

/// One object with everything that the filters take.
fn values(portal: &str, filters: &[Filter], at: Moment, bridge: &Bridge) -> Option<Sample> {
    let mut services: Vec<ServiceView<'_>> = bridge.services().filter(|service| service.has_topics()).collect();
    services.sort_by(|a, b| (a.service_type(), a.instance()).cmp(&(b.service_type(), b.instance())));
    let mut body = Vec::new();
    let mut count = 0;
    for service in services {
        let (service_type, instance) = (service.service_type(), service.instance());
        let wanted = |path: &str| filters.iter().any(|filter| filter.matches(service_type, instance, path));
        for (path, value) in service.shown().filter(|(path, _)| wanted(path)) {
            body.push(if count == 0 { b'{' } else { b',' });
            body.extend(json(&format!("{service_type}/{instance}{path}")));
            body.push(b':');
            match value {
                Some(value) => value.write_json(&mut body),
                None => body.extend(json(&crate::bridge::MASK)),
            }
            count += 1;
            // too large in any case: no reason to fill the memory
            if body.len() > limits::MEASUREMENT {
                return Some(Sample { body, count: Count::Values(count) });
            }
        }
    }
    if count == 0 {
        return None;
    }
    let head = [b"{\"timestamp\":".as_slice(), &json(&at.wall.to_string()), b",\"portal_id\":", &json(&portal), b",\"values\":"].concat();
    Some(Sample { body: [&head, body.as_slice(), b"}}\n"].concat(), count: Count::Values(count) })
}

fn json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    // numbers, texts and structs of them always have a JSON form
    serde_json::to_vec(value).unwrap_or_default()
}

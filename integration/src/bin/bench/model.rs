//! The house the benchmark plays: 24 services, about 5,000 items with the paths, types and limits real ones have, 2,700 of them doubles that move.
//!
//! Generated, so that the benchmark needs no recording; always the same.

use std::sync::atomic::{AtomicI32, Ordering};

/// What an item holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Double(f64),
    Int(i32),
    Unsigned(u32),
    Word(u16),
    Text(String),
    /// An empty array: no value at the moment.
    Invalid,
}

#[derive(Clone, Debug)]
pub struct Item {
    pub path: String,
    pub value: Value,
    pub text: String,
    /// Min and Max, which only settings have here.
    pub limits: Option<(f64, f64)>,
}

pub struct Service {
    pub name: String,
    pub kind: &'static str,
    pub instance: i32,
    pub items: Vec<Item>,
    /// Its doubles change under load. Those of the settings do not: on a device they hardly ever do.
    pub moves: bool,
}

/// The service that hangs, leaves and returns: the largest with moving items.
pub const LEAVER: &str = "com.victronenergy.solarcharger.bench0";

/// The topic (below W/<portal>/ and N/<portal>/) of the write test.
pub const WRITTEN: &str = "battery/1/Dc/0/Power";

/// How many times all services are there (`--copies`), with other names and instances.
pub static COPIES: AtomicI32 = AtomicI32::new(1);

pub fn house() -> Vec<Service> {
    let mut all = one_house();
    for copy in 1..COPIES.load(Ordering::Relaxed) {
        for mut service in one_house() {
            service.name = format!("{}.copy{copy}", service.name);
            service.instance += 300 * copy;
            let instance = Value::Int(service.instance);
            service.items.iter_mut().filter(|item| item.path == "/DeviceInstance").for_each(|item| item.value = instance.clone());
            all.push(service);
        }
    }
    all
}

fn one_house() -> Vec<Service> {
    let mut house = vec![service("system", "", 0, system()), service("settings", "", 0, settings())];
    for n in 0..5 {
        house.push(service("solarcharger", &format!("bench{n}"), 270 + n, solarcharger()));
    }
    house.push(service("vebus", "bench0", 276, vebus()));
    for n in 0..3 {
        house.push(service("battery", &format!("bench{n}"), 1 + n, battery()));
    }
    house.push(service("grid", "bench0", 30, meter(&["Power", "Voltage", "Current", "Energy/Forward", "Energy/Reverse"])));
    for n in 0..2 {
        house.push(service("pvinverter", &format!("bench{n}"), 20 + n, meter(&["Power", "Voltage", "Current", "Energy/Forward"])));
    }
    for n in 0..4 {
        house.push(service("tank", &format!("bench{n}"), 3 + n, tank()));
    }
    for n in 0..4 {
        house.push(service("temperature", &format!("bench{n}"), 24 + n, temperature()));
    }
    house.push(service("alternator", "bench0", 279, alternator()));
    house.push(service("switch", "bench0", 50, switch()));
    house
}

fn service(kind: &'static str, suffix: &str, instance: i32, own: Items) -> Service {
    let mut items = Items::default();
    items.text("/Mgmt/ProcessName", "bench");
    items.text("/Mgmt/ProcessVersion", "1.0");
    items.text("/Mgmt/Connection", "VE.Direct port 1");
    items.text("/ProductName", "Simulated product");
    items.text("/Serial", &format!("HQ1234{instance:05}"));
    items.unsigned(&["/ProductId"]);
    items.int("/Connected", 1);
    items.int("/DeviceInstance", instance);
    items.0.extend(own.0);
    let dot = if suffix.is_empty() { "" } else { "." };
    Service { name: format!("com.victronenergy.{kind}{dot}{suffix}"), kind, instance, items: items.0, moves: kind != "settings" }
}

#[derive(Default)]
struct Items(Vec<Item>);

impl Items {
    fn add(&mut self, path: &str, value: Value, text: &str) {
        self.0.push(Item { path: path.to_owned(), value, text: text.to_owned(), limits: None });
    }

    fn limited(&mut self, path: &str, value: Value, limits: (f64, f64)) {
        let text = match &value {
            Value::Double(v) => format!("{v:.1}"),
            Value::Int(v) => v.to_string(),
            Value::Text(v) => v.clone(),
            Value::Unsigned(_) | Value::Word(_) | Value::Invalid => String::new(),
        };
        self.0.push(Item { path: path.to_owned(), value, text, limits: Some(limits) });
    }

    /// Doubles differ from path to path, with a fraction that prints long where the path is of a sensor.
    fn double(&mut self, path: &str) {
        let spread = path.bytes().fold(5381_u32, |hash, byte| hash.wrapping_mul(33) ^ u32::from(byte)) % 90_000;
        self.add(path, Value::Double(f64::from(spread) / 97.0), "12.50V");
    }

    fn doubles(&mut self, base: &str, names: &[&str]) {
        for name in names {
            self.double(&format!("{base}/{name}"));
        }
    }

    fn unsigned(&mut self, paths: &[&str]) {
        for path in paths {
            self.add(path, Value::Unsigned(path.len() as u32), "0x2A");
        }
    }

    fn int(&mut self, path: &str, value: i32) {
        self.add(path, Value::Int(value), &value.to_string());
    }

    fn text(&mut self, path: &str, text: &str) {
        self.add(path, Value::Text(text.to_owned()), text);
    }

    fn invalid(&mut self, paths: &[&str]) {
        for path in paths {
            self.add(path, Value::Invalid, "");
        }
    }
}

const LAST_ERRORS: [&str; 4] = ["LastError1", "LastError2", "LastError3", "LastError4"];

fn solarcharger() -> Items {
    let mut items = Items::default();
    let daily = [
        "Yield",
        "Consumption",
        "MaxPower",
        "MaxPvVoltage",
        "MinBatteryVoltage",
        "MaxBatteryVoltage",
        "MaxBatteryCurrent",
        "TimeInBulk",
        "TimeInAbsorption",
        "TimeInFloat",
        "Nr",
    ];
    for day in 0..31 {
        let base = format!("/History/Daily/{day}");
        items.doubles(&base, &daily);
        items.doubles(&base, &LAST_ERRORS);
    }
    items.doubles("/History/Overall", &["DaysAvailable", "MinBatteryVoltage", "MaxBatteryVoltage", "MaxPvVoltage"]);
    items.doubles("/History/Overall", &LAST_ERRORS);
    items.doubles("/Yield", &["System", "User", "Power"]);
    items.doubles("/Dc/0", &["Voltage", "Current"]);
    items.doubles("/Link", &["ChargeVoltage", "VoltageSense"]);
    for path in ["/Pv/V", "/Load/State", "/Settings/ChargeCurrentLimit"] {
        items.double(path);
    }
    items.unsigned(&[
        "/State",
        "/ErrorCode",
        "/Mode",
        "/MppOperationMode",
        "/DeviceOffReason",
        "/NrOfTrackers",
        "/GroupId",
        "/FirmwareVersion",
    ]);
    items.unsigned(&["/Capabilities/Capabilities1", "/Settings/BmsPresent", "/Devices/0/ProductId", "/Devices/0/FirmwareVersion"]);
    items.unsigned(&["/Link/TemperatureSenseActive", "/Link/VoltageSenseActive", "/Link/NetworkStatus", "/Link/NetworkMode"]);
    items.unsigned(&["/VEDirect/HexChecksumErrors", "/VEDirect/HexInvalidCharacterErrors", "/VEDirect/HexUnfinishedErrors"]);
    items.unsigned(&["/VEDirect/TextChecksumErrors", "/VEDirect/TextParseError", "/VEDirect/TextUnfinishedErrors"]);
    items.text("/CustomName", "Roof south");
    items.text("/Devices/0/CustomName", "Roof south");
    items.text("/Devices/0/ProductName", "SmartSolar Charger MPPT 150/35");
    items.text("/Devices/0/ServiceName", LEAVER);
    items.invalid(&["/HardwareVersion", "/Link/BatteryCurrent", "/Link/ChargeCurrent", "/Link/TemperatureSense", "/Devices/0/VregLink"]);
    items
}

fn vebus() -> Items {
    let mut items = Items::default();
    for side in ["ActiveIn", "Out"] {
        for phase in ["L1", "L2", "L3"] {
            items.doubles(&format!("/Ac/{side}/{phase}"), &["P", "I", "V", "F", "S"]);
        }
        items.doubles(&format!("/Ac/{side}"), &["P", "S", "CurrentLimit"]);
    }
    items.doubles("/Dc/0", &["Voltage", "Current", "Power", "MaxChargeCurrent", "Temperature"]);
    items.doubles("/Hub4/L1", &["AcPowerSetpoint", "MaxFeedInPower", "TargetPower", "ActivePower"]);
    let flows = ["AcIn1", "AcIn2", "AcOut", "Inverter"];
    for from in flows {
        for to in flows.into_iter().filter(|to| *to != from) {
            items.double(&format!("/Energy/{from}To{to}"));
        }
    }
    items.doubles("/State", &["OverruleSoc", "FloatVoltage"]);
    for phase in ["L1", "L2", "L3"] {
        items.unsigned(&[&format!("/Alarms/{phase}/Overload"), &format!("/Alarms/{phase}/LowBattery"), &format!("/Alarms/{phase}/Ripple")]);
        items.unsigned(&[&format!("/Alarms/{phase}/HighTemperature"), &format!("/Alarms/{phase}/InverterImbalance")]);
    }
    for sensor in 0..10 {
        for name in ["Current", "Energy", "Location", "Phase", "Power", "Voltage"] {
            items.invalid(&[&format!("/AcSensor/{sensor}/{name}")]);
        }
    }
    for path in ["/Leds/Absorption", "/Leds/Bulk", "/Leds/Float", "/Leds/Inverter", "/Leds/LowBattery", "/Leds/Mains", "/Leds/Overload"] {
        items.add(path, Value::Word(1), "On");
    }
    items.unsigned(&["/Mode", "/ModeIsAdjustable", "/VebusError", "/VebusChargeState", "/FirmwareVersion", "/Bms/AllowToCharge"]);
    items
}

fn battery() -> Items {
    let mut items = Items::default();
    items.doubles("/Dc/0", &["Voltage", "Current", "Power", "Temperature", "MidVoltage", "MidVoltageDeviation"]);
    let history = ["AutomaticSyncs", "AverageDischarge", "ChargeCycles", "ChargedEnergy", "DeepestDischarge", "DischargedEnergy"];
    items.doubles("/History", &history);
    let history = ["FullDischarges", "LastDischarge", "MaximumVoltage", "MinimumVoltage", "TimeSinceLastFullCharge", "TotalAhDrawn"];
    items.doubles("/History", &history);
    let history = ["HighVoltageAlarms", "LowVoltageAlarms", "HighStarterVoltageAlarms", "LowStarterVoltageAlarms", "MinimumStarterVoltage"];
    items.doubles("/History", &history);
    for path in ["/Soc", "/ConsumedAmphours", "/Dc/1/Voltage", "/History/MaximumStarterVoltage"] {
        items.double(path);
    }
    items.unsigned(&["/Alarms/LowVoltage", "/Alarms/HighVoltage", "/Alarms/LowSoc", "/Alarms/LowTemperature", "/Alarms/HighTemperature"]);
    items.unsigned(&[
        "/Alarms/LowStarterVoltage",
        "/Alarms/HighStarterVoltage",
        "/Alarms/MidVoltage",
        "/Relay/0/State",
        "/FirmwareVersion",
    ]);
    items.unsigned(&["/Settings/HasTemperature", "/Settings/HasMidVoltage", "/Settings/HasStarterVoltage"]);
    items.invalid(&["/Alarms/Alarm", "/TimeToGo", "/HardwareVersion"]);
    items
}

fn meter(per_phase: &[&str]) -> Items {
    let mut items = Items::default();
    for phase in ["L1", "L2", "L3"] {
        items.doubles(&format!("/Ac/{phase}"), per_phase);
    }
    items.doubles("/Ac", &["Power", "Energy/Forward", "Energy/Reverse"]);
    for path in ["/ErrorCode", "/Position", "/DeviceType", "/UpdateIndex"] {
        items.int(path, 0);
    }
    items
}

fn tank() -> Items {
    let mut items = Items::default();
    for path in ["/Level", "/Remaining", "/Capacity"] {
        items.double(path);
    }
    items.unsigned(&["/FluidType", "/N2kUniqueNumber"]);
    items.text("/CustomName", "Fresh water");
    items.invalid(&["/HardwareVersion"]);
    items
}

fn temperature() -> Items {
    let mut items = Items::default();
    for path in ["/Temperature", "/Humidity", "/Pressure", "/AccelX", "/AccelY", "/AccelZ", "/BatteryVoltage", "/TxPower"] {
        items.double(path);
    }
    items.int("/TemperatureType", 2);
    items.unsigned(&["/SeqNo"]);
    items.text("/CustomName", "Engine room");
    items.text("/DeviceName", "Ruuvi 4E5A");
    items
}

fn alternator() -> Items {
    let mut items = battery();
    for path in ["/FieldDrive", "/Dc/0/Ripple"] {
        items.double(path);
    }
    items.unsigned(&["/Speed", "/Engine/Speed", "/State", "/ErrorCode", "/Settings/RelayMode"]);
    items
}

fn switch() -> Items {
    let mut items = Items::default();
    for output in
        ["output_1", "output_2", "output_3", "output_4", "output_5", "output_6", "output_7", "pwm_1", "pwm_2", "pwm_3", "pwm_4", "relay_1"]
    {
        let base = format!("/SwitchableOutput/{output}");
        for name in [
            "State",
            "Status",
            "Settings/Type",
            "Settings/ValidTypes",
            "Settings/Function",
            "Settings/ValidFunctions",
            "Settings/ShowUIControl",
        ] {
            items.int(&format!("{base}/{name}"), 1);
        }
        for name in ["Name", "Settings/CustomName", "Settings/Group", "Settings/Labels", "Settings/Unit"] {
            items.text(&format!("{base}/{name}"), "Deck light");
        }
    }
    items
}

fn system() -> Items {
    let mut items = Items::default();
    for side in ["Consumption", "ConsumptionOnInput", "ConsumptionOnOutput", "Grid", "PvOnGrid", "PvOnOutput", "PvOnGenset", "Genset"] {
        for phase in ["L1", "L2", "L3"] {
            items.double(&format!("/Ac/{side}/{phase}/Power"));
        }
    }
    items.doubles("/Dc/Battery", &["Power", "Voltage", "Current", "Soc", "Temperature", "ConsumedAmphours", "TimeToGo"]);
    items.doubles("/Dc", &["Pv/Power", "Pv/Current", "System/Power", "Vebus/Power", "Vebus/Current", "Charger/Power"]);
    items
}

/// How many settings a device with a few integrations has.
const SETTINGS: usize = 1513;

fn settings() -> Items {
    let mut items = Items::default();
    for (n, generator) in ["Generator0", "Generator1", "FischerPanda0"].into_iter().enumerate() {
        for cause in ["AcLoad", "BatteryCurrent", "BatteryVoltage", "InverterHighTemp", "InverterOverload", "Soc"] {
            let base = format!("/Settings/{generator}/{cause}");
            for name in ["Enabled", "StartTimer", "StopTimer"] {
                items.limited(&format!("{base}/{name}"), Value::Int(n as i32), (0.0, 10000.0));
            }
            for name in ["StartValue", "StopValue", "QuietHoursStartValue", "QuietHoursStopValue"] {
                items.limited(&format!("{base}/{name}"), Value::Double(15.5), (0.0, 10000.0));
            }
        }
    }
    for schedule in 0..5 {
        for name in ["Day", "Start", "Duration", "Soc", "AllowDischarge"] {
            items.limited(&format!("/Settings/CGwacs/BatteryLife/Schedule/Charge/_{schedule}/{name}"), Value::Int(-1), (-1.0, 9.0));
        }
    }
    for kind in ["battery", "charger"] {
        for n in 0..16 {
            for sub in 0..2 {
                let base = format!("/Settings/SystemSetup/Batteries/Configuration/com_victronenergy_{kind}/_{n}/_{sub}");
                items.limited(&format!("{base}/Enabled"), Value::Int(1), (0.0, 1.0));
                items.limited(&format!("{base}/Name"), Value::Text(String::new()), (0.0, 0.0));
                items.limited(&format!("{base}/Service"), Value::Text(format!("com.victronenergy.{kind}/{n}/{sub}")), (0.0, 0.0));
            }
        }
    }
    for device in 0.. {
        let base = format!("/Settings/Devices/dev{device}");
        items.limited(&format!("{base}/ClassAndVrmInstance"), Value::Text(format!("solarcharger:{device}")), (0.0, 0.0));
        items.limited(&format!("{base}/CustomName"), Value::Text(String::new()), (0.0, 0.0));
        items.limited(&format!("{base}/Enabled"), Value::Int(1), (0.0, 1.0));
        items.limited(&format!("{base}/Filter"), Value::Double(0.5), (0.0, 1.0));
        items.limited(&format!("{base}/Calibration"), Value::Double(1.0), (0.0, 2.0));
        items.limited(&format!("{base}/Mode"), Value::Int(3), (0.0, 5.0));
        items.limited(&format!("{base}/AlarmLevel"), Value::Double(10.0), (0.0, 100.0));
        if items.0.len() >= SETTINGS {
            break;
        }
    }
    items.0.truncate(SETTINGS);
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_house_has_the_size_it_promises() {
        let house = house();
        assert_eq!(house.len(), 24);
        let items: usize = house.iter().map(|service| service.items.len()).sum();
        assert!((4_900..=5_100).contains(&items), "{items} items");
        let moving = house.iter().filter(|service| service.moves).flat_map(|service| &service.items);
        let moving = moving.filter(|item| matches!(item.value, Value::Double(_))).count();
        assert!((2_600..=2_800).contains(&moving), "{moving} moving items");
        let leaver = house.iter().find(|service| service.name == LEAVER).unwrap();
        assert!((515..=530).contains(&leaver.items.len()), "{} items leave", leaver.items.len());
    }

    #[test]
    fn paths_are_unique_and_valid_and_so_are_names_and_instances() {
        let mut names = HashSet::new();
        let mut topics = HashSet::new();
        for service in house() {
            assert!(names.insert(service.name.clone()), "{}", service.name);
            assert!(topics.insert((service.kind, service.instance)), "{}", service.name);
            let mut paths = HashSet::new();
            for item in &service.items {
                assert!(item.path.split('/').skip(1).all(|part| !part.is_empty()), "{}", item.path);
                assert!(paths.insert(&item.path), "{} {}", service.name, item.path);
            }
        }
    }

    #[test]
    fn the_written_item_is_a_double() {
        let found = house().iter().any(|service| {
            let base = format!("{}/{}", service.kind, service.instance);
            service.items.iter().any(|item| format!("{base}{}", item.path) == WRITTEN && matches!(item.value, Value::Double(_)))
        });
        assert!(found);
    }
}

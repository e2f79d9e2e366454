//! A small home on the simulated bus: how the values of its devices move.
//!
//! Promises: the energy adds up (grid + sun + battery = loads + losses), the battery's state of charge is the integral of its
//! power, and what clients write is obeyed at the next step: `/Mode` and the current limit of the inverter, the relays, the switches,
//! the car charger, the settings. Pure and repeatable: time comes in as a duration, chance from a seed of its own.
//! The demo's loop calls [`House::step`] and shows [`House::services`] on the bus.

use std::f64::consts::PI;
use std::time::Duration;

use crate::devices::{self, battery, car, carport, grid, solarcharger, switches, system, tank, temperature, vebus};
use crate::items::Items;
use crate::settings;

const CAPACITY_WH: f64 = 14_300.0;
const INVERTER_W: f64 = 5_000.0;
/// Of the inverter, each way.
const EFFICIENCY: f64 = 0.94;
pub const MAINS_V: f64 = 230.0;
const FRESH_L: f64 = 300.0;
const WASTE_L: f64 = 200.0;

/// What `/Mode` of a `vebus` service means.
const CHARGER_ONLY: i32 = 1;
const INVERTER_ONLY: i32 = 2;
pub const ON: i32 = 3;
const OFF: i32 = 4;

pub struct House {
    /// House hours per real hour.
    pace: f64,
    /// Hours since the midnight before the start.
    hours: f64,
    clouds: f64,
    chance: Chance,
    fridge_cools: bool,
    loads: [Load; 4],
    soc: f64,
    car_wh: f64,

    system: Items,
    settings: Items,
    vebus: Items,
    battery: Items,
    south: Items,
    west: Items,
    carport: Items,
    grid: Items,
    fresh: Items,
    waste: Items,
    outdoors: Items,
    fridge: Items,
    switches: Items,
    car: Items,
}

/// Something that runs now and then.
struct Load {
    watts: f64,
    per_hour: f64,
    hours: f64,
    left: f64,
}

impl House {
    /// `day`: how long a day of the house takes.
    pub fn new(portal_id: &str, day: Duration) -> Self {
        let mut house = Self {
            pace: 86_400.0 / day.as_secs_f64(),
            hours: 8.5,
            clouds: 0.2,
            chance: Chance(0x2545_f491_4f6c_dd1d),
            fridge_cools: false,
            loads: [
                Load { watts: 2_100.0, per_hour: 1.2, hours: 0.15, left: 0.0 }, // kettle and stove
                Load { watts: 900.0, per_hour: 0.25, hours: 1.2, left: 0.0 },   // washing machine
                Load { watts: 650.0, per_hour: 0.6, hours: 0.8, left: 0.4 },    // heat pump
                Load { watts: 180.0, per_hour: 0.5, hours: 2.0, left: 1.0 },    // lights, screens
            ],
            soc: 61.0,
            car_wh: 0.0,
            system: system(portal_id),
            settings: devices::settings(),
            vebus: vebus(),
            battery: battery(),
            south: solarcharger("com.victronenergy.solarcharger.ttyUSB1", 278, "Roof south", "SmartSolar Charger MPPT 250/70 rev2"),
            west: solarcharger("com.victronenergy.solarcharger.ttyUSB2", 279, "Roof west", "SmartSolar Charger MPPT 150/45"),
            carport: carport(),
            grid: grid(),
            fresh: tank("com.victronenergy.tank.adc_tank1", 21, "Fresh water", 1, FRESH_L, 72.0),
            waste: tank("com.victronenergy.tank.adc_tank2", 22, "Waste water", 2, WASTE_L, 31.0),
            outdoors: temperature("com.victronenergy.temperature.ruuvi_f00f00d00001", 24, "Outdoors", 4, 9.0, true),
            fridge: temperature("com.victronenergy.temperature.adc_temp1", 25, "Fridge", 1, 4.4, false),
            switches: switches(),
            car: car(),
        };
        house.number();
        house.step(Duration::ZERO);
        for service in house.services() {
            service.take_changes();
        }
        house
    }

    pub fn services(&mut self) -> [&mut Items; 14] {
        [
            &mut self.settings,
            &mut self.system,
            &mut self.vebus,
            &mut self.battery,
            &mut self.south,
            &mut self.west,
            &mut self.carport,
            &mut self.grid,
            &mut self.fresh,
            &mut self.waste,
            &mut self.outdoors,
            &mut self.fridge,
            &mut self.switches,
            &mut self.car,
        ]
    }

    /// Writes down in the settings which numbers are taken: whoever registers gets others. The house keeps its own.
    fn number(&mut self) {
        let place = |service: &mut Items| {
            let (class, id) = service.name.strip_prefix("com.victronenergy.")?.split_once('.')?;
            Some((settings::instance_path(id), format!("{class}:{}", service.number("/DeviceInstance"))))
        };
        let taken: Vec<_> = self.services().into_iter().filter_map(place).collect();
        for (path, instance) in taken {
            self.settings.text(path, &instance);
        }
    }

    /// Lets real time pass; a step of zero only applies what was written.
    pub fn step(&mut self, passed: Duration) {
        let hours = passed.as_secs_f64() / 3_600.0 * self.pace;
        self.hours += hours;
        self.weather(hours);
        let sun = self.sun();
        self.water(hours);
        self.cool(hours);
        let loads = self.loads(hours);
        let power = self.power(sun, loads);
        self.integrate(hours, &power);
        self.show(&power);
    }

    fn weather(&mut self, hours: f64) {
        self.clouds = (self.clouds + self.chance.around(0.9) * hours.sqrt()).clamp(0.05, 0.85);
        let day = self.hours % 24.0;
        let degrees = 9.0 + 7.0 * ((day - 9.0) / 24.0 * 2.0 * PI).sin() - 2.0 * self.clouds;
        self.outdoors.set("/Temperature", degrees);
        self.outdoors.set("/Humidity", 78.0 - 2.2 * (degrees - 9.0));
        self.outdoors.set("/Pressure", 1_013.0 - 12.0 * self.clouds);
    }

    /// What the sun gives on a square metre of each roof, 0 to 1: south, west, carport.
    fn sun(&mut self) -> [f64; 3] {
        let day = self.hours % 24.0;
        let clear = 1.0 - 0.8 * self.clouds;
        [12.2, 14.6, 12.8]
            .map(|peak: f64| ((1.0 - ((day - peak) / 6.5).powi(2)).max(0.0) * clear * (1.0 + self.chance.around(0.02))).max(0.0))
    }

    fn water(&mut self, hours: f64) {
        let day = self.hours % 24.0;
        let thirst = if (6.0..9.0).contains(&day) || (18.0..22.0).contains(&day) { 22.0 } else { 5.0 };
        let used = (thirst * hours * (1.0 + self.chance.around(0.8))).max(0.0);
        let pumped = if self.system.number("/Relay/0/State") == 1.0 { 600.0 * hours } else { 0.0 };
        let fresh = self.fresh.number("/Remaining") * 1_000.0;
        let emptied = self.waste.number("/Level") > 92.0;
        let waste = if emptied { 2.0 } else { self.waste.number("/Remaining") * 1_000.0 };
        fill(&mut self.fresh, fresh - used + pumped, FRESH_L);
        fill(&mut self.waste, waste + used.min(fresh) * 0.9, WASTE_L);
    }

    fn cool(&mut self, hours: f64) {
        let degrees = self.fridge.number("/Temperature");
        self.fridge_cools = if self.fridge_cools { degrees > 3.4 } else { degrees > 5.6 };
        let drift = if self.fridge_cools { -5.0 } else { 2.4 };
        self.fridge.set("/Temperature", degrees + (drift + self.chance.around(0.6)) * hours.min(0.4));
    }

    /// What is switched on behind the inverter: everything but the car, and the car.
    fn loads(&mut self, hours: f64) -> (f64, f64) {
        let mut watts = 210.0 + self.chance.around(12.0) + if self.fridge_cools { 95.0 } else { 0.0 };
        for load in &mut self.loads {
            load.left = (load.left - hours).max(0.0);
            if load.left == 0.0 && self.chance.unit() < load.per_hour * hours {
                load.left = load.hours;
            }
            if load.left > 0.0 {
                watts += load.watts * (1.0 + self.chance.around(0.02));
            }
        }
        watts += 1_200.0 * self.switches.number("/SwitchableOutput/output_1/State");
        let light = self.switches.number("/SwitchableOutput/output_2/State") * self.switches.number("/SwitchableOutput/output_2/Dimming");
        watts += 0.6 * light;
        let charging = self.car.number("/StartStop") == 1.0 && self.car_wh < 40_000.0;
        let car = if charging { self.car.number("/SetCurrent") * MAINS_V * (1.0 + self.chance.around(0.004)) } else { 0.0 };
        (watts, car)
    }

    fn power(&self, sun: [f64; 3], (loads, car): (f64, f64)) -> Power {
        let [south, west, carport] = sun;
        let mode = self.vebus.number("/Mode") as i32;
        let limit_w = self.vebus.number("/Ac/ActiveIn/CurrentLimit") * MAINS_V;
        let volts = 49.6 + 0.044 * self.soc;
        let charge_w = self.settings.number("/Settings/SystemSetup/MaxChargeCurrent") * volts;
        let room = if self.soc >= 99.9 { 0.0 } else { charge_w };
        let reserve =
            if self.soc <= self.settings.number("/Settings/CGwacs/BatteryLife/MinimumSocLimit") { 0.0 } else { -INVERTER_W / EFFICIENCY };

        let roof = 3_600.0 * south + 1_900.0 * west;
        let (loads, car) = if mode == OFF { (0.0, 0.0) } else { (loads, car) };
        let carport = if mode == INVERTER_ONLY { (2_400.0 * carport).min(loads + car) } else { 2_400.0 * carport };
        let needed = loads + car - carport;
        let wanted = match mode {
            OFF => 0.0,
            CHARGER_ONLY => -charge_w / EFFICIENCY,
            INVERTER_ONLY => needed,
            _ => needed - self.settings.number("/Settings/CGwacs/AcPowerSetPoint"),
        };
        // to the battery, before what the inverter does not manage; the roof gives less when nobody takes it
        let to_battery = (roof - dc(wanted)).clamp(reserve, room);
        let mut inverter = if mode == OFF { 0.0 } else { ac(roof - to_battery).clamp(-INVERTER_W, INVERTER_W) };
        if mode == INVERTER_ONLY {
            inverter = needed;
        } else if mode != OFF {
            // the input limit holds: the inverter assists, or charges less
            inverter = inverter.max(needed - limit_w).min(INVERTER_W);
        }
        let battery = (roof - dc(inverter)).min(room);
        let roof = battery + dc(inverter);
        let share = if south + west > 0.0 { 3_600.0 * south / (3_600.0 * south + 1_900.0 * west) } else { 0.5 };
        Power {
            mode,
            loads,
            car,
            south: roof.max(0.0) * share,
            west: roof.max(0.0) * (1.0 - share),
            carport,
            inverter,
            battery,
            grid: if mode == INVERTER_ONLY { 0.0 } else { needed - inverter },
        }
    }

    fn integrate(&mut self, hours: f64, power: &Power) {
        self.soc = (self.soc + power.battery * hours / CAPACITY_WH * 100.0).clamp(0.0, 100.0);
        self.car_wh = if self.car.number("/StartStop") == 1.0 { self.car_wh + power.car * hours } else { 0.0 };
        for (charger, watts) in [(&mut self.south, power.south), (&mut self.west, power.west)] {
            charger.add_to("/Yield/System", watts * hours / 1_000.0);
            charger.add_to("/History/Daily/0/Yield", watts * hours / 1_000.0);
        }
        self.carport.add_to("/Ac/Energy/Forward", power.carport * hours / 1_000.0);
        self.grid.add_to("/Ac/Energy/Forward", power.grid.max(0.0) * hours / 1_000.0);
        self.grid.add_to("/Ac/Energy/Reverse", (-power.grid).max(0.0) * hours / 1_000.0);
    }

    fn show(&mut self, power: &Power) {
        let volts = 49.6 + 0.044 * self.soc + power.battery / 9_000.0;
        let amps = power.battery / volts;
        let mains = MAINS_V + self.chance.around(1.2);
        self.show_battery(power, volts, amps);
        self.show_inverter(power, volts, mains);
        for (charger, watts, open) in [(&mut self.south, power.south, 118.0), (&mut self.west, power.west, 84.0)] {
            charger.set("/Yield/Power", watts);
            charger.set("/Pv/V", if watts > 0.0 { open + watts / 300.0 } else { 2.1 });
            charger.set("/Dc/0/Voltage", volts);
            charger.set("/Dc/0/Current", watts / volts);
            charger.set(
                "/State",
                if watts < 1.0 {
                    0.0
                } else if self.soc > 99.0 {
                    5.0
                } else {
                    3.0
                },
            );
        }
        for (meter, watts) in [(&mut self.grid, power.grid), (&mut self.carport, power.carport)] {
            meter.set("/Ac/Power", watts);
            meter.set("/Ac/L1/Power", watts);
            meter.set("/Ac/L1/Voltage", mains);
            meter.set("/Ac/L1/Current", watts / mains);
        }
        self.car.set("/Ac/Power", power.car);
        self.car.set("/Ac/L1/Power", power.car);
        self.car.set("/Current", power.car / mains);
        self.car.set("/Session/Energy", self.car_wh / 1_000.0);
        self.car.set(
            "/Status",
            if power.car > 0.0 {
                2.0
            } else if self.car_wh >= 40_000.0 {
                3.0
            } else {
                1.0
            },
        );
        self.show_system(power, volts, amps);
    }

    fn show_battery(&mut self, power: &Power, volts: f64, amps: f64) {
        let battery = &mut self.battery;
        battery.set("/Soc", self.soc);
        battery.set("/Dc/0/Voltage", volts);
        battery.set("/Dc/0/Current", amps);
        battery.set("/Dc/0/Power", power.battery);
        battery.set("/Dc/0/Temperature", 17.0 + power.battery.abs() / 900.0);
        battery.set("/ConsumedAmphours", -(100.0 - self.soc) / 100.0 * CAPACITY_WH / 51.2);
        // only a battery that is being emptied has a time to go
        let left = self.soc / 100.0 * CAPACITY_WH / -power.battery * 3_600.0;
        battery.set("/TimeToGo", if power.battery < -20.0 { (left / 60.0).round() * 60.0 } else { f64::NAN });
        battery.set("/Info/MaxChargeCurrent", if self.soc > 97.0 { 40.0 } else { 140.0 });
    }

    fn show_inverter(&mut self, power: &Power, volts: f64, mains: f64) {
        let vebus = &mut self.vebus;
        let out = power.loads + power.car;
        vebus.set("/Ac/ActiveIn/Connected", if matches!(power.mode, INVERTER_ONLY | OFF) { 0.0 } else { 1.0 });
        for (power_path, current_path, watts) in
            [("/Ac/ActiveIn/L1/P", "/Ac/ActiveIn/L1/I", out - power.inverter), ("/Ac/Out/L1/P", "/Ac/Out/L1/I", out)]
        {
            vebus.set(power_path, if power.mode == OFF { 0.0 } else { watts });
            vebus.set(current_path, if power.mode == OFF { 0.0 } else { watts / mains });
        }
        vebus.set("/Ac/ActiveIn/L1/V", mains);
        vebus.set("/Ac/Out/L1/V", if power.mode == OFF { 0.0 } else { mains });
        vebus.set("/Dc/0/Voltage", volts);
        vebus.set("/Dc/0/Current", -dc(power.inverter) / volts);
        vebus.set("/Dc/0/Power", -dc(power.inverter));
        // off, bulk, inverting, external control
        vebus.set(
            "/State",
            match power.mode {
                OFF => 0.0,
                CHARGER_ONLY => 3.0,
                INVERTER_ONLY => 9.0,
                _ => 252.0,
            },
        );
        vebus.set("/Leds/Mains", if power.mode == ON { 1.0 } else { 0.0 });
        vebus.set("/Leds/Inverter", if power.inverter > 0.0 { 1.0 } else { 0.0 });
    }

    fn show_system(&mut self, power: &Power, volts: f64, amps: f64) {
        let system = &mut self.system;
        system.set("/Dc/Battery/Soc", self.soc);
        system.set("/Dc/Battery/Voltage", volts);
        system.set("/Dc/Battery/Current", amps);
        system.set("/Dc/Battery/Power", power.battery);
        // idle, charging, discharging
        system.set(
            "/Dc/Battery/State",
            if power.battery > 30.0 {
                1.0
            } else if power.battery < -30.0 {
                2.0
            } else {
                0.0
            },
        );
        system.set("/Dc/Pv/Power", power.south + power.west);
        system.set("/Ac/PvOnGrid/L1/Power", power.carport);
        system.set("/Ac/Consumption/L1/Power", power.loads + power.car);
        system.set("/Ac/Grid/L1/Power", power.grid);
        system.set("/Ac/ActiveIn/Source", if matches!(power.mode, INVERTER_ONLY | OFF) { 240.0 } else { 1.0 });
        system.set("/SystemState/State", self.vebus.number("/State"));
    }
}

struct Power {
    mode: i32,
    loads: f64,
    car: f64,
    south: f64,
    west: f64,
    carport: f64,
    /// AC side; positive: to the loads.
    inverter: f64,
    /// DC; positive: charging.
    battery: f64,
    /// Positive: from the grid.
    grid: f64,
}

/// What the DC side gives for so much on the AC side, and the other way round.
fn dc(ac: f64) -> f64 {
    if ac > 0.0 { ac / EFFICIENCY } else { ac * EFFICIENCY }
}

fn ac(dc: f64) -> f64 {
    if dc > 0.0 { dc * EFFICIENCY } else { dc / EFFICIENCY }
}

fn fill(tank: &mut Items, litres: f64, capacity: f64) {
    let litres = litres.clamp(0.0, capacity);
    tank.set("/Remaining", litres / 1_000.0);
    tank.set("/Level", litres / capacity * 100.0);
}

/// xorshift: enough for clouds and kettles.
struct Chance(u64);

impl Chance {
    /// 0 to 1
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn around(&mut self, width: f64) -> f64 {
        (self.unit() - 0.5) * width
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::{ACCEPTED, Value};

    const SECOND: Duration = Duration::from_secs(1);

    fn house() -> House {
        House::new("c0619ab1c2d3", Duration::from_secs(600))
    }

    #[test]
    fn the_energy_adds_up_over_three_days() {
        let mut house = house();
        let (mut brightest, mut lowest) = (0.0_f64, 100.0_f64);
        for second in 0..1_800 {
            house.step(SECOND);
            let ac_in = house.system.number("/Ac/Grid/L1/Power") + house.system.number("/Ac/PvOnGrid/L1/Power");
            let used = house.system.number("/Ac/Consumption/L1/Power");
            let inverter = ac(-house.vebus.number("/Dc/0/Power"));
            assert!((ac_in + inverter - used).abs() < 10.0, "second {second}: {ac_in} + {inverter} != {used}");
            let roof = house.system.number("/Dc/Pv/Power");
            let battery = house.system.number("/Dc/Battery/Power");
            assert!((roof - battery + house.vebus.number("/Dc/0/Power")).abs() < 10.0, "second {second}: {roof} {battery}");
            brightest = brightest.max(roof);
            lowest = lowest.min(house.soc);
        }
        assert!(brightest > 1_500.0, "{brightest}");
        assert!((1.0..99.0).contains(&lowest), "{lowest}");
    }

    #[test]
    fn what_is_written_is_obeyed() {
        let mut house = house();
        assert_eq!(house.vebus.write("/Mode", Value::Int(OFF)), ACCEPTED);
        house.step(Duration::ZERO);
        assert_eq!(house.system.number("/Ac/Consumption/L1/Power"), 0.0);
        assert_eq!(house.vebus.number("/State"), 0.0);

        house.vebus.write("/Mode", Value::Int(INVERTER_ONLY));
        house.step(Duration::ZERO);
        assert_eq!(house.grid.number("/Ac/Power"), 0.0);

        house.vebus.write("/Mode", Value::Int(ON));
        house.vebus.write("/Ac/ActiveIn/CurrentLimit", Value::Double(4.0));
        house.car.write("/StartStop", Value::Int(1));
        house.car.write("/SetCurrent", Value::Int(16));
        house.step(Duration::ZERO);
        assert!(house.car.number("/Ac/Power") > 3_500.0);
        assert!(house.grid.number("/Ac/Power") <= 4.0 * MAINS_V + 1.0);
    }

    #[test]
    fn a_pump_fills_the_tank_and_the_day_empties_it() {
        let mut house = house();
        let level = |house: &House| house.fresh.number("/Level");
        let before = level(&house);
        (0..60).for_each(|_| house.step(SECOND));
        let used = level(&house);
        assert!(used < before);
        house.system.write("/Relay/0/State", Value::Int(1));
        (0..10).for_each(|_| house.step(SECOND));
        assert!(level(&house) > used);
    }

    #[test]
    fn the_numbers_of_the_house_are_taken() {
        let settings = house().settings;
        let taken = settings.get(&settings::instance_path("adc_temp1")).map(|item| item.value.clone());
        assert_eq!(taken, Some(Value::Text("temperature:25".into())));
    }

    #[test]
    fn no_number_ever_breaks() {
        let mut house = house();
        house.settings.write("/Settings/CGwacs/BatteryLife/MinimumSocLimit", Value::Double(0.0));
        house.vebus.write("/Mode", Value::Int(INVERTER_ONLY));
        for _ in 0..1_200 {
            house.step(SECOND);
            for service in house.services() {
                for (path, item) in service.iter() {
                    let finite = !matches!(item.value, Value::Double(number) if !number.is_finite());
                    assert!(finite, "{} {path} {:?}", service.name, item.value);
                }
            }
        }
    }
}

//! What stands in the simulated house: each service with its items, as such devices have them, before anything has moved.
//!
//! The items that [`house`](crate::house) moves start at 0 where nothing depends on their first value.

use crate::house::{MAINS_V, ON};
use crate::items::{Items, Style};

pub fn system(portal_id: &str) -> Items {
    let mut items = Items::new("com.victronenergy.system", Some(0), "GX device (simulated)");
    items.text("/Serial", portal_id);
    items.text("/ServiceMapping/com_victronenergy_vebus_276", "com.victronenergy.vebus.ttyS4");
    items.double("/Dc/Battery/Soc", "%", 1, 0.0);
    items.double("/Dc/Battery/Voltage", "V", 2, 0.0);
    items.double("/Dc/Battery/Current", "A", 1, 0.0);
    items.double("/Dc/Battery/Power", "W", 0, 0.0);
    items.int("/Dc/Battery/State", "", 0);
    items.double("/Dc/Pv/Power", "W", 0, 0.0);
    items.double("/Ac/PvOnGrid/L1/Power", "W", 0, 0.0);
    items.double("/Ac/Consumption/L1/Power", "W", 0, 0.0);
    items.int("/Ac/Consumption/NumberOfPhases", "", 1);
    items.double("/Ac/Grid/L1/Power", "W", 0, 0.0);
    items.int("/Ac/ActiveIn/Source", "", 1);
    items.int("/Relay/0/State", "", 0).limited(0.0, 1.0, None);
    items.int("/Relay/1/State", "", 0).limited(0.0, 1.0, None);
    items.int("/SystemState/State", "", 252);
    items
}

pub fn settings() -> Items {
    let mut items = Items::new("com.victronenergy.settings", None, "Settings");
    items.style = Style::Settings;
    items.double("/Settings/CGwacs/AcPowerSetPoint", "W", 0, 50.0).limited(-5_000.0, 5_000.0, Some(50.0));
    items.double("/Settings/CGwacs/BatteryLife/MinimumSocLimit", "%", 0, 20.0).limited(0.0, 100.0, Some(10.0));
    items.double("/Settings/SystemSetup/MaxChargeCurrent", "A", 0, 100.0).limited(0.0, 1_000.0, Some(100.0));
    items.text("/Settings/SystemSetup/SystemName", "The demo's house").writable();
    items.int("/Settings/Relay/Function", "", 2).limited(0.0, 5.0, Some(0.0));
    // its value must never be seen outside
    items.text("/Settings/Services/AccessPointPassword", "not-for-the-broker").writable();
    items
}

pub fn vebus() -> Items {
    let mut items = Items::new("com.victronenergy.vebus.ttyS4", Some(276), "MultiPlus-II 48/5000/70-50");
    items.int("/Mode", "", ON).limited(1.0, 4.0, None);
    items.int("/State", "", 252);
    items.int("/ProductId", "", 0x2626);
    items.double("/Ac/ActiveIn/CurrentLimit", "A", 1, 25.0).limited(0.0, 50.0, None);
    items.int("/Ac/ActiveIn/Connected", "", 1);
    for (path, unit, decimals) in [
        ("/Ac/ActiveIn/L1/V", "V", 1),
        ("/Ac/ActiveIn/L1/I", "A", 1),
        ("/Ac/ActiveIn/L1/P", "W", 0),
        ("/Ac/Out/L1/V", "V", 1),
        ("/Ac/Out/L1/I", "A", 1),
        ("/Ac/Out/L1/P", "W", 0),
        ("/Dc/0/Voltage", "V", 2),
        ("/Dc/0/Current", "A", 1),
        ("/Dc/0/Power", "W", 0),
    ] {
        items.double(path, unit, decimals, 0.0);
    }
    items.int("/Leds/Mains", "", 1);
    items.int("/Leds/Inverter", "", 0);
    items.int("/VebusError", "", 0);
    items
}

pub fn battery() -> Items {
    let mut items = Items::new("com.victronenergy.battery.ttyS7", Some(512), "SmartShunt 500A/50mV");
    items.text("/CustomName", "House battery").writable();
    items.double("/Soc", "%", 1, 0.0);
    items.double("/Dc/0/Voltage", "V", 2, 0.0);
    items.double("/Dc/0/Current", "A", 1, 0.0);
    items.double("/Dc/0/Power", "W", 0, 0.0);
    items.double("/Dc/0/Temperature", "°C", 1, 17.0);
    items.double("/ConsumedAmphours", "Ah", 1, 0.0);
    items.double("/TimeToGo", "s", 0, 0.0);
    items.double("/Info/MaxChargeCurrent", "A", 0, 140.0);
    items.int("/Alarms/LowSoc", "", 0);
    items.int("/History/ChargeCycles", "", 212);
    items
}

pub fn solarcharger(name: &'static str, instance: i32, custom: &str, product: &str) -> Items {
    let mut items = Items::new(name, Some(instance), product);
    items.text("/CustomName", custom).writable();
    items.text("/Serial", &format!("HQ22{instance}DEMO"));
    items.int("/Mode", "", 1).limited(1.0, 4.0, None);
    items.int("/State", "", 3);
    items.int("/NrOfTrackers", "", 1);
    items.double("/Pv/V", "V", 2, 0.0);
    items.double("/Yield/Power", "W", 0, 0.0);
    items.double("/Yield/System", "kWh", 3, 1_274.38);
    items.double("/History/Daily/0/Yield", "kWh", 3, 0.6);
    items.double("/Dc/0/Voltage", "V", 2, 0.0);
    items.double("/Dc/0/Current", "A", 1, 0.0);
    items.int("/ErrorCode", "", 0);
    items
}

pub fn carport() -> Items {
    let mut items = meter("com.victronenergy.pvinverter.pv_44_1520", 20, "Fronius Primo 3.0");
    items.style = Style::Older;
    items.text("/CustomName", "Carport").writable();
    items.int("/Position", "", 1).limited(0.0, 2.0, None);
    items.int("/StatusCode", "", 7);
    items
}

pub fn grid() -> Items {
    let mut items = meter("com.victronenergy.grid.cgwacs_ttyUSB0_di30_mb1", 30, "Grid meter");
    items.double("/Ac/Energy/Reverse", "kWh", 3, 5_093.1);
    items
}

fn meter(name: &'static str, instance: i32, product: &str) -> Items {
    let mut items = Items::new(name, Some(instance), product);
    items.double("/Ac/Power", "W", 0, 0.0);
    items.double("/Ac/L1/Power", "W", 0, 0.0);
    items.double("/Ac/L1/Voltage", "V", 1, MAINS_V);
    items.double("/Ac/L1/Current", "A", 2, 0.0);
    items.double("/Ac/Energy/Forward", "kWh", 3, 3_382.7);
    items
}

pub fn tank(name: &'static str, instance: i32, custom: &str, fluid: i32, litres: f64, level: f64) -> Items {
    let mut items = Items::new(name, Some(instance), "Tank sensor");
    items.text("/CustomName", custom).writable();
    items.int("/FluidType", "", fluid).limited(0.0, 11.0, None);
    items.double("/Capacity", "m3", 3, litres / 1_000.0).limited(0.0, 1_000.0, Some(0.2));
    items.double("/Level", "%", 2, level);
    items.double("/Remaining", "m3", 5, level / 100.0 * litres / 1_000.0);
    items.int("/Status", "", 0);
    items
}

pub fn temperature(name: &'static str, instance: i32, custom: &str, kind: i32, degrees: f64, weather: bool) -> Items {
    let mut items = Items::new(name, Some(instance), if weather { "Ruuvi" } else { "Temperature sensor" });
    items.text("/CustomName", custom).writable();
    items.int("/TemperatureType", "", kind).limited(0.0, 6.0, None);
    items.double("/Temperature", "°C", 2, degrees);
    if weather {
        items.double("/Humidity", "%", 1, 78.0);
        items.double("/Pressure", "hPa", 1, 1_013.0);
        items.double("/BatteryVoltage", "V", 2, 2.91);
    }
    items.int("/Status", "", 0);
    items
}

pub fn switches() -> Items {
    let mut items = Items::new("com.victronenergy.switch.shelly_demo_1", Some(50), "Shelly Plus 2PM");
    items.text("/SwitchableOutput/output_1/Name", "Water heater");
    items.int("/SwitchableOutput/output_1/State", "", 0).limited(0.0, 1.0, None);
    items.text("/SwitchableOutput/output_2/Name", "Garden light");
    items.int("/SwitchableOutput/output_2/State", "", 1).limited(0.0, 1.0, None);
    items.int("/SwitchableOutput/output_2/Dimming", "%", 80).limited(0.0, 100.0, None);
    items
}

pub fn car() -> Items {
    let mut items = Items::new("com.victronenergy.evcharger.evcs_HQ2309DEMO", Some(40), "EV Charging Station");
    items.int("/StartStop", "", 0).limited(0.0, 1.0, None);
    items.int("/Mode", "", 0).limited(0.0, 2.0, None);
    items.int("/SetCurrent", "A", 10).limited(6.0, 32.0, None);
    items.int("/Status", "", 1);
    items.double("/Current", "A", 1, 0.0);
    items.double("/Ac/Power", "W", 0, 0.0);
    items.double("/Ac/L1/Power", "W", 0, 0.0);
    items.double("/Session/Energy", "kWh", 2, 0.0);
    items
}

//! Section 7: measurements over HTTP. One file for each part of it.

mod answers;
mod backends;
mod command;
mod disk;
mod kills;
mod lines;
mod outage;
mod process;
mod shape;
mod status;

use venus_mqtt_integration::{Backend, DEADLINE, Items, Part, Request, Rig, Setup, eventually, item, items};

/// The solar charger that most scenarios are content with.
const CHARGER: &str = "com.victronenergy.solarcharger.ttyO1";
const SERIAL: &str = "HQ2208AXN7V";
/// A second one.
const OTHER: &str = "com.victronenergy.solarcharger.ttyO2";
const OTHER_SERIAL: &str = "HQ22377MQDC";

/// Ten measurements a second, and nothing that slows them down.
const FAST: &str = "update_interval = 0.1\ncatch_up_rate = 1000\n";

fn charger() -> Items {
    items([
        ("/DeviceInstance", item(281)),
        ("/Serial", item(SERIAL)),
        ("/CustomName", item("PV Carport")),
        ("/ProductName", item("BlueSolar Charger MPPT 150/45 rev3")),
        ("/State", item(3)),
        ("/Yield/Power", item(16.38)),
        ("/Yield/System", item(1274.38)),
        ("/Pv/V", item(62.55)),
    ])
}

fn other() -> Items {
    items([("/DeviceInstance", item(280)), ("/Serial", item(OTHER_SERIAL)), ("/Yield/Power", item(0.0))])
}

/// The bridge runs, with one charger on the bus.
fn running(setup: Setup) -> Rig {
    let mut rig = Rig::new(setup);
    rig.fake().add(CHARGER, charger());
    rig.start_bridge();
    rig
}

/// The same, with a backend that it posts to: for scenarios that run both ways.
fn running_with(rig: &mut Rig, more: &str) -> Backend {
    let backend = Backend::on(rig.host());
    rig.configure(rig.setup().clone().http(&backend.section(more)));
    rig.fake().add(CHARGER, charger());
    rig.start_bridge();
    backend
}

/// Lines of the bridge's log with `text`.
fn said(rig: &Rig, text: &str) -> Vec<String> {
    rig.log(Part::Bridge).lines().filter(|line| line.contains(text)).map(ToOwned::to_owned).collect()
}

/// The stamps that the bridge says it has measured for a target, in order. A line that is still being written is none.
fn measured(rig: &Rig, target: &str) -> Vec<String> {
    let start = format!("http {target}: measured ");
    let log = rig.log(Part::Bridge);
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| Some(line.split_once(&start)?.1.to_owned())).collect()
}

/// Waits until so many more measurements were taken than now.
fn await_measured(rig: &Rig, more: usize) -> Vec<String> {
    let wanted = measured(rig, "1").len() + more;
    eventually(&format!("{more} more measurements"), DEADLINE, || {
        let stamps = measured(rig, "1");
        (stamps.len() >= wanted).then_some(stamps)
    })
}

/// Waits until the backend has taken everything that was measured so far; everything it has taken, in the order it came first.
fn await_all(rig: &Rig, backend: &Backend) -> Vec<String> {
    let wanted = measured(rig, "1");
    backend.wait(&format!("all {} measurements", wanted.len()), DEADLINE, |requests| {
        let stamps = firsts(requests);
        wanted.iter().all(|stamp| stamps.contains(stamp)).then_some(stamps)
    })
}

/// The stamps of what was taken, each where it came first.
fn firsts(requests: &[Request]) -> Vec<String> {
    let mut stamps: Vec<String> = Vec::new();
    for request in requests.iter().filter(|request| request.delivered()) {
        let stamp = request.stamp();
        if !stamps.contains(&stamp) {
            stamps.push(stamp);
        }
    }
    stamps
}

fn assert_in_order(stamps: &[String]) {
    assert!(stamps.is_sorted(), "not in the order of time: {stamps:#?}");
}

/// No stamp twice.
fn assert_once(requests: &[Request]) {
    let delivered: Vec<String> = requests.iter().filter(|request| request.delivered()).map(Request::stamp).collect();
    let mut unique = delivered.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(delivered.len(), unique.len(), "some came twice: {delivered:#?}");
}

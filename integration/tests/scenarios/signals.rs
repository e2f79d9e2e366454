//! Signals in every phase of the process: a stop always wins over a reload, and no reload is lost.

use std::time::{Duration, Instant};

use venus_mqtt_integration::{
    DEADLINE, Ended, Part, Rig, Setup, eventually,
    parts::{Signal, Signal::*},
};

use crate::{BATTERY, battery};

/// The line at the beginning of a reload.
const RELOADS: &str = "told to start again with the configuration as it is now";

fn rig() -> Rig {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    rig
}

fn count(rig: &Rig, line: &str) -> usize {
    rig.log(Part::Bridge).matches(line).count()
}

/// Another configuration in the file: the status topic shows which one is in effect.
fn write(rig: &mut Rig, prefix: &str) {
    rig.configure(Setup::default().prefix(prefix));
}

/// The one in the file is.
fn await_online(rig: &Rig) {
    rig.listener().expect(&rig.status_topic(), "online");
}

fn send(rig: &mut Rig, signals: &[Signal]) {
    for &signal in signals {
        rig.signal(Part::Bridge, signal);
    }
}

/// Waits until the process handles the signals, which it does before it reads its configuration.
fn await_handlers(rig: &Rig) {
    let status = format!("/proc/{}/status", rig.pid(Part::Bridge));
    eventually("the handlers are there", DEADLINE, || {
        let status = std::fs::read_to_string(&status).ok()?;
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
        [SIGHUP, SIGUSR1, SIGINT, SIGTERM].iter().all(|&signal| mask >> (signal as i32 - 1) & 1 == 1).then_some(())
    });
}

both! {
    fn a_stop_wins_over_a_reload_that_waits_for_the_broker(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        rig.start_bridge();
        rig.pause(Part::Broker);
        rig.signal(Part::Bridge, SIGHUP);
        rig.await_log(Part::Bridge, RELOADS);
        let asked = Instant::now();
        rig.signal(Part::Bridge, SIGTERM);
        rig.await_log(Part::Bridge, "told to stop");
        rig.resume(Part::Broker);
        assert_eq!(rig.ended(Part::Bridge), Ended::Code(0));
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        rig.listener().expect(&rig.status_topic(), "offline");
    }
}

/// The times are those of a reload: most of it takes some 10 ms, and with a broker that hangs 2 s.
#[test]
fn a_stop_wins_whenever_it_comes() {
    let mut rig = rig();
    for n in 0..24 {
        let hangs = n % 6 == 5;
        if hangs {
            rig.pause(Part::Broker);
        }
        rig.signal(Part::Bridge, SIGHUP);
        std::thread::sleep(Duration::from_millis(n * n * 3));
        let asked = Instant::now();
        rig.signal(Part::Bridge, if n % 2 == 0 { SIGTERM } else { SIGINT });
        assert_eq!(rig.ended(Part::Bridge), Ended::Code(0), "{n}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{n}: {:?}", asked.elapsed());
        if hangs {
            rig.resume(Part::Broker);
        }
        rig.listener().expect(&rig.status_topic(), "offline");
        rig.start_bridge();
    }
}

#[test]
fn a_stop_wins_in_any_order_of_signals_at_once() {
    let mut rig = rig();
    for signals in [&[SIGHUP, SIGTERM][..], &[SIGTERM, SIGHUP], &[SIGUSR1, SIGHUP, SIGINT, SIGHUP], &[SIGINT, SIGTERM, SIGUSR1, SIGHUP]] {
        let reloads = count(&rig, RELOADS);
        rig.pause(Part::Bridge);
        send(&mut rig, signals);
        rig.resume(Part::Bridge);
        assert_eq!(rig.ended(Part::Bridge), Ended::Code(0), "{signals:?}");
        assert_eq!(count(&rig, RELOADS), reloads, "{signals:?}");
        rig.start_bridge();
    }
}

/// What would be exit code 75 by itself.
#[test]
fn a_stop_wins_over_a_bus_that_is_gone() {
    let mut rig = rig();
    rig.pause(Part::Bridge);
    rig.kill(Part::Bus);
    rig.signal(Part::Bridge, SIGTERM);
    rig.resume(Part::Bridge);
    assert_eq!(rig.ended(Part::Bridge), Ended::Code(0));
}

#[test]
fn a_reload_is_ignored_while_it_stops() {
    let mut rig = rig();
    rig.pause(Part::Broker);
    rig.signal(Part::Bridge, SIGTERM);
    rig.await_log(Part::Bridge, "told to stop");
    send(&mut rig, &[SIGHUP, SIGUSR1]);
    assert_eq!(rig.ended(Part::Bridge), Ended::Code(0));
    assert_eq!(count(&rig, RELOADS), 0);
    rig.resume(Part::Broker);
}

/// The second one finds the first under way: what it stands for is in effect at the end.
#[test]
fn a_reload_during_a_reload_is_one_more() {
    let mut rig = rig();
    rig.pause(Part::Broker);
    write(&mut rig, "first");
    rig.signal(Part::Bridge, SIGHUP);
    rig.await_log(Part::Bridge, RELOADS);
    write(&mut rig, "second");
    rig.signal(Part::Bridge, SIGHUP);
    rig.resume(Part::Broker);
    await_online(&rig);
    assert_eq!(count(&rig, RELOADS), 2);
}

/// A wrong configuration between the two costs neither of the others.
#[test]
fn a_reload_with_a_wrong_configuration_during_a_reload() {
    let mut rig = rig();
    rig.pause(Part::Broker);
    write(&mut rig, "first");
    rig.signal(Part::Bridge, SIGHUP);
    rig.await_log(Part::Bridge, RELOADS);
    let right = std::fs::read(rig.config()).expect("written");
    std::fs::write(rig.config(), "wrong [").expect("written");
    rig.signal(Part::Bridge, SIGHUP);
    rig.resume(Part::Broker);
    rig.await_log(Part::Bridge, "the configuration is not used: going on with the one before");
    std::fs::write(rig.config(), right).expect("written");
    await_online(&rig);
    assert!(rig.runs(Part::Bridge));
}

#[test]
fn many_reloads_end_with_the_last_configuration() {
    let mut rig = rig();
    for n in 0..60 {
        if n % 4 == 0 {
            write(&mut rig, &format!("v{n}"));
        }
        rig.signal(Part::Bridge, SIGHUP);
        std::thread::sleep(Duration::from_millis(n % 10 * 4));
    }
    write(&mut rig, "last");
    rig.signal(Part::Bridge, SIGHUP);
    await_online(&rig);
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
}

/// The daemon waits for the bus in a reload.
#[test]
fn signals_while_the_bus_hangs() {
    let mut rig = rig();
    let listener = rig.listener();
    listener.expect(&rig.status_topic(), "online");
    listener.mark();
    rig.pause(Part::Bus);
    rig.signal(Part::Bridge, SIGHUP);
    listener.expect(&rig.status_topic(), "offline");
    write(&mut rig, "second");
    send(&mut rig, &[SIGHUP, SIGUSR1]);
    rig.resume(Part::Bus);
    await_online(&rig);
    rig.await_log(Part::Bridge, "since the start: ");
    assert_eq!(count(&rig, RELOADS), 2);

    listener.mark();
    rig.pause(Part::Bus);
    rig.signal(Part::Bridge, SIGHUP);
    listener.expect(&rig.status_topic(), "offline");
    let asked = Instant::now();
    rig.signal(Part::Bridge, SIGTERM);
    assert_eq!(rig.ended(Part::Bridge), Ended::Code(0));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    rig.resume(Part::Bus);
}

/// So it does at its start, before it has said anything.
#[test]
fn signals_from_the_start() {
    let mut rig = Rig::new(Setup::default());
    rig.pause(Part::Bus);
    rig.start(Part::Bridge);
    await_handlers(&rig);
    rig.signal(Part::Bridge, SIGTERM);
    assert_eq!(rig.ended(Part::Bridge), Ended::Code(0));

    rig.start(Part::Bridge);
    await_handlers(&rig);
    send(&mut rig, &[SIGHUP, SIGUSR1]);
    write(&mut rig, "second");
    rig.resume(Part::Bus);
    await_online(&rig);
    rig.await_log(Part::Bridge, "since the start: ");
}

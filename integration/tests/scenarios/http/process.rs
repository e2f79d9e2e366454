//! Measurements and the rest of the process: the broker, the bus, signals, the clock.

use std::time::Duration;

use venus_mqtt_integration::{Answer, Backend, DEADLINE, Ended, Part, Rig, Setup, eventually, parts::Signal};

use super::{CHARGER, FAST, assert_in_order, assert_once, await_all, await_measured, charger, measured, running, said};

both! {
    /// The broker has nothing to do with it: not when it is away from the start, not when it goes.
    fn without_a_broker(rig in Setup::default()) {
        let backend = Backend::on(rig.host());
        rig.configure(rig.setup().clone().http(&backend.section(FAST)));
        rig.fake().add(CHARGER, charger());
        rig.kill(Part::Broker);
        rig.start(Part::Bridge);
        backend.await_delivered(5);
        rig.start(Part::Broker);
        rig.await_log(Part::Bridge, "connected to the broker");
        let so_far = backend.delivered().len();
        backend.await_delivered(so_far + 5);
        rig.kill(Part::Broker);
        let so_far = backend.delivered().len();
        backend.await_delivered(so_far + 10);
        assert_once(&backend.requests());
    }
}

/// The bus restarts, and the bridge with it: what waits is not lost.
#[test]
fn the_bus_restarts() {
    let backend = Backend::start();
    let mut rig = running(Setup::default().http(&backend.section(FAST)));
    backend.await_delivered(2);
    backend.down();
    await_measured(&rig, 5);
    rig.restart_bus();
    assert_eq!(rig.ended(Part::Bridge), Ended::Code(75));
    rig.fake().add(CHARGER, charger());
    rig.start_bridge();
    await_measured(&rig, 3);
    backend.up();
    assert_in_order(&await_all(&rig, &backend));
    assert_once(&backend.requests());
}

#[test]
fn sigusr1_says_how_it_is() {
    let (good, down) = (Backend::start(), Backend::start());
    down.down();
    let setup = Setup::default().top("log_level = \"info\"");
    let mut rig =
        running(setup.http(&good.section(&format!("{FAST}name = \"good\""))).http(&down.section(&format!("{FAST}name = \"down\""))));
    good.await_delivered(5);
    rig.await_log(Part::Bridge, "warn: http down: ");
    rig.signal(Part::Bridge, Signal::SIGUSR1);
    let line = rig.await_log(Part::Bridge, "last success never");
    assert!(line.contains("http down: ") && line.contains("waiting") && line.contains("0 delivered"), "{line}");
    let line = eventually("the other one", DEADLINE, || said(&rig, "last success").into_iter().find(|line| line.contains("http good: ")));
    assert!(line.contains("delivering") && line.contains(" 0 dropped"), "{line}");
}

/// At `info` the log is quiet: what is not a change is not said.
#[test]
fn quiet() {
    let backend = Backend::start();
    let rig = running(Setup::default().top("log_level = \"info\"").http(&backend.section(FAST)));
    backend.await_delivered(50);
    let lines = said(&rig, "http 1: ");
    assert!(lines.len() <= 2, "{lines:#?}");
}

/// Another configuration at SIGHUP: targets come and go, what waits stays with its own.
#[test]
fn sighup() {
    let (first, second) = (Backend::start(), Backend::start());
    first.down();
    let section = |backend: &Backend, name: &str| backend.section(&format!("{FAST}name = \"{name}\""));
    let mut rig = running(Setup::default().http(&section(&first, "a")));
    eventually("a few", DEADLINE, || (measured(&rig, "a").len() >= 5).then_some(()));
    rig.configure(Setup::default().http(&section(&second, "b")));
    rig.signal(Part::Bridge, Signal::SIGHUP);
    second.await_delivered(3);
    let waiting = measured(&rig, "a");
    first.up();
    assert!(first.requests().is_empty());
    rig.configure(Setup::default().http(&section(&second, "b")).http(&section(&first, "a")));
    rig.signal(Part::Bridge, Signal::SIGHUP);
    first.wait("what waited", DEADLINE, |requests| {
        let stamps = super::firsts(requests);
        waiting.iter().all(|stamp| stamps.contains(stamp)).then_some(())
    });
    assert_once(&second.requests());
}

/// Told again and again to read its configuration: nothing is lost, and nothing comes twice.
#[test]
fn sighup_under_load() {
    let backend = Backend::start();
    backend.answer(Answer::Slow(Duration::from_millis(20)));
    let mut rig = running(Setup::default().http(&backend.section("update_interval = 0.05\ncatch_up_rate = 1000")));
    for _ in 0..10 {
        await_measured(&rig, 4);
        rig.signal(Part::Bridge, Signal::SIGHUP);
    }
    await_measured(&rig, 4);
    assert_in_order(&await_all(&rig, &backend));
    assert_once(&backend.requests());
    let troubles: Vec<_> = said(&rig, "http 1: ").into_iter().filter(|line| line.starts_with("warn:")).collect();
    assert_eq!(troubles, [""; 0]);
}

/// While an answer is waited for that does not come: the new configuration does not wait for it, and the queue is its own at once.
#[test]
fn sighup_while_a_backend_hangs() {
    let backend = Backend::start();
    backend.answer(Answer::Hang);
    let mut rig = running(Setup::default().http(&backend.section(&format!("{FAST}timeout = 300\nconnect_timeout = 300"))));
    let first = backend.await_requests(1)[0].stamp();
    backend.answer(Answer::Api);
    rig.signal(Part::Bridge, Signal::SIGHUP);
    assert_eq!(backend.await_delivered(1)[0].stamp(), first);
    assert_in_order(&await_all(&rig, &backend));
    assert_once(&backend.requests());
    let troubles: Vec<_> = said(&rig, "http 1: ").into_iter().filter(|line| line.starts_with("warn:")).collect();
    assert_eq!(troubles, [""; 0]);
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
}

/// Nobody would know when it was: until the clock is set nothing is measured, and then everything is.
#[test]
fn before_the_clock_is_set() {
    let backend = Backend::start();
    let rig = running(Setup::default().clock("@2019-06-01 00:00:00").http(&backend.section(FAST)));
    let line = rig.await_log(Part::Bridge, "the clock is not set");
    assert!(line.contains("2019-0"), "{line}");
    rig.set_clock("+0");
    let requests = backend.await_delivered(5);
    for request in &requests {
        assert!(request.stamp().as_str() > "2025", "{}", request.stamp());
    }
    assert_in_order(&super::firsts(&requests));
    assert_eq!(said(&rig, "the clock is not set").len(), 1);
    assert_eq!(said(&rig, "the clock is set now").len(), 1);
}

/// The clock goes back by a day while measurements wait: the order is that in which they were made.
#[test]
fn the_clock_goes_back() {
    let backend = Backend::start();
    backend.down();
    let rig = running(Setup::default().clock("+0").http(&backend.section(FAST)));
    let before = await_measured(&rig, 5);
    rig.set_clock("-1d");
    let earlier = eventually("one of yesterday", DEADLINE, || measured(&rig, "1").into_iter().find(|stamp| *stamp < before[0]));
    await_measured(&rig, 3);
    backend.up();
    let stamps = await_all(&rig, &backend);
    assert_eq!(stamps[..before.len()], before[..]);
    assert!(stamps.contains(&earlier));
}

/// Years of measurements leave nothing behind in memory or among the descriptors: as far as a minute of them shows it.
#[test]
fn nothing_grows() {
    let backend = Backend::start();
    let mut rig =
        Rig::new(Setup::default().http(&backend.section("update_interval = 0.05\ncatch_up_rate = 1000")).top("log_level = \"info\""));
    rig.fake().add(CHARGER, charger());
    rig.start_bridge();
    backend.await_delivered(50);
    let (rss, files) = (rig.rss(Part::Bridge), rig.open_files(Part::Bridge));
    backend.await_delivered(250);
    let grown = rig.rss(Part::Bridge).saturating_sub(rss);
    assert!(grown < 1024, "{grown} KiB in 200 measurements");
    assert!(rig.open_files(Part::Bridge) <= files + 1, "{files} open files became {}", rig.open_files(Part::Bridge));
}

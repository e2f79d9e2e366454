//! A device that dies: nobody goes on with its last value, however it died, and a restart of the daemon loses none that is wanted.

use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use venus_mqtt_integration::{DEADLINE, Device, Ended, Part, Rig, Setup, device::name, eventually, parts::Signal};

use super::{monitor::Monitor, running};

const METER: &str = r#"{"g1": "grid", "t1": "temperature"}"#;

/// A grid meter of 3000 W with a temperature sensor, and who adds up.
fn meter(rig: &Rig, more: &str) -> (Device, Monitor) {
    let device = Device::connect(rig, "m");
    device.register_as(&format!(r#"{{"clientId": "m", "connected": 1, "services": {METER}{more}}}"#));
    let monitor = Monitor::start(rig, "grid", "/Ac/Power");
    device.proxy(r#"{"g1": {"Ac/Power": 3000}, "t1": {"Temperature": 20}}"#);
    monitor.await_line("sum 3000");
    (device, monitor)
}

/// The broker has given the bridge up, and the bridge cannot reach it.
fn lose_the_broker(rig: &mut Rig) {
    let watcher = rig.client();
    watcher.subscribe(&rig.status_topic());
    rig.cut_off();
    watcher.expect(&rig.status_topic(), "offline");
}

/// What is shown of the meter itself.
fn shown(rig: &Rig, path: &str) -> String {
    rig.fake().shown(&name("grid", "m", "g1"), path)
}

#[test]
fn a_meter_that_falls_silent() {
    for (option, status) in [("stale_after = 2", ""), ("stale_after = 0", r#", "timeout": 2"#)] {
        let rig = running(Setup::devices().device(option));
        let (device, monitor) = meter(&rig, status);
        monitor.await_sum("none");
        rig.fake().await_shown(&name("grid", "m", "g1"), "/Connected", "i 0");
        assert_eq!((shown(&rig, "/CustomName"), shown(&rig, "/DeviceInstance")), ("s \"My Grid Meter\"".into(), "i 1".into()));
        rig.await_log(Part::Bridge, "device m is silent");
        // the next value brings it back, by itself
        device.mqtt.write("grid/1/Ac/Power", r#"{"value": 100}"#);
        monitor.await_line("sum 100");
        rig.await_log(Part::Bridge, "device m is heard of again: g1");
        assert!(!monitor.lines().iter().any(|line| line.starts_with("gone")), "{:?}", monitor.lines());
    }
}

#[test]
fn a_meter_that_leaves_when_it_falls_silent() {
    let rig = running(Setup::devices().device("stale_after = { grid = 2 }").device("stale = \"leave\""));
    let (device, monitor) = meter(&rig, "");
    let grid = name("grid", "m", "g1");
    for n in 1..=3 {
        monitor.await_sum("none");
        rig.fake().await_no_name(&grid);
        assert!(rig.fake().owner_of(&name("temperature", "m", "t1")).is_some());
        monitor.mark();
        // whatever comes is not lost, and is there when the service is
        match n {
            1 => device.proxy(r#"{"g1": {"Ac/Power": 1000}}"#),
            2 => device.mqtt.write("grid/1/Ac/Power", r#"{"value": 2000}"#),
            _ => drop(device.register(METER)),
        }
        rig.fake().await_name(&grid);
        let value = if n < 3 { format!("{n}000") } else { "none".into() };
        monitor.await_line(&format!("there {grid} {value}"));
    }
    // a value once more, of which nothing is left when the device is gone
    device.mqtt.write("grid/1/Ac/Power", r#"{"value": 4000}"#);
    monitor.await_line("sum 4000");
    device.vanish();
    monitor.await_sum("none");
}

/// The sensor of the same device goes on talking.
#[test]
fn a_meter_that_falls_silent_beside_a_sensor() {
    let rig = running(Setup::devices().device("stale_after = { default = 60, grid = 2 }"));
    let (device, monitor) = meter(&rig, "");
    let sensor = name("temperature", "m", "t1");
    let mut warmer = 20;
    let since = Instant::now();
    while monitor.sum().as_deref() != Some("sum none") {
        assert!(since.elapsed() < DEADLINE, "{:?}", monitor.lines());
        warmer += 1;
        device.proxy(format!(r#"{{"t1": {{"Temperature": {warmer}}}}}"#));
        rig.fake().await_shown(&sensor, "/Temperature", &format!("d {warmer}.0"));
        sleep(Duration::from_millis(100));
    }
    assert_eq!((shown(&rig, "/Connected"), rig.fake().shown(&sensor, "/Connected")), ("i 0".into(), "i 1".into()));
}

/// The device's last will, while we hear it, and while we do not.
#[test]
fn a_meter_that_dies() {
    let mut rig = running(Setup::devices().device("stale_after = 2").mqtt("keep_alive = 1").proxied());
    let (device, monitor) = meter(&rig, "");
    device.vanish();
    monitor.await_line(&format!("gone {}", name("grid", "m", "g1")));
    monitor.await_sum("none");
    // now its will comes while our own connection is down: nobody ever tells us
    let (device, monitor) = meter(&rig, "");
    let watcher = rig.client();
    watcher.subscribe("device/m/Status");
    lose_the_broker(&mut rig);
    device.vanish();
    watcher.wait_for("its last will", |message| message.text().contains("\"connected\":0"));
    rig.reconnect();
    monitor.await_sum("none");
    rig.await_log(Part::Bridge, "connected to the broker again: 1 registered devices leave if nothing is heard of them within 300 s");
}

/// A will that is retained on a topic of its own is found at the reconnect.
#[test]
fn a_meter_whose_will_is_retained() {
    let mut rig = running(Setup::devices().mqtt("keep_alive = 1").proxied());
    let (device, monitor) = meter(&rig, r#", "lwt_topic": "tele/meter/LWT", "lwt_value": "Offline""#);
    lose_the_broker(&mut rig);
    device.mqtt.publish_retained("tele/meter/LWT", "Offline");
    device.mqtt.barrier();
    rig.reconnect();
    monitor.await_line(&format!("gone {}", name("grid", "m", "g1")));
    monitor.await_sum("none");
}

/// A restart, by a signal or a new configuration: the state of the genset goes from 8 to 8, with nothing that is no state between.
#[test]
fn a_genset_runs_through_a_restart() {
    let setup = || Setup::devices().device("restore_values = 15");
    let mut rig = running(setup());
    let device = Device::connect(&rig, "g");
    device.register(r#"{"g1": "genset"}"#);
    let genset = name("genset", "g", "g1");
    let monitor = Monitor::start(&rig, "genset", "/StatusCode");
    device.proxy(r#"{"g1": {"StatusCode": 8, "Ac/Power": 2500}}"#);
    monitor.await_line(&format!("item {genset} 8"));
    for reload in [false, true] {
        monitor.mark();
        device.mqtt.mark();
        if reload {
            let watcher = rig.client();
            watcher.subscribe(&rig.status_topic());
            watcher.barrier();
            watcher.mark();
            rig.signal(Part::Bridge, Signal::SIGHUP);
            rig.await_online(&watcher);
        } else {
            assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
            rig.start_bridge();
        }
        monitor.await_line(&format!("there {genset} 8"));
        let said: Vec<_> = monitor.lines().into_iter().filter(|line| !line.starts_with("sum")).collect();
        assert_eq!(said, [format!("gone {genset}"), format!("there {genset} 8")]);
        assert_eq!(rig.fake().shown(&genset, "/Ac/Power"), "d 2500.0");
        // the service is on the bus before the bridge has read it
        device.answered();
        device.proxy(r#"{"g1": {"StatusCode": 8}}"#);
        device.mqtt.read("genset/1/StatusCode");
        device.mqtt.n("genset/1/StatusCode", r#"{"value":8,"min":0,"max":10,"default":0}"#);
    }
    // the device is not heard of after the restart
    monitor.mark();
    rig.stop(Part::Bridge);
    rig.start_bridge();
    monitor.await_line(&format!("there {genset} 8"));
    let invalid = format!("item {genset} none");
    eventually("the values are over", DEADLINE, || monitor.lines().contains(&invalid).then_some(()));
    assert_eq!(rig.fake().shown(&genset, "/Ac/Power"), "ai []");
    rig.await_log(Part::Bridge, "g1: no measured value since the restart");
    // a crash keeps no value
    device.proxy(r#"{"g1": {"StatusCode": 9}}"#);
    monitor.await_line(&format!("item {genset} 9"));
    monitor.mark();
    rig.kill(Part::Bridge);
    rig.start_bridge();
    monitor.await_line(&format!("there {genset} 0"));
}

/// Each write to disk takes 0.8 s, as on a worn card: the last one is waited for.
#[test]
fn a_slow_disk_takes_the_values_of_a_stop() {
    const SLOW: &str =
        "#include <sys/syscall.h>\n#include <unistd.h>\nint fsync(int file) { usleep(400000); return syscall(SYS_fsync, file); }\n";
    let mut rig = Rig::new(Setup::devices().device("restore_values = 60").env("LD_PRELOAD", "{dir}/slow.so"));
    let [source, library] = ["slow.c", "slow.so"].map(|name| rig.dir().join(name));
    std::fs::write(&source, SLOW).expect("the rig's folder takes files");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-o"]).args([&library, &source]).status();
    assert!(compiled.expect("cc").success());
    rig.start_bridge();
    let device = Device::connect(&rig, "g");
    device.register(r#"{"g1": "genset"}"#);
    let genset = name("genset", "g", "g1");
    device.proxy(r#"{"g1": {"StatusCode": 8}}"#);
    rig.fake().await_shown(&genset, "/StatusCode", "i 8");
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
    rig.start_bridge();
    rig.fake().await_shown(&genset, "/StatusCode", "i 8");
}

/// The bus crashes, and the bridge ends with it: its supervisor starts it again, and the values are there.
#[test]
fn values_survive_a_bus_that_crashes() {
    let mut rig = running(Setup::devices().device("restore_values = 60"));
    let device = Device::connect(&rig, "g");
    device.register(r#"{"g1": "genset"}"#);
    let genset = name("genset", "g", "g1");
    device.proxy(r#"{"g1": {"StatusCode": 8}}"#);
    rig.fake().await_shown(&genset, "/StatusCode", "i 8");
    rig.restart_bus();
    assert_eq!(rig.ended(Part::Bridge), Ended::Code(75));
    rig.start_bridge();
    rig.fake().await_name(&genset);
    assert_eq!(rig.fake().shown(&genset, "/StatusCode"), "i 8");
}

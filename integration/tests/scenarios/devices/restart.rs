//! Whatever restarts: devices are back, under the numbers they had, without doing anything.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use venus_mqtt_integration::{Client, DEADLINE, Device, Ended, Part, Rig, Setup, device::name, eventually, fake::SETTINGS};

use super::{SENSOR, T1, kept, running, sensor, settle};

fn registry(rig: &Rig) -> PathBuf {
    rig.dir().join("state/devices.json")
}

/// Waits until the registry on disk knows a device. (In containers it is another user's: this test runs as root there.)
fn await_noted(rig: &Rig, id: &str) {
    eventually(&format!("{id} in the registry"), DEADLINE, || {
        std::fs::read_to_string(registry(rig)).ok().filter(|text| text.contains(&format!("\"{id}\""))).map(drop)
    });
}

both! {
    /// Stopped or killed: the services are back at once, and the device has done nothing.
    fn devices_are_back_when_the_bridge_is(rig in Setup::devices()) {
        rig.start_bridge();
        let first = Device::connect(&rig, "fe000");
        first.register(T1);
        let (device, answer) = sensor(&rig);
        assert_eq!(answer.instance("t1"), 2);
        let tank = Device::connect(&rig, "fe002");
        tank.register(r#"{"tk1": "tank"}"#);
        let tank_name = name("tank", "fe002", "tk1");
        first.leave();
        rig.fake().await_no_name(&name("temperature", "fe000", "t1"));
        for (kill, custom) in [(false, "stopped"), (true, "killed")] {
            device.mqtt.write("temperature/2/CustomName", format!(r#"{{"value": "{custom}"}}"#));
            device.mqtt.write("temperature/2/Temperature", r#"{"value": 23.4}"#);
            rig.fake().await_shown(SENSOR, "/Temperature", "d 23.4");
            rig.fake().await_shown(SETTINGS, &kept("fe001", "t1", "CustomName"), &format!("s {custom:?}"));
            await_noted(&rig, "fe001");
            await_noted(&rig, "fe002");
            device.mqtt.mark();
            if kill {
                rig.kill(Part::Bridge);
            } else {
                assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
            }
            rig.fake().await_no_name(SENSOR);
            let started = Instant::now();
            rig.start(Part::Bridge);
            rig.fake().await_name(SENSOR);
            rig.fake().await_name(&tank_name);
            eprintln!("back {:?} after the start", started.elapsed());
            rig.fake().await_shown(SENSOR, "/DeviceInstance", "i 2");
            assert_eq!(rig.fake().shown(SENSOR, "/CustomName"), format!("s {custom:?}"));
            assert_eq!(rig.fake().shown(SENSOR, "/FirmwareVersion"), "s \"v1.0\"");
            assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "ai []");
            // who had left is not back
            assert!(rig.fake().owner_of(&name("temperature", "fe000", "t1")).is_none());
            let watcher = rig.client();
            watcher.subscribe(&rig.status_topic());
            rig.await_online(&watcher);
            // it goes on as if nothing had been
            device.mqtt.write("temperature/2/Temperature", r#"{"value": 24.5}"#);
            rig.fake().await_shown(SENSOR, "/Temperature", "d 24.5");
            assert_eq!(device.register(T1), answer);
            assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "d 24.5");
        }
    }
}

/// A device that leaves while nobody listens is back at first; its retained word, or its next one, counts.
#[test]
fn one_that_left_meanwhile() {
    let mut rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    await_noted(&rig, "fe001");
    rig.kill(Part::Bridge);
    device.mqtt.publish_retained(&device.topic("Status"), r#"{"clientId": "fe001", "connected": 0, "services": {}}"#);
    device.mqtt.barrier();
    rig.start_bridge();
    rig.fake().await_no_name(SENSOR);
    device.mqtt.publish_retained(&device.topic("Status"), "");
    assert_eq!(device.register(T1).instance("t1"), 1);
}

/// localsettings is not there yet when the bridge is back: the numbers are right all the same.
#[test]
fn back_before_localsettings() {
    let mut rig = running(Setup::devices());
    let (_device, _) = sensor(&rig);
    await_noted(&rig, "fe001");
    rig.stop(Part::Bridge);
    rig.kill(Part::Settings);
    rig.start_bridge();
    rig.start_settings();
    rig.fake().await_name(SENSOR);
    rig.fake().await_shown(SENSOR, "/DeviceInstance", "i 1");
}

#[test]
fn a_corrupt_registry_is_set_aside() {
    for content in
        [&b"{\"version\": 1, \"devices\": [{\"clientId\""[..], b"\xff\xfe\x00", b"", b"[]", b"{\"version\": 99}", &[b' '; 2 * 1024 * 1024]]
    {
        let mut rig = Rig::new(Setup::devices());
        std::fs::create_dir(rig.dir().join("state")).expect("a folder");
        std::fs::write(registry(&rig), content).expect("written");
        rig.start_bridge();
        rig.await_log(Part::Bridge, "devices.json");
        assert_eq!(std::fs::read(registry(&rig).with_extension("json.corrupt")).expect("set aside"), content);
        let (_device, answer) = sensor(&rig);
        assert_eq!(answer.instance("t1"), 1);
        await_noted(&rig, "fe001");
    }
}

/// What is in it is not believed blindly: an entry that cannot be is left out, the others come back.
#[test]
fn a_registry_that_somebody_has_edited() {
    let mut rig = running(Setup::devices());
    let (_device, _) = sensor(&rig);
    await_noted(&rig, "fe001");
    rig.stop(Part::Bridge);
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(registry(&rig)).expect("noted")).expect("JSON");
    let devices = json["devices"].as_array_mut().expect("a list");
    let mut other = devices[0].clone();
    other["clientId"] = "bad/id".into();
    devices.insert(0, other.clone());
    other["clientId"] = "unknown".into();
    other["services"][0]["type"] = "thermometer".into();
    devices.insert(0, other);
    std::fs::write(registry(&rig), json.to_string()).expect("written");
    rig.start_bridge();
    rig.fake().await_name(SENSOR);
    assert!(rig.runs(Part::Bridge));
}

#[test]
fn without_a_place_for_the_registry_it_works_on() {
    let rig = running(Setup::devices().device("state_dir = \"{dir}/bus.conf/state\""));
    let (device, answer) = sensor(&rig);
    assert_eq!(answer.instance("t1"), 1);
    rig.await_log(Part::Bridge, "state_dir");
    settle(&rig, &device.mqtt, 1);
}

/// The broker crashes: the devices stay where they are, and go on when it is back.
#[test]
fn the_broker_restarts() {
    let mut rig = running(Setup::devices());
    let (device, answer) = sensor(&rig);
    let owner = rig.fake().owner_of(SENSOR);
    drop(device);
    // its DISCONNECT leaves no last will behind
    rig.kill(Part::Broker);
    rig.start(Part::Broker);
    let mqtt = eventually("the broker is back", DEADLINE, || {
        Client::connect(rig.broker_address(), &venus_mqtt_integration::mqtt::Options::default()).ok()
    });
    mqtt.subscribe(&rig.status_topic());
    rig.await_online(&mqtt);
    assert_eq!(rig.fake().owner_of(SENSOR), owner);
    let (device, again) = sensor(&rig);
    assert_eq!((again, rig.fake().owner_of(SENSOR)), (answer, owner));
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 1.5}"#);
    rig.fake().await_shown(SENSOR, "/Temperature", "d 1.5");
    device.vanish();
    rig.fake().await_no_name(SENSOR);
}

/// The bus crashes: 75, and the supervisor starts it again.
#[test]
fn the_bus_restarts() {
    let mut rig = running(Setup::devices());
    let (device, answer) = sensor(&rig);
    await_noted(&rig, "fe001");
    rig.restart_bus();
    assert_eq!(rig.ended(Part::Bridge), Ended::Code(75));
    rig.start_bridge();
    rig.fake().await_name(SENSOR);
    assert_eq!(device.register(T1), answer);
    settle(&rig, &device.mqtt, 1);
}

/// It ends within two seconds, with every service off the bus first, whatever localsettings does.
#[test]
fn it_ends_politely() {
    let mut rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    rig.fake().settings_behave("*", "never");
    device.register_as(&device.status_of(T1));
    device.status(device.status_of(r#"{"t1": "temperature", "t2": "tank"}"#));
    let owner = rig.fake().owner_of(SENSOR).expect("it is there");
    let watch = rig.watch();
    let asked = Instant::now();
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
    assert!(asked.elapsed() < Duration::from_millis(2500), "{:?}", asked.elapsed());
    watch.barrier();
    let said = watch.of(&owner).join("\n");
    assert!(said.contains("/Connected {Text s \"---\", Value ai []}"), "{said}");
}

/// SIGHUP takes another configuration: devices stay registered.
#[test]
fn a_new_configuration() {
    let mut rig = running(Setup::devices());
    let (device, answer) = sensor(&rig);
    let watcher = rig.client();
    watcher.subscribe(&rig.status_topic());
    watcher.barrier();
    watcher.mark();
    rig.configure(Setup::devices().device("max_devices = 1"));
    rig.signal(Part::Bridge, venus_mqtt_integration::parts::Signal::SIGHUP);
    rig.await_online(&watcher);
    let other = Device::connect(&rig, "fe002");
    other.refuse(other.status_of(T1));
    rig.fake().await_name(SENSOR);
    assert_eq!(device.register(T1), answer);
}

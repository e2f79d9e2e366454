//! Settings live in localsettings, both ways; so do the instances, and the user may change them.

use std::time::Duration;

use venus_mqtt_integration::{DEADLINE, Device, Ended, PORTAL, Part, Rig, Setup, device::name, fake::SETTINGS};

use super::{SENSOR, T1, instance_setting, kept, running, sensor, settle};

/// From the device, from the GUI, from localsettings: all three agree.
#[test]
fn a_setting_is_the_same_everywhere() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    let fake = rig.fake();
    let (own, stored) = ("/CustomName", kept("fe001", "t1", "CustomName"));
    assert_eq!(fake.shown(SETTINGS, &stored), "s \"My Temperature Sensor\"");
    device.mqtt.write("temperature/1/CustomName", r#"{"value": "by device"}"#);
    fake.await_shown(SETTINGS, &stored, "s \"by device\"");
    fake.await_shown(SENSOR, own, "s \"by device\"");
    assert_eq!(fake.set_value(SENSOR, own, "by GUI").ok(), Some(0));
    fake.await_shown(SETTINGS, &stored, "s \"by GUI\"");
    fake.await_shown(SENSOR, own, "s \"by GUI\"");
    let watch = rig.watch();
    assert_eq!(fake.set_value(SETTINGS, &stored, "by localsettings").ok(), Some(0));
    fake.await_shown(SENSOR, own, "s \"by localsettings\"");
    watch.barrier();
    let owner = fake.owner_of(SENSOR).expect("it is there");
    assert_eq!(watch.of(&owner), [r#"PropertiesChanged /CustomName Text s "by localsettings", Value s "by localsettings""#]);
    // numbers with their limits
    let stored = kept("fe001", "t1", "TemperatureType");
    assert_eq!(fake.shown(SETTINGS, &stored), "i 2");
    assert_eq!(fake.set_value(SETTINGS, &stored, 99).ok(), Some(-1));
    assert_eq!(fake.set_value(SETTINGS, &stored, 1).ok(), Some(0));
    fake.await_shown(SENSOR, "/TemperatureType", "i 1");
    // what is no setting is in nobody's memory
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 1.5}"#);
    settle(&rig, &device.mqtt, 1);
    let all = fake.settings();
    assert!(!all.keys().any(|path| path.ends_with("/Temperature")), "{all:?}");
}

#[test]
fn a_setting_is_kept() {
    let mut rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    device.mqtt.write("temperature/1/CustomName", r#"{"value": "Cellar"}"#);
    rig.fake().await_shown(SETTINGS, &kept("fe001", "t1", "CustomName"), "s \"Cellar\"");
    device.leave();
    rig.fake().await_no_name(SENSOR);
    // changed while nobody is there
    assert_eq!(rig.fake().set_value(SETTINGS, &kept("fe001", "t1", "TemperatureType"), 1).ok(), Some(0));
    rig.stop(Part::Bridge);
    rig.start_bridge();
    device.register(T1);
    assert_eq!(rig.fake().shown(SENSOR, "/CustomName"), "s \"Cellar\"");
    assert_eq!(rig.fake().shown(SENSOR, "/TemperatureType"), "i 1");
}

/// A device that is forgotten leaves nothing at the broker, and one that comes again is there again.
#[test]
fn a_setting_that_is_removed_is_cleared() {
    let rig = running(Setup::devices());
    let mqtt = rig.listener();
    mqtt.keepalive("");
    let remove = |path: &str| -> Vec<i32> {
        rig.fake().call(SETTINGS, "/", "com.victronenergy.Settings", "RemoveSettings", &vec![path]).expect("it answers")
    };
    let device = Device::connect(&rig, "fe001");
    let stored = kept("fe001", "t1", "CustomName");
    let topic = mqtt.topic('N', &format!("settings/0{stored}"));
    for flap in 0..20 {
        mqtt.mark();
        device.register(T1);
        mqtt.wait_for("the setting", |message| message.topic == topic && !message.payload.is_empty());
        device.leave();
        rig.fake().await_no_name(SENSOR);
        mqtt.mark();
        for path in rig.fake().settings().keys() {
            assert_eq!(remove(path), [0]);
        }
        mqtt.expect(&topic, "");
        mqtt.keepalive("");
        let is_clear = || rig.retained("#").keys().all(|topic| !topic.contains("/settings/0/"));
        venus_mqtt_integration::eventually(&format!("nothing is left after flap {flap}"), DEADLINE, || is_clear().then_some(()));
    }
}

both! {
    /// The user gives another instance: the service comes back under it, and the device is told.
    fn the_instance_follows_the_user(rig in Setup::devices()) {
        rig.start_bridge();
        let (device, _) = sensor(&rig);
        let other = Device::connect(&rig, "fe002");
        assert_eq!(other.register(T1).instance("t1"), 2);
        device.mqtt.keepalive("");
        device.mqtt.n("temperature/1/DeviceInstance", r#"{"value":1}"#);
        let others = rig.fake().owner_of(&name("temperature", "fe002", "t1"));
        let watch = rig.watch();
        device.mqtt.mark();
        assert_eq!(rig.fake().set_value(SETTINGS, &instance_setting("fe001", "t1"), "temperature:7").ok(), Some(0));
        let answer = device.answered();
        assert_eq!(answer.instance("t1"), 7);
        assert!(answer.text.contains(&format!("W/{PORTAL}/temperature/7")), "{}", answer.text);
        rig.fake().await_shown(SENSOR, "/DeviceInstance", "i 7");
        // it left and came back
        watch.wait_for("the name goes and comes", |signals| {
            let of = |signal: &&venus_mqtt_integration::watch::Signal| signal.member == "NameOwnerChanged" && signal.body.starts_with(SENSOR);
            (signals.iter().filter(of).count() == 2).then_some(())
        });
        device.mqtt.n("temperature/7/DeviceInstance", r#"{"value":7}"#);
        device.mqtt.n("temperature/1/DeviceInstance", "");
        device.mqtt.write("temperature/7/Temperature", r#"{"value": 23.4}"#);
        rig.fake().await_shown(SENSOR, "/Temperature", "d 23.4");
        // the other one's number is not to be had
        device.mqtt.mark();
        assert_eq!(rig.fake().set_value(SETTINGS, &instance_setting("fe001", "t1"), "temperature:2").ok(), Some(0));
        assert_eq!(device.answered().instance("t1"), 3);
        assert_eq!(rig.fake().owner_of(&name("temperature", "fe002", "t1")), others);
    }
}

/// Changed again and again, and to what it cannot be: the last good one holds.
#[test]
fn an_instance_in_a_hurry() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    let connections = rig.fake().connections();
    let setting = instance_setting("fe001", "t1");
    for n in 10..30 {
        assert_eq!(rig.fake().set_value(SETTINGS, &setting, format!("temperature:{n}")).ok(), Some(0));
        if n % 5 == 0 {
            device.status(device.status_of(T1));
        }
    }
    rig.fake().await_shown(SENSOR, "/DeviceInstance", "i 29");
    device.mqtt.wait_for("its last number", |message| {
        message.topic == device.topic("DBus") && venus_mqtt_integration::device::registration(message).instance("t1") == 29
    });
    venus_mqtt_integration::eventually("no connection more", DEADLINE, || (rig.fake().connections() == connections).then_some(()));
    // another class is not the user's to give
    assert_eq!(rig.fake().set_value(SETTINGS, &setting, "tank:5").ok(), Some(0));
    settle(&rig, &device.mqtt, 29);
    assert_eq!(rig.fake().shown(SENSOR, "/DeviceInstance"), "i 29");
    // one that leaves in the middle of it is gone
    assert_eq!(rig.fake().set_value(SETTINGS, &setting, "temperature:40").ok(), Some(0));
    device.leave();
    device.mqtt.barrier();
    venus_mqtt_integration::eventually("its connection is closed", DEADLINE, || {
        (rig.fake().connections() == connections - 1).then_some(())
    });
    assert!(rig.fake().owner_of(SENSOR).is_none());
    assert_eq!(device.register(T1).instance("t1"), 40);
}

/// A device that is away gets the number it was given meanwhile.
#[test]
fn the_instance_of_one_that_is_away() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    device.leave();
    rig.fake().await_no_name(SENSOR);
    assert_eq!(rig.fake().set_value(SETTINGS, &instance_setting("fe001", "t1"), "temperature:33").ok(), Some(0));
    assert_eq!(device.register(T1).instance("t1"), 33);
    assert_eq!(rig.fake().shown(SENSOR, "/DeviceInstance"), "i 33");
}

/// It starts later than we do: registrations wait for it.
#[test]
fn registrations_wait_for_localsettings() {
    let mut rig = running(Setup::devices().without_settings());
    let device = Device::connect(&rig, "fe001");
    device.mqtt.mark();
    device.status(device.status_of(T1));
    // a wrong one is refused all the same
    let other = Device::connect(&rig, "fe002");
    other.refuse(other.status_of(r#"{"t1": "thermometer"}"#));
    assert!(device.mqtt.on(&device.topic("DBus")).is_empty() && rig.fake().owner_of(SENSOR).is_none());
    rig.start_settings();
    assert_eq!(device.answered().instance("t1"), 1);
    assert!(rig.fake().owner_of(SENSOR).is_some());
}

/// It is not there, or does not answer: after 30 seconds the device is told, and when it comes all is well.
#[test]
fn without_localsettings_the_device_is_told() {
    for mute in [false, true] {
        let mut rig = running(if mute { Setup::devices() } else { Setup::devices().without_settings() });
        if mute {
            rig.fake().settings_behave("*", "never");
        }
        let device = Device::connect(&rig, "fe001");
        device.mqtt.mark();
        device.status(device.status_of(T1));
        let error = device.topic("Error");
        let told = device
            .mqtt
            .wait_within("an error", Duration::from_secs(60), |messages| messages.iter().find(|message| message.topic == error).cloned());
        assert!(told.text().contains("localsettings") || told.text().contains(SETTINGS), "{told:?}");
        device.mqtt.mark();
        if mute {
            rig.fake().settings_behave("*", "answer");
            // it need not wait: the next Status asks again
            device.status(device.status_of(T1));
        } else {
            rig.start_settings();
        }
        let answer = device.topic("DBus");
        device.mqtt.wait_within("the answer", Duration::from_secs(60), |messages| {
            messages.iter().any(|message| message.topic == answer).then_some(())
        });
        rig.fake().await_name(SENSOR);
    }
}

/// It crashes, at any time: nothing is lost.
#[test]
fn localsettings_restarts() {
    let mut rig = running(Setup::devices());
    let (device, answer) = sensor(&rig);
    let owner = rig.fake().owner_of(SENSOR);
    for kill in [true, false] {
        if kill {
            rig.kill(Part::Settings);
        } else {
            rig.stop(Part::Settings);
        }
        // values go on
        settle(&rig, &device.mqtt, 1);
        rig.start_settings();
        assert_eq!(device.register(T1), answer);
        assert_eq!(rig.fake().owner_of(SENSOR), owner);
        // both ways
        let stored = kept("fe001", "t1", "CustomName");
        let (one, two) = (format!("device {kill}"), format!("GUI {kill}"));
        device.mqtt.write("temperature/1/CustomName", format!(r#"{{"value": "{one}"}}"#));
        rig.fake().await_shown(SETTINGS, &stored, &format!("s {one:?}"));
        assert_eq!(rig.fake().set_value(SETTINGS, &stored, two.clone()).ok(), Some(0));
        rig.fake().await_shown(SENSOR, "/CustomName", &format!("s {two:?}"));
    }
}

/// What is changed while it is away is in it when it is back.
#[test]
fn a_change_while_localsettings_is_away() {
    let mut rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    rig.kill(Part::Settings);
    device.mqtt.write("temperature/1/CustomName", r#"{"value": "meanwhile"}"#);
    settle(&rig, &device.mqtt, 1);
    rig.start_settings();
    rig.fake().await_shown(SETTINGS, &kept("fe001", "t1", "CustomName"), "s \"meanwhile\"");
    rig.fake().await_shown(SENSOR, "/CustomName", "s \"meanwhile\"");
}

/// Its file is edited while it is stopped: what it holds when it comes back counts, and the device is told.
#[test]
fn what_was_edited_in_the_file() {
    let mut rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    let (stored, number, offset) = (kept("fe001", "t1", "CustomName"), instance_setting("fe001", "t1"), kept("fe001", "t1", "Offset"));
    device.mqtt.write("temperature/1/CustomName", r#"{"value": "Cellar"}"#);
    rig.fake().await_shown(SETTINGS, &stored, "s \"Cellar\"");
    let file = rig.dir().join("settings.json");
    let edit = |rig: &mut Rig, changes: &[(&str, &str)], meanwhile: &dyn Fn(&Rig)| {
        assert_eq!(rig.stop(Part::Settings), Ended::Code(0));
        let mut text = std::fs::read_to_string(&file).expect("stored");
        for (from, to) in changes {
            assert!(text.contains(from), "{from} in {text}");
            text = text.replace(from, to);
        }
        std::fs::write(&file, text).expect("written");
        meanwhile(rig);
        device.mqtt.mark();
        rig.start_settings();
    };
    // both at once, and a third that the device writes meanwhile
    edit(
        &mut rig,
        &[
            ("Cellar", "Attic"),
            ("\"Text\": \"temperature:1\"\n    },\n    \"default\"", "\"Text\": \"temperature:8\"\n    },\n    \"default\""),
        ],
        &|rig| {
            device.mqtt.write("temperature/1/Offset", r#"{"value": 2.5}"#);
            rig.fake().await_shown(SENSOR, "/Offset", "d 2.5");
        },
    );
    let answer = device.answered();
    assert_eq!(answer.instance("t1"), 8);
    rig.fake().await_shown(SENSOR, "/DeviceInstance", "i 8");
    assert_eq!(rig.fake().shown(SENSOR, "/CustomName"), "s \"Attic\"");
    rig.fake().await_shown(SETTINGS, &offset, "d 2.5");
    assert_eq!(rig.fake().shown(SETTINGS, &number), "s \"temperature:8\"");
    assert_eq!(rig.fake().shown(SETTINGS, &stored), "s \"Attic\"");
    rig.await_log(Part::Bridge, &format!("info: {stored} holds \"Attic\""));
    rig.await_log(Part::Bridge, &format!("info: {offset} holds 0.0: 2.5"));
    rig.await_log(Part::Bridge, &format!("localsettings has instance 8 for {SENSOR}, which had 1"));
    device.mqtt.write("temperature/8/Temperature", r#"{"value": 21.5}"#);
    rig.fake().await_shown(SENSOR, "/Temperature", "d 21.5");
    // the name alone
    let owner = rig.fake().owner_of(SENSOR);
    edit(&mut rig, &[("Attic", "Roof")], &|_| {});
    assert_eq!(device.answered(), answer);
    let topic = device.mqtt.topic('N', "temperature/8/CustomName");
    device.mqtt.wait_for("the name", |message| message.topic == topic && message.text().contains("\"Roof\""));
    assert_eq!(rig.fake().shown(SENSOR, "/CustomName"), "s \"Roof\"");
    assert_eq!(rig.fake().owner_of(SENSOR), owner);
    // a default stands for what it has lost
    edit(&mut rig, &[("Roof", "My Temperature Sensor")], &|_| {});
    rig.fake().await_shown(SETTINGS, &stored, "s \"Roof\"");
    rig.await_log(Part::Bridge, &format!("info: {stored} holds \"My Temperature Sensor\""));
    assert_eq!(rig.fake().shown(SENSOR, "/CustomName"), "s \"Roof\"");
}

/// It is killed before it has written what was told to it: what its services have is newer than what it has.
#[test]
fn what_localsettings_has_forgotten() {
    let mut rig = running(Setup::devices());
    let first = Device::connect(&rig, "fe000");
    first.register(T1);
    let (device, answer) = sensor(&rig);
    assert_eq!(answer.instance("t1"), 2);
    let (stored, number) = (kept("fe001", "t1", "CustomName"), instance_setting("fe001", "t1"));
    let file = rig.dir().join("settings.json");
    let before = std::fs::read(&file).expect("stored");
    device.mqtt.write("temperature/2/CustomName", r#"{"value": "Cellar"}"#);
    rig.fake().await_shown(SETTINGS, &stored, "s \"Cellar\"");
    rig.kill(Part::Settings);
    std::fs::write(&file, before).expect("written");
    rig.start_settings();
    rig.fake().await_shown(SETTINGS, &stored, "s \"Cellar\"");
    rig.fake().await_shown(SENSOR, "/CustomName", "s \"Cellar\"");
    // or everything, as after a reset; the one that is away cannot claim its number
    first.leave();
    rig.fake().await_no_name(&name("temperature", "fe000", "t1"));
    rig.kill(Part::Settings);
    std::fs::remove_file(&file).expect("it was there");
    rig.start_settings();
    rig.fake().await_shown(SETTINGS, &stored, "s \"Cellar\"");
    rig.fake().await_shown(SETTINGS, &number, "s \"temperature:2\"");
    assert_eq!(rig.fake().shown(SENSOR, "/DeviceInstance"), "i 2");
    assert_eq!(device.register(T1), answer);
}

/// It dies in the middle of a registration.
#[test]
fn localsettings_dies_of_a_registration() {
    let mut rig = running(Setup::devices());
    rig.fake().settings_behave("AddSettings", "die");
    let device = Device::connect(&rig, "fe001");
    device.mqtt.mark();
    device.status(device.status_of(T1));
    rig.ended(Part::Settings);
    rig.start_settings();
    assert_eq!(device.answered().instance("t1"), 1);
}

/// It answers late: others are not held up, and the device that left meanwhile is not there afterwards.
#[test]
fn a_late_answer_is_not_too_late() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    rig.fake().settings_behave("AddSettings", "hold");
    let (late, gone) = (Device::connect(&rig, "late"), Device::connect(&rig, "gone"));
    late.mqtt.mark();
    late.status(late.status_of(T1));
    gone.status(gone.status_of(T1));
    settle(&rig, &device.mqtt, 1);
    gone.leave();
    gone.mqtt.barrier();
    settle(&rig, &device.mqtt, 1);
    rig.fake().settings_behave("AddSettings", "answer");
    venus_mqtt_integration::eventually("held calls", DEADLINE, || (rig.fake().settings_release() > 0).then_some(()));
    assert!(late.answered().instance("t1") > 1);
    settle(&rig, &device.mqtt, 1);
    assert!(rig.fake().owner_of(&name("temperature", "gone", "t1")).is_none());
    let _: &Rig = &rig;
}

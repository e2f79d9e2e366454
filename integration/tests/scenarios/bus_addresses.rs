//! Addresses of the bus as the D-Bus specification has them: lists that are tried in order, escapes, GUIDs, transports that are not there.
//! A device registers each time, because its services have connections of their own.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
};

use venus_mqtt_integration::{Device, PORTAL, Part, Rig, Setup, parts::binary};

use crate::{BATTERY, battery};

const NO_GUID: &str = "0123456789abcdef0123456789abcdef";

/// What the bus calls itself at this socket.
fn guid(socket: &Path) -> String {
    let mut bus = UnixStream::connect(socket).expect("a bus");
    let uid: String = nix::unistd::geteuid().to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
    bus.write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") {
        let mut byte = [0];
        bus.read_exact(&mut byte).expect("it answers");
        answer.extend(byte);
    }
    String::from_utf8_lossy(&answer).trim().strip_prefix("OK ").expect("it lets us in").to_owned()
}

/// The bridge serves, and a device's services come by way of the same address.
fn serves(rig: &mut Rig, used: &str) {
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.awake();
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    rig.await_log(Part::Bridge, &format!("connected to the bus {}", used.replace("{dir}", &rig.dir().display().to_string())));
    Device::connect(rig, "fe001").register(r#"{"t1": "temperature"}"#);
}

#[test]
fn the_first_of_a_list_that_answers_is_used() {
    let good = "unix:path={dir}/a%20bus%2C%3b%25";
    let list = format!("autolaunch:;tcp:host=127.0.0.1,port=1;unix:path={{dir}}/nobody;new:x=y;{good};unix:path={{dir}}/bus");
    let mut rig = Rig::new(Setup::devices().bus_listens(good).bus_addresses(&list));
    assert!(rig.dir().join("a bus,;%").exists(), "the bus reads it likewise");
    serves(&mut rig, good);
}

#[test]
fn an_abstract_socket() {
    let name = format!("unix:abstract=/venus-rig%20{}", std::process::id());
    let mut rig = Rig::new(Setup::devices().bus_listens(&name).bus_addresses(&name));
    serves(&mut rig, &name);
}

/// Each address has a part of the time, so that the last one has its turn long before the watchdog ends the start.
#[test]
fn addresses_that_hang_leave_time_for_the_others() {
    let hanging = "unix:path={dir}/hangs;".repeat(7);
    let good = "unix:path={dir}/bus";
    let mut rig = Rig::new(Setup::devices().bus_addresses(&format!("{hanging}{good}")));
    // it accepts, by way of the backlog, and never answers
    let _hangs = UnixListener::bind(rig.dir().join("hangs")).expect("bound");
    serves(&mut rig, good);
}

/// A bus with another GUID than the address says is not the one that is meant.
#[test]
fn the_guid_is_checked() {
    let list = format!("unix:path={{dir}}/bus,guid={NO_GUID};unix:path={{dir}}/bus");
    let mut rig = Rig::new(Setup::devices().bus_addresses(&list));
    serves(&mut rig, "unix:path={dir}/bus");
    let socket = rig.dir().join("bus");
    for (address, lets_in) in [
        (format!("unix:path={},guid={}", socket.display(), guid(&socket)), true),
        (format!("unix:path={},guid={NO_GUID}", socket.display()), false),
    ] {
        let (code, text) = once(Command::new(program()).args(["--dbus", &address]));
        assert_eq!(text.contains("its GUID is"), !lets_in, "{text}");
        assert_eq!(code == Some(75), !lets_in, "{code:?}: {text}");
    }
}

fn program() -> std::path::PathBuf {
    binary("VENUS_MQTT_BIN", "venus-mqtt").expect("built")
}

/// `http test`, which looks at the bus and ends.
fn once(command: &mut Command) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("c.toml");
    std::fs::write(&config, "[[http]]\nurl = \"http://127.0.0.1:1\"\n").expect("written");
    let output = command.args(["http", "test", "--portal-id", PORTAL, "--config"]).arg(config).output().expect("it runs");
    (output.status.code(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Where nobody answers, each address is named with its reason; the environment has the same kind of lists.
#[test]
fn every_address_that_was_tried_is_named() {
    let list = "autolaunch:;unix:path=/nonexistent/bus;tcp:host=127.0.0.1,port=1";
    let said =
        ["autolaunch:: not supported here", "unix:path=/nonexistent/bus: no such file", "tcp:host=127.0.0.1,port=1: connection refused"];
    for command in [
        Command::new(program()).args(["--dbus", list]),
        Command::new(program()).env("DBUS_SESSION_BUS_ADDRESS", list),
        Command::new(program()).args(["--dbus", "system"]).env("DBUS_SYSTEM_BUS_ADDRESS", list),
    ] {
        let (code, text) = once(command);
        assert_eq!(code, Some(75), "{text}");
        assert!(said.iter().all(|said| text.contains(said)), "{text}");
    }
    let (code, text) = once(Command::new(program()).env("DBUS_SESSION_BUS_ADDRESS", "unix:/run/bus"));
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("DBUS_SESSION_BUS_ADDRESS is no D-Bus address: \"unix:/run/bus\": not `key=value`"), "{text}");
}

#[test]
fn an_address_of_the_environment() {
    let rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let list = format!("unix:path=/nonexistent/bus;unix:path={}/bus", rig.dir().display());
    let mqtt = rig.listener();
    let port = rig.broker_address().port().to_string();
    let mut bridge = Command::new(program())
        .args(["--portal-id", PORTAL, "--port", &port, "--bridge", "true"])
        .env("DBUS_SESSION_BUS_ADDRESS", list)
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it runs");
    mqtt.expect(&rig.status_topic(), "online");
    let _ = bridge.kill();
    let _ = bridge.wait();
}

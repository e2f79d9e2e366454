//! The process: signals, exit codes, configuration, portal ID, secrets, and what nobody should send.

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use venus_mqtt_integration::{
    Client, DEADLINE, Ended, PORTAL, Part, Rig, Setup, item, items,
    mqtt::packet,
    parts::{Signal, binary, free_port},
};

use crate::{BATTERY, TANK, battery, tank};

fn venus_mqtt(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("it runs")
}

/// The program with arguments of the scenario's own, ended with it.
struct Running(std::process::Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stderr(std::process::Stdio::null()).spawn().expect("it runs"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program() -> Command {
    Command::new(binary("VENUS_MQTT_BIN", "venus-mqtt").expect("built"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn sigterm_and_sigint_end_it_politely() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut rig = Rig::new(Setup::default());
        rig.fake().add(BATTERY, battery());
        rig.awake();
        let asked = Instant::now();
        rig.signal(Part::Bridge, signal);
        assert_eq!(rig.ended(Part::Bridge), Ended::Code(0));
        assert!(asked.elapsed() < Duration::from_millis(2500), "{:?}", asked.elapsed());
        rig.await_retained_items(&[]);
        let log = rig.log(Part::Broker);
        assert!(log.contains("Received DISCONNECT from venus-mqtt-"), "no DISCONNECT");
    }
}

both! {
    /// Within two seconds, whatever the broker does.
    fn it_ends_although_the_broker_does_not_answer(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        rig.start_bridge();
        rig.pause(Part::Broker);
        let asked = Instant::now();
        assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
        assert!(asked.elapsed() < Duration::from_millis(3000), "{:?}", asked.elapsed());
        rig.resume(Part::Broker);
    }
}

#[test]
fn it_ends_although_there_is_no_broker() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.kill(Part::Broker);
    rig.start(Part::Bridge);
    rig.fake().await_call(BATTERY, "GetItems /");
    let asked = Instant::now();
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
    assert!(asked.elapsed() < Duration::from_millis(3000), "{:?}", asked.elapsed());
}

#[test]
fn it_ends_although_a_service_never_answers() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add_styled(BATTERY, "mute", battery());
    rig.start_bridge();
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
}

both! {
    /// The bus is gone: 75, and the supervisor starts it again.
    fn without_the_bus_it_gives_up(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        let mqtt = rig.awake();
        rig.kill(Part::Bus);
        assert_eq!(rig.ended(Part::Bridge), Ended::Code(75));
        mqtt.expect(&rig.status_topic(), "offline");
    }
}

#[test]
fn without_a_bus_it_does_not_start() {
    let output = venus_mqtt(&["run", "--dbus", "unix:path=/nonexistent/bus", "--portal-id", PORTAL]);
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    assert!(text(&output).contains("/nonexistent/bus"), "{}", text(&output));
}

#[test]
fn sighup_takes_the_new_configuration() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.awake();
    let before = rig.pid(Part::Bridge);
    rig.configure(Setup::default().prefix("new"));
    rig.signal(Part::Bridge, Signal::SIGHUP);
    let mqtt = rig.listener();
    mqtt.expect("new/venus-mqtt/c0619ab1c2d3/status", "online");
    mqtt.keepalive("");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    assert_eq!(rig.pid(Part::Bridge), before);
    assert!(rig.runs(Part::Bridge));
    // what the old one had retained is gone
    venus_mqtt_integration::eventually("the old topics are cleared", DEADLINE, || {
        (!rig.retained("#").contains_key(&format!("N/{PORTAL}/battery/512/Soc"))).then_some(())
    });
}

#[test]
fn sighup_keeps_the_old_configuration_when_the_new_one_is_bad() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.awake();
    for bad in ["not TOML at all [", "unknown_key = 1\n", "[bridge]\nretain = \"perhaps\"\n", "[mqtt]\nca_file = \"/nonexistent.pem\"\n"] {
        std::fs::write(rig.config(), bad).expect("written");
        let lines = rig.log(Part::Bridge).lines().count();
        rig.signal(Part::Bridge, Signal::SIGHUP);
        venus_mqtt_integration::eventually("a line about the bad configuration", DEADLINE, || {
            rig.log(Part::Bridge)
                .lines()
                .skip(lines)
                .any(|line| line.contains("venus-mqtt.toml") || line.contains("nonexistent.pem"))
                .then_some(())
        });
        mqtt.mark();
        rig.fake().items_changed(BATTERY, items([("/Soc", item(1.0))]));
        mqtt.n("battery/512/Soc", r#"{"value":1.0}"#);
        assert!(mqtt.on(&rig.status_topic()).is_empty(), "it reconnected");
    }
    assert!(rig.runs(Part::Bridge));
}

#[test]
fn sigusr1_says_how_it_is() {
    let mut rig = Rig::new(Setup::default().top("log_level = \"info\""));
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.awake();
    let lines = rig.log(Part::Bridge).lines().count();
    rig.signal(Part::Bridge, Signal::SIGUSR1);
    venus_mqtt_integration::eventually("a summary", DEADLINE, || {
        let log = rig.log(Part::Bridge);
        log.lines().skip(lines).any(|line| line.contains("service")).then_some(())
    });
    rig.fake().items_changed(BATTERY, items([("/Soc", item(1.0))]));
    mqtt.n("battery/512/Soc", r#"{"value":1.0}"#);
}

/// Also for the threads and children that come later: both are inherited.
#[test]
fn it_dumps_no_core_and_gains_no_privileges() {
    let mut rig = Rig::new(Setup::default());
    rig.start_bridge();
    let read = |file: &str| {
        let path = format!("/proc/{}/{file}", rig.pid(Part::Bridge));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let limits = read("limits");
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a limit of cores");
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"]);
    let threads = std::fs::read_dir(format!("/proc/{}/task", rig.pid(Part::Bridge))).expect("it runs");
    for thread in threads.flatten() {
        // one that has ended since has no status
        let Ok(status) = std::fs::read_to_string(thread.path().join("status")) else { continue };
        // an emulator has a thread of its own, from before the program began
        if status.starts_with("Name:\tqemu-") {
            continue;
        }
        assert!(status.lines().any(|line| line == "NoNewPrivs:\t1"), "{status}");
    }
    assert!(read("status").contains("NoNewPrivs:\t1\n"));
}

#[test]
fn exit_codes_tell_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path.display().to_string()
    };
    for arguments in [&["--no-such-option"][..], &["no-such-command"], &["run", "--port", "70000"]] {
        let output = venus_mqtt(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", text(&output));
    }
    for (name, content, said) in [
        ("unknown.toml", "log_level = \"info\"\nportal = \"x\"\n", "unknown.toml:2"),
        ("type.toml", "[mqtt]\nport = \"1883\"\n", "type.toml:2"),
        ("ca.toml", "[mqtt]\nca_file = \"/nonexistent/ca.pem\"\n", "/nonexistent/ca.pem"),
        ("syntax.toml", "[mqtt\n", "syntax.toml:1"),
        ("range.toml", "[mqtt]\nport = 0\n", "range.toml:2"),
        ("bus.toml", "[dbus]\naddress = \"unix:path=/a;unix:/run/bus\"\n", "bus.toml:2: `address`: must be "),
        ("filter.toml", "[bridge]\ndeny = [\"a/#/b\"]\n", "filter.toml:2"),
    ] {
        let path = file(name, content);
        for command in ["run", "check"] {
            let output = venus_mqtt(&[command, "--config", &path]);
            assert_eq!(output.status.code(), Some(78), "{name}: {}", text(&output));
            assert!(text(&output).contains(said), "{name}: {}", text(&output));
        }
    }
    let output = venus_mqtt(&["check", "--config", "/nonexistent/venus-mqtt.toml"]);
    assert_eq!(output.status.code(), Some(78), "{}", text(&output));
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"]] {
        assert_eq!(venus_mqtt(arguments).status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn check_says_what_is_in_effect_and_no_secret() {
    let dir = tempfile::tempdir().expect("a folder");
    let password = dir.path().join("password");
    std::fs::write(&password, "hunter2hunter2\n").expect("written");
    let config = dir.path().join("c.toml");
    std::fs::write(
        &config,
        format!("portal_id = \"{PORTAL}\"\n[mqtt]\nport = 18831\nuser = \"me\"\npassword_file = \"{}\"\n", password.display()),
    )
    .expect("written");
    let output = venus_mqtt(&["check", "--config", &config.display().to_string(), "--host", "broker.example"]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for shown in ["18831", "broker.example", PORTAL, "keepalive_interval"] {
        assert!(text.contains(shown), "{shown} is not in: {text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

/// Flags win over the file.
#[test]
fn flags_win() {
    let rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.listener();
    let config = rig.config().display().to_string();
    let _running = Running::start(program().args(["--config", &config, "--portal-id", "aaaabbbbcccc", "--client-id", "given"]));
    mqtt.expect("venus-mqtt/aaaabbbbcccc/status", "online");
    assert!(rig.log(Part::Broker).contains(" as given "));
}

/// Section 9: not told, it is what the service `system` says.
#[test]
fn the_portal_id_is_found_on_the_bus() {
    let mut rig = Rig::new(Setup::default().without_portal());
    if has_its_own_identity() {
        // on such a machine the bus is not asked
        return;
    }
    rig.fake().add("com.victronenergy.system", items([("/Serial", item("0123456789ab")), ("/State", item(1))]));
    let mqtt = rig.listener();
    rig.start(Part::Bridge);
    mqtt.expect("venus-mqtt/0123456789ab/status", "online");
    mqtt.expect("N/0123456789ab/system/0/Serial", r#"{"value":"0123456789ab"}"#);
    mqtt.publish("R/0123456789ab/keepalive", "");
    mqtt.expect("N/0123456789ab/system/0/State", r#"{"value":1}"#);
    assert!(rig.log(Part::Broker).contains("venus-mqtt-0123456789ab"), "the client ID carries the portal ID");
}

/// What a machine knows itself by, where the bus is not asked.
fn has_its_own_identity() -> bool {
    ["/data/venus/unique-id", "/sbin/get-unique-id"].iter().any(|path| std::path::Path::new(path).exists())
}

/// The last resort: the MAC address of `$VRM_IFACE`, lower case, without colons.
#[test]
fn the_portal_id_is_a_mac_address_in_the_end() {
    if has_its_own_identity() {
        return;
    }
    let interfaces = std::fs::read_dir("/sys/class/net").expect("Linux").flatten();
    let found = interfaces.map(|entry| entry.path()).find_map(|path| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        let mac = std::fs::read_to_string(path.join("address")).ok()?.trim().replace(':', "").to_lowercase();
        (mac.len() == 12 && mac != "000000000000").then_some((name, mac))
    });
    // a machine with nothing but loopback has none
    let Some((interface, mac)) = found else { return };
    let rig = Rig::new(Setup::default().without_portal());
    let mqtt = rig.listener();
    let _running = Running::start(program().args(["--config", &rig.config().display().to_string()]).env("VRM_IFACE", interface));
    mqtt.expect(&format!("venus-mqtt/{mac}/status"), "online");
}

/// Without an address: the session bus when `DBUS_SESSION_BUS_ADDRESS` is set.
#[test]
fn the_session_bus_is_taken_where_there_is_one() {
    let rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.listener();
    let port = rig.broker_address().port().to_string();
    let mut command = program();
    command.args(["--portal-id", PORTAL, "--port", &port, "--bridge", "true"]).env("DBUS_SESSION_BUS_ADDRESS", rig.bus_address());
    let _running = Running::start(&mut command);
    mqtt.expect(&rig.status_topic(), "online");
    mqtt.keepalive("");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
}

/// As that of a GX which exports it, from a container on another machine.
#[test]
fn the_bus_may_be_on_another_machine() {
    let mut rig = Rig::new(Setup::default().bus_over_tcp(free_port().expect("a port")).without_portal());
    rig.fake().add(BATTERY, battery());
    rig.fake().add("com.victronenergy.system", items([("/Serial", item(PORTAL)), ("/DeviceInstance", item(0))]));
    let mqtt = rig.awake();
    rig.await_log(Part::Bridge, "connected to the bus tcp:host=127.0.0.1");
    mqtt.write("battery/512/Soc", r#"{"value":50.0}"#);
    mqtt.n("battery/512/Soc", r#"{"value":50.0}"#);
}

#[test]
fn no_secret_is_in_the_log() {
    let passwords = "bridge:hunter2hunter2";
    let setup = Setup::default()
        .top("log_level = \"trace\"")
        .listener("allow_anonymous true")
        .file("password", "hunter2hunter2\n")
        .mqtt("user = \"bridge\"")
        .mqtt("password_file = \"{dir}/password\"");
    let mut rig = Rig::new(setup);
    rig.fake().add(BATTERY, battery());
    rig.fake().add("com.victronenergy.settings", items([("/Settings/Services/AccessPointPassword", item("topsecret"))]));
    let mqtt = rig.awake();
    mqtt.write("settings/0/Settings/Services/AccessPointPassword", r#"{"value":"newsecret"}"#);
    rig.fake().await_call("com.victronenergy.settings", "SetValue /Settings/Services/AccessPointPassword s \"newsecret\"");
    rig.signal(Part::Bridge, Signal::SIGUSR1);
    rig.await_log(Part::Bridge, "since the start: ");
    rig.signal(Part::Bridge, Signal::SIGHUP);
    rig.await_log(Part::Bridge, "told to start again");
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
    let log = rig.log(Part::Bridge);
    for secret in ["hunter2", "topsecret", "newsecret"] {
        assert!(!log.contains(secret), "{secret} is in the log of {passwords}: {log}");
    }
}

/// Peers write their own names into the log, but no lines of their own, and no more than a line.
#[test]
fn peers_cannot_forge_log_lines() {
    let mut rig = Rig::new(Setup::default().top("log_level = \"trace\""));
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.write("battery/512/Soc", "{\"value\": broken\nerror: forged\x1b[31m");
    mqtt.keepalive("\nerror: forged");
    mqtt.write("battery/512/Soc", format!("{{\"value\": {}", "y".repeat(60_000)));
    mqtt.read("battery/512/Soc");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    let log = rig.log(Part::Bridge);
    assert!(!log.lines().any(|line| line.starts_with("error: forged")) && !log.contains('\x1b'), "{log}");
    assert!(log.lines().all(|line| line.len() < 4000), "a line of {:?}", log.lines().map(str::len).max());
    assert!(rig.runs(Part::Bridge));
}

/// Thousands of messages nobody should send, on every topic that is listened to: none ends the process, and it serves as before.
#[test]
fn malformed_messages_end_nothing() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.fake().add(TANK, tank());
    rig.fake().store(TANK, items([("/Marker", item(0))]));
    rig.start_bridge();
    let mqtt = rig.listener();
    // a generator of its own, so that a failure can be repeated
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let seeds: [&[u8]; 8] = [
        br#"{"value": 5}"#,
        br#"{"keepalive-options": ["suppress-republish", {"full-publish-completed-echo": "x"}]}"#,
        br#"["tank/#", "battery/+/Soc"]"#,
        br#"{"value": {"a": [1, 2.5, "x", null, true]}}"#,
        b"",
        b"\xff\x00\x80",
        br#"[[[[[[[["#,
        br#"{"value": 1e999}"#,
    ];
    let topics = ["battery/512/Soc", "keepalive", "system/0/Serial", "battery/512", "tank/3/Level", "x", "battery/512/Dc/0"];
    for n in 0..3000_u32 {
        let mut payload = seeds[(random() % 8) as usize].to_vec();
        for _ in 0..random() % 4 {
            if payload.is_empty() {
                break;
            }
            let at = (random() as usize) % payload.len();
            match random() % 3 {
                0 => payload[at] = random() as u8,
                1 => payload.truncate(at),
                _ => payload.insert(at, random() as u8),
            }
        }
        let kind = if random() % 2 == 0 { 'R' } else { 'W' };
        // SetValue of the tank's and the battery's values is fine: they are fakes
        mqtt.publish(&mqtt.topic(kind, topics[(random() % 7) as usize]), &payload);
        if n % 500 == 0 {
            mqtt.barrier();
            assert!(rig.runs(Part::Bridge));
        }
    }
    // everything before it has been looked at when this is answered
    rig.fake().store(TANK, items([("/Marker", item(0.125))]));
    mqtt.read("tank/3/Marker");
    mqtt.n("tank/3/Marker", r#"{"value":0.125}"#);
    assert!(rig.runs(Part::Bridge));
}

/// Not a test of the bridge but of what it is behind: bytes that are not MQTT end the sender's connection, and nothing else.
#[test]
fn a_broken_client_is_the_brokers_affair() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let broken: Client = rig.client();
    broken.send(&packet(0x00, b"nonsense"));
    venus_mqtt_integration::eventually("the broker throws it out", DEADLINE, || broken.is_closed().then_some(()));
    let mqtt = rig.listener();
    mqtt.read("battery/512/Soc");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
}

fn fifo(path: &std::path::Path) {
    std::fs::create_dir_all(path.parent().expect("below the rig")).expect("made");
    assert!(Command::new("mkfifo").arg(path).status().expect("it runs").success());
}

/// A FIFO in the place of every file and folder it keeps: set aside or left alone, with a line, and it serves.
#[test]
fn a_fifo_is_never_waited_for() {
    let cases = [
        (
            &["state/devices.json", "state/control.sock", "state/http", "catalogue/a.yml"][..],
            &["state/devices.json", "state/control.sock", "state/http"][..],
        ),
        (
            &["state/http/1.victron-measurements", "state/devices.json.new", "state/control.sock.new", "catalogue"],
            &["state/http/1.victron-measurements"],
        ),
        (&["state/http/1.victron-measurements/0000000000000001.queue"], &["state/http/1.victron-measurements/0000000000000001.queue"]),
        (&["state"], &[]),
    ];
    for (fifos, aside) in cases {
        let mut rig = Rig::new(Setup::devices().http("url = \"http://127.0.0.1:9\""));
        fifos.iter().for_each(|path| fifo(&rig.dir().join(path)));
        rig.fake().add(BATTERY, battery());
        rig.awake();
        for path in aside {
            let log = rig.await_log(Part::Bridge, &format!("{path}.corrupt"));
            assert_eq!(log.lines().filter(|line| line.contains(&format!("{path}.corrupt"))).count(), 1, "{log}");
        }
        assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
    }
}

/// In the configuration it is refused, at the start and at a reload.
#[test]
fn a_fifo_in_the_configuration_is_refused() {
    let mut rig = Rig::new(Setup::default());
    let path = rig.dir().join("fifo");
    fifo(&path);
    let shown = path.display().to_string();
    let output = venus_mqtt(&["run", "--config", &shown]);
    assert_eq!(output.status.code(), Some(78), "{}", text(&output));
    for line in [format!("password_file = \"{shown}\"\nuser = \"u\""), format!("ca_file = \"{shown}\"")] {
        let file = rig.dir().join("odd.toml");
        std::fs::write(&file, format!("[mqtt]\n{line}\n")).expect("written");
        let output = venus_mqtt(&["run", "--config", &file.display().to_string()]);
        assert_eq!(output.status.code(), Some(78), "{}", text(&output));
        assert!(text(&output).contains("but a named pipe"), "{}", text(&output));
    }
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.awake();
    std::fs::remove_file(rig.config()).expect("removed");
    fifo(&rig.config());
    rig.signal(Part::Bridge, Signal::SIGHUP);
    rig.await_log(Part::Bridge, "it is a named pipe that nothing is written to");
    mqtt.mark();
    rig.fake().items_changed(BATTERY, items([("/Soc", item(1.0))]));
    mqtt.n("battery/512/Soc", r#"{"value":1.0}"#);
}

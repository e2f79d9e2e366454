//! What starts, watches and ends the daemon: systemd, and the health checks of containers.

use std::{
    os::unix::net::UnixDatagram,
    process::{Command, Output},
    time::{Duration, Instant},
};

use venus_mqtt_integration::{DEADLINE, Ended, Part, Rig, Setup, eventually, parts::Signal, parts::binary};

/// The socket of a systemd, which starts the bridge of this rig.
fn systemd(setup: Setup) -> (Rig, UnixDatagram) {
    let mut rig = Rig::new(setup);
    let path = rig.dir().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(DEADLINE)).expect("set");
    let setup = rig.setup().clone().env("NOTIFY_SOCKET", "{dir}/notify");
    rig.configure(setup);
    (rig, socket)
}

/// What it is told next.
fn told(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 512];
    let length = socket.recv(&mut bytes).expect("something is told");
    String::from_utf8_lossy(&bytes[..length]).trim_end().to_owned()
}

/// The next word that is neither a sign of life nor a status.
fn state(socket: &UnixDatagram) -> String {
    loop {
        let word = told(socket);
        if word != "WATCHDOG=1" && !word.starts_with("STATUS=") {
            return word;
        }
    }
}

#[test]
fn systemd_is_told_when_it_is_ready_and_when_it_ends() {
    let (mut rig, socket) = systemd(Setup::default());
    rig.start(Part::Bridge);
    assert_eq!(told(&socket), "READY=1");
    assert_eq!(told(&socket), "STATUS=connected to the bus and to the broker");
    rig.kill(Part::Broker);
    assert_eq!(told(&socket), "STATUS=connected to the bus; there is no broker");
    rig.signal(Part::Bridge, Signal::SIGHUP);
    assert_eq!(state(&socket), "RELOADING=1");
    assert_eq!(state(&socket), "READY=1");
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
    assert_eq!(state(&socket), "STOPPING=1");
}

#[test]
fn it_is_not_ready_without_a_bus() {
    let (mut rig, socket) = systemd(Setup::default());
    rig.kill(Part::Bus);
    rig.start(Part::Bridge);
    assert_eq!(rig.ended(Part::Bridge), Ended::Code(75));
    socket.set_nonblocking(true).expect("set");
    assert!(socket.recv(&mut [0; 16]).is_err());
}

/// The loop waits for a systemd that takes nothing and has not asked for a watchdog: our own ends the process.
#[test]
fn a_loop_that_stands_still_is_ended() {
    let (mut rig, socket) = systemd(Setup::default());
    let filler = UnixDatagram::unbound().expect("made");
    filler.set_nonblocking(true).expect("set");
    while filler.send_to(b"X=1", rig.dir().join("notify")).is_ok() {}
    rig.start(Part::Bridge);
    let log = eventually("the line that says why", Duration::from_secs(180), || {
        Some(rig.log(Part::Bridge)).filter(|log| log.contains("error: the loop has not turned for 60 s"))
    });
    assert_eq!(log.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{log}");
    assert_eq!(rig.ended(Part::Bridge), Ended::Signal(Signal::SIGABRT as i32));
    drop(socket);
}

#[test]
fn signs_of_life_come_out_of_the_loop() {
    let (mut rig, socket) = systemd(Setup::default().env("WATCHDOG_USEC", "200000"));
    rig.start(Part::Bridge);
    assert_eq!(state(&socket), "READY=1");
    let began = Instant::now();
    for _ in 0..5 {
        assert_eq!(
            eventually("a sign of life", DEADLINE, || Some(told(&socket)).filter(|word| !word.starts_with("STATUS="))),
            "WATCHDOG=1"
        );
    }
    // the first comes at once, and then one in each half of the time; more often would be waste
    assert!(began.elapsed() >= Duration::from_millis(380), "{:?}", began.elapsed());
    // a process that stands still gives none
    rig.pause(Part::Bridge);
    socket.set_nonblocking(true).expect("set");
    while socket.recv(&mut [0; 512]).is_ok() {}
    socket.set_nonblocking(false).expect("set");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
    assert!(socket.recv(&mut [0; 512]).is_err());
    rig.resume(Part::Bridge);
    assert_eq!(told(&socket), "WATCHDOG=1");
}

/// The last sign of life may have been long ago, and the next one comes when the bus has answered.
#[test]
fn a_reload_begins_with_a_sign_of_life() {
    let (mut rig, socket) = systemd(Setup::default().env("WATCHDOG_USEC", "3600000000"));
    rig.start(Part::Bridge);
    let next = || eventually("a word", DEADLINE, || Some(told(&socket)).filter(|word| !word.starts_with("STATUS=")));
    assert_eq!([next(), next()], ["READY=1", "WATCHDOG=1"]);
    rig.signal(Part::Bridge, Signal::SIGHUP);
    assert_eq!([next(), next(), next()], ["RELOADING=1", "WATCHDOG=1", "READY=1"]);
}

fn health(rig: &Rig, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("VENUS_MQTT_BIN", "venus-mqtt").expect("built"));
    command.arg("--config").arg(rig.config()).arg("health").args(arguments).output().expect("it runs")
}

fn refused(output: &Output, expected: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains(expected), "{output:?}");
}

#[test]
fn health_is_what_the_broker_knows() {
    let mut rig = Rig::new(Setup::default());
    refused(&health(&rig, &[]), "nothing is retained on venus-mqtt/c0619ab1c2d3/status");
    rig.start_bridge();
    let output = health(&rig, &[]);
    assert!(output.status.success() && output.stdout == b"online\n" && output.stderr.is_empty(), "{output:?}");
    // the bridge is left in peace: another client has another name
    rig.listener().expect(&rig.status_topic(), "online");
    assert!(rig.runs(Part::Bridge));
    rig.kill(Part::Bridge);
    eventually("the last will", DEADLINE, || rig.retained("#").get(&rig.status_topic()).filter(|said| *said == "offline").map(drop));
    refused(&health(&rig, &[]), "says \"offline\"");
    rig.kill(Part::Broker);
    refused(&health(&rig, &["--timeout", "0.5"]), "no answer within 0.5 s from the broker 127.0.0.1:");
}

#[test]
fn health_finds_the_portal_id_as_the_daemon_does_and_keeps_to_the_prefix() {
    let mut rig = Rig::new(Setup::default().prefix("boat1").without_portal());
    rig.fake().add(
        "com.victronenergy.system",
        venus_mqtt_integration::items([
            ("/Serial", venus_mqtt_integration::item("c0619ab1c2d3")),
            ("/DeviceInstance", venus_mqtt_integration::item(0)),
        ]),
    );
    rig.start_bridge();
    assert!(health(&rig, &[]).status.success());
    rig.stop(Part::Bridge);
    refused(&health(&rig, &[]), "boat1/venus-mqtt/c0619ab1c2d3/status says \"offline\"");
}

#[test]
fn health_of_a_broker_that_takes_the_connection_and_says_nothing() {
    let mut rig = Rig::new(Setup::default());
    rig.start_bridge();
    rig.pause(Part::Broker);
    refused(&health(&rig, &["--timeout", "0.5"]), "no answer within 0.5 s");
    rig.resume(Part::Broker);
}

#[test]
#[ignore = "needs a container engine and the image: integration/test --containers"]
fn containers_are_healthy_while_the_daemon_is_online() {
    let mut rig = Rig::in_containers(Setup::default());
    rig.start_bridge();
    let project = rig.dir().file_name().expect("a name").to_string_lossy().to_lowercase();
    let docker = |arguments: &[&str]| {
        let output = Command::new("docker").args(arguments).output().expect("docker");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let labels = [format!("label=com.docker.compose.project={project}"), "label=com.docker.compose.service=bridge".into()];
    let id = docker(&["ps", "-q", "--filter", &labels[0], "--filter", &labels[1]]);
    let inspect = |what: &str| docker(&["inspect", "-f", what, &id]);
    assert_eq!(inspect("{{.Config.User}} {{.HostConfig.ReadonlyRootfs}}"), "venus-mqtt true");
    // the engine asks every 30 s
    eventually("healthy", Duration::from_secs(60), || (inspect("{{.State.Health.Status}}") == "healthy").then_some(()));
    let config = rig.config();
    let asked = || Command::new("docker").args(["exec", &id, "venus-mqtt", "health", "--config"]).arg(&config).output().expect("docker");
    assert!(asked().status.success());
    rig.kill(Part::Broker);
    refused(&asked(), "no answer");
}

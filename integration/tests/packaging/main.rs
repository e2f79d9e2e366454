//! What is shipped does on a device what it should: packages, scripts, and what survives a firmware update.
//!
//! Those marked `ignore` need root, for a device of their own (`Gx`); `integration/test` runs them.

#![forbid(unsafe_code)]

mod boot;
mod cross;
mod debian;
mod device;
mod package;
mod privileges;
mod setup;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;
use venus_mqtt_integration::{Gx, PORTAL, Rig, Setup, item, items, parts::binary};

/// The repository.
const TOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A file of the repository.
fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(TOP).join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The daemon as this machine runs it, without its symbols: what a package holds is unpacked again and again here.
fn program() -> &'static Path {
    static STRIPPED: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = STRIPPED.get_or_init(|| {
        let dir = TempDir::new().expect("a folder");
        let to = dir.path().join("venus-mqtt");
        let from = binary("VENUS_MQTT_BIN", "venus-mqtt").expect("cargo build --workspace");
        run(Command::new("objcopy").arg("--strip-all").arg(from).arg(&to));
        (dir, to)
    });
    path
}

/// Builds a package of the daemon of this machine that says it is of `architecture`, with whatever else the environment is to be.
fn build_package(architecture: &str, folder: &Path, environment: &[(&str, &str)]) -> PathBuf {
    let mut build = Command::new(Path::new(TOP).join("packaging/ipk/build"));
    build.arg(program()).arg(architecture).arg(folder).envs(environment.iter().copied());
    run(&mut build).trim_end().into()
}

/// The package of each architecture, made once.
fn package(architecture: &str) -> PathBuf {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let dir = MADE.get_or_init(|| {
        let dir = TempDir::new().expect("a folder");
        for architecture in ["armv7ahf-vfp", "aarch64"] {
            build_package(architecture, dir.path(), &[]);
        }
        dir
    });
    dir.path().join(format!("venus-mqtt_{}-r0_{architecture}.ipk", env!("CARGO_PKG_VERSION")))
}

/// What a command prints; it has to succeed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A device that is told which bus and broker to use, in a file with a word of its user's own, and who it is.
fn device(rig: &Rig) -> Gx {
    let gx = Gx::beside(rig);
    let port = rig.broker_address().port();
    let text = format!("{MINE}\n[dbus]\naddress = \"unix:path=/rig/bus\"\n[mqtt]\nport = {port}\n[bridge]\nenabled = true\n");
    gx.write("conf/venus-mqtt.toml", &text);
    gx.write("venus/unique-id", PORTAL);
    gx
}

/// What a user has written into the configuration.
const MINE: &str = "# the line to the shore is short";

/// A bus with a battery on it that knows the accounts of the device, and a broker.
fn rig() -> Rig {
    let rig = Rig::new(Setup::default().account(&format!("venus-mqtt:*:{USER}:{USER}::/:/bin/false")));
    rig.fake().add("com.victronenergy.battery.ttyO1", items([("/DeviceInstance", item(512)), ("/Soc", item(87.0))]));
    rig
}

/// The daemon in the device serves, as the user of its own; which process it is.
fn serves(gx: &Gx, rig: &Rig) -> u32 {
    serves_anew(gx, rig, None)
}

/// So does another process than this.
fn serves_anew(gx: &Gx, rig: &Rig, before: Option<u32>) -> u32 {
    let (process, user) = gx.await_up("venus-mqtt", before);
    assert_eq!(user, USER);
    let client = rig.listener();
    client.expect(&rig.status_topic(), "online");
    client.keepalive("");
    client.n("battery/512/Soc", "{\"value\":87.0}");
    process
}

/// The root file system is as it was.
fn same(before: &BTreeSet<String>, after: &BTreeSet<String>) {
    let (lost, left): (Vec<_>, Vec<_>) = (before.difference(after).collect(), after.difference(before).collect());
    assert!(lost.is_empty() && left.is_empty(), "lost: {lost:?}, left behind: {left:?}");
}

/// The number of the service's user, for ever.
const USER: u32 = 811;

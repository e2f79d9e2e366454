//! What survives a firmware update: `venus-mqtt-setup`, and what it leaves in /data.

use std::path::Path;

use venus_mqtt_integration::Gx;

use crate::{MINE, TOP, device, package, program, rig, same, serves, serves_anew};

pub const SETUP: &str = "/data/venus-mqtt-setup/venus-mqtt-setup";
pub const HOOK: &str = "[ ! -x /data/venus-mqtt-setup/venus-mqtt-setup ] || /data/venus-mqtt-setup/venus-mqtt-setup boot || : # venus-mqtt";
/// In a file that was made for it.
pub const OWN_HOOK: &str = "[ ! -x /data/venus-mqtt-setup/venus-mqtt-setup ] || /data/venus-mqtt-setup/venus-mqtt-setup boot || : # venus-mqtt, which made this file";

/// What a user has copied onto the device and unpacked, without any package.
pub fn unpack(gx: &Gx) {
    gx.write("download/.keep", "");
    for file in ["venus-mqtt-setup", "venus-mqtt.toml", "service"] {
        gx.copy(&Path::new(TOP).join("packaging").join(file), &format!("download/{file}"));
    }
    gx.copy(program(), "download/venus-mqtt");
}

pub fn install(gx: &Gx) -> String {
    gx.run("sh /data/download/venus-mqtt-setup install")
}

#[test]
#[ignore = "needs root: integration/test"]
fn a_firmware_update_takes_nothing_away() {
    let rig = rig();
    let mut gx = device(&rig);
    unpack(&gx);
    gx.boot();
    let before = gx.inventory();
    let said = install(&gx);
    assert!(said.contains("is started at each boot by /data/rc.local"), "{said}");
    serves(&gx, &rig);

    gx.reboot();
    serves(&gx, &rig);

    // nothing is needed but /data: not even what it was installed from
    gx.run("rm -r /data/download");
    gx.update_firmware();
    serves(&gx, &rig);
    assert!(gx.run("cat /data/conf/venus-mqtt.toml").starts_with(MINE));
    let status = gx.run(&format!("{SETUP} status"));
    assert!(status.contains("survives firmware updates") && status.contains(": up (pid "), "{status}");

    let said = gx.run(&format!("{SETUP} remove"));
    assert!(said.contains("/data/conf/venus-mqtt.toml stays"), "{said}");
    assert!(gx.process("venus-mqtt").is_none());
    assert_eq!(
        gx.run("ls -A /service; ls /data /data/venus-mqtt"),
        "neighbour\n/data:\nconf\nlog\nvenus\nvenus-mqtt\n\n/data/venus-mqtt:\ndevices.json\n"
    );
    gx.reboot();
    assert_eq!(gx.run("ls -A /service"), "neighbour\n");
    same(&before, &gx.inventory());
}

#[test]
#[ignore = "needs root: integration/test"]
fn installing_again_changes_nothing_but_the_version() {
    let rig = rig();
    let mut gx = device(&rig);
    unpack(&gx);
    gx.boot();
    install(&gx);
    let old = serves(&gx, &rig);
    let files = "find /data -path /data/log -prune -o ! -name devices.json -print | sort; cat /data/rc.local";
    let once = gx.run(files);
    install(&gx);
    serves_anew(&gx, &rig, Some(old));
    assert_eq!(gx.run(files), once);
    assert_eq!(gx.run("cat /data/rc.local"), format!("#!/bin/sh\n{OWN_HOOK}\n"));
}

#[test]
#[ignore = "needs root: integration/test"]
fn where_even_the_accounts_are_read_only() {
    let rig = rig();
    let mut gx = device(&rig).with_read_only_etc();
    unpack(&gx);
    gx.boot();
    install(&gx);
    serves(&gx, &rig);
    gx.update_firmware();
    serves(&gx, &rig);
}

#[test]
#[ignore = "needs root: integration/test"]
fn a_package_goes_first_until_an_update_takes_it_away() {
    let rig = rig();
    let mut gx = device(&rig);
    gx.boot();
    gx.remount_rw();
    assert!(gx.dpkg(&format!("--install {}", package("armv7ahf-vfp").display())).success);
    let said = gx.run("/opt/victronenergy/venus-mqtt/venus-mqtt-setup install");
    assert!(said.contains("what runs is the installed package"), "{said}");
    gx.reboot();
    serves(&gx, &rig);
    assert!(gx.run("cat /service/venus-mqtt/run").contains(" /opt/victronenergy/venus-mqtt/venus-mqtt\n"));
    gx.update_firmware();
    serves(&gx, &rig);
    assert!(gx.run("cat /service/venus-mqtt/run").contains(" /data/venus-mqtt-setup/venus-mqtt\n"));
}

#[test]
#[ignore = "needs root: integration/test"]
fn removing_the_package_removes_what_brings_it_back() {
    let rig = rig();
    let mut gx = device(&rig);
    gx.boot();
    gx.remount_rw();
    let package = package("armv7ahf-vfp");
    assert!(gx.dpkg(&format!("--install {}", package.display())).success);
    gx.run("/opt/victronenergy/venus-mqtt/venus-mqtt-setup install");
    serves(&gx, &rig);
    // an upgrade of the package is one of the copy
    gx.run("echo old > /data/venus-mqtt-setup/venus-mqtt.toml");
    assert!(gx.dpkg(&format!("--install {}", package.display())).success);
    assert_eq!(gx.run("cat /data/venus-mqtt-setup/venus-mqtt.toml"), crate::read("packaging/venus-mqtt.toml"));
    // what is in the way of the copy is said, and is nothing to the package
    gx.run("chmod 644 /data/rc.local");
    let said = gx.dpkg(&format!("--install {}", package.display()));
    let expected = "it is NOT started after a firmware update, which takes the package away: /data/rc.local is not executable";
    assert!(said.success && said.text.contains(expected), "{}", said.text);
    let status = gx.run(&format!("{SETUP} status"));
    assert!(status.contains("the package is installed, and is started at each boot") && status.contains(expected), "{status}");
    assert!(gx.dpkg("--remove venus-mqtt").success);
    assert_eq!(gx.run("ls -A /service; ls -A /data"), "neighbour\nconf\nlog\nvenus\nvenus-mqtt\n");
    gx.reboot();
    assert_eq!(gx.run("ls -A /service"), "neighbour\n");
}

#[test]
#[ignore = "needs root: integration/test"]
fn what_is_run_as_root_cannot_be_put_there_by_the_daemon() {
    let mut gx = Gx::new();
    unpack(&gx);
    gx.boot();
    install(&gx);
    let tried = |line: &str| gx.sh(&format!("setuidgid venus-mqtt sh -c '{line}'")).success;
    assert!(tried("echo > /data/venus-mqtt/devices.json && mv /data/venus-mqtt/devices.json /data/venus-mqtt/other"), "its own files");
    for line in [
        "echo > /data/venus-mqtt-setup/venus-mqtt-setup",
        "mv /data/venus-mqtt-setup/service /data/venus-mqtt/mine",
        "rm -f /data/venus-mqtt-setup/venus-mqtt",
        "echo > /data/venus-mqtt-setup/service/run",
        "echo > /data/venus-mqtt-setup/other",
        "mv /data/venus-mqtt-setup /data/other",
        "mkdir /data/other",
        "echo > /data/rc.local",
    ] {
        assert!(!tried(line), "{line}");
    }
}

#[test]
#[ignore = "needs root: integration/test"]
fn a_mistake_is_told() {
    let mut gx = Gx::new();
    unpack(&gx);
    gx.boot();
    let refused = |line: &str, expected: &str| {
        let said = gx.sh(line);
        assert!(!said.success && said.text.contains(expected), "{line}: {}", said.text);
    };
    refused("sh /data/download/venus-mqtt-setup instal", "no command instal; there are install, remove and status");
    gx.run("cp -r /data/download /data/partial; rm /data/partial/venus-mqtt");
    refused("sh /data/partial/venus-mqtt-setup install", "there is no venus-mqtt or no service beside this script");
    gx.run("printf '\\177ELF of another machine' > /data/partial/venus-mqtt; chmod +x /data/partial/venus-mqtt");
    refused("sh /data/partial/venus-mqtt-setup install", "is it the package of another architecture?");
    gx.run("mkdir -p /data/venus-mqtt && cp -r /data/download /data/venus-mqtt/download");
    refused("sh /data/venus-mqtt/download/venus-mqtt-setup install", "unpack it elsewhere");
    gx.run("rm -r /data/venus-mqtt");
    refused("sh /data/download/venus-mqtt-setup status", "is gone after a firmware update");
    assert!(gx.run("sh /data/download/venus-mqtt-setup").contains("venus-mqtt-setup install "), "without a word it says what there is");
    assert_eq!(gx.run("ls -A /data"), "conf\ndownload\nlog\npartial\n", "nothing was done");
}

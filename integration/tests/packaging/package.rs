//! The .ipk: what is in it, and that it is the same whoever builds it.

use std::{fs, io::Read, path::Path, process::Command};

use flate2::read::GzDecoder;
use tempfile::TempDir;

use crate::{build_package, package, read, run};

/// A member of the archive.
fn member(package: &Path, name: &str) -> Vec<u8> {
    let output = Command::new("ar").arg("p").arg(package).arg(name).output().expect("binutils");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What tar lists of a member: rights, owner, path.
fn listing(package: &Path, name: &str) -> Vec<String> {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join(name);
    fs::write(&file, member(package, name)).expect("written");
    let text = run(Command::new("tar").args(["--list", "--verbose", "--numeric-owner", "--file"]).arg(file));
    text.lines()
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            format!("{} {} {}", words[0], words[1], words[5..].join(" "))
        })
        .collect()
}

#[test]
fn what_opkg_of_every_venus_reads() {
    let package = package("armv7ahf-vfp");
    let members = run(Command::new("ar").arg("t").arg(&package));
    assert_eq!(members.lines().collect::<Vec<_>>(), ["debian-binary", "control.tar.gz", "data.tar.gz"]);
    assert_eq!(member(&package, "debian-binary"), b"2.0\n");
    for name in ["control.tar.gz", "data.tar.gz"] {
        let mut tar = Vec::new();
        GzDecoder::new(&member(&package, name)[..]).read_to_end(&mut tar).expect("gzip, which opkg 0.4.2 reads");
        assert_eq!(&tar[257..262], b"ustar", "{name}");
    }
}

#[test]
fn what_lands_where() {
    let package = package("armv7ahf-vfp");
    assert_eq!(
        listing(&package, "data.tar.gz"),
        [
            "drwxr-xr-x 0/0 ./",
            "drwxr-xr-x 0/0 ./opt/",
            "drwxr-xr-x 0/0 ./opt/victronenergy/",
            "drwxr-xr-x 0/0 ./opt/victronenergy/service/",
            "drwxr-xr-x 0/0 ./opt/victronenergy/service/venus-mqtt/",
            "drwxr-xr-x 0/0 ./opt/victronenergy/service/venus-mqtt/log/",
            "-rwxr-xr-x 0/0 ./opt/victronenergy/service/venus-mqtt/log/run",
            "-rwxr-xr-x 0/0 ./opt/victronenergy/service/venus-mqtt/run",
            "drwxr-xr-x 0/0 ./opt/victronenergy/venus-mqtt/",
            "-rwxr-xr-x 0/0 ./opt/victronenergy/venus-mqtt/venus-mqtt",
            "-rwxr-xr-x 0/0 ./opt/victronenergy/venus-mqtt/venus-mqtt-setup",
            "-rw-r--r-- 0/0 ./opt/victronenergy/venus-mqtt/venus-mqtt.toml",
            "drwxr-xr-x 0/0 ./usr/",
            "drwxr-xr-x 0/0 ./usr/bin/",
            "lrwxrwxrwx 0/0 ./usr/bin/venus-mqtt -> /opt/victronenergy/venus-mqtt/venus-mqtt",
        ],
        "nothing in /data: the configuration is the user's"
    );
    assert_eq!(
        listing(&package, "control.tar.gz"),
        [
            "drwxr-xr-x 0/0 ./",
            "-rw-r--r-- 0/0 ./control",
            "-rwxr-xr-x 0/0 ./postinst",
            "-rwxr-xr-x 0/0 ./postrm",
            "-rwxr-xr-x 0/0 ./preinst",
            "-rwxr-xr-x 0/0 ./prerm"
        ]
    );
}

#[test]
fn the_same_bytes_whoever_builds_it() {
    let dir = TempDir::new().expect("a folder");
    let built = |folder: &str, environment: &[(&str, &str)]| {
        fs::read(build_package("aarch64", &dir.path().join(folder), environment)).expect("built")
    };
    let one = built("one", &[("TZ", "Asia/Tokyo"), ("LC_ALL", "C")]);
    assert!(one == built("two", &[("TZ", "America/Lima"), ("LC_ALL", "C.UTF-8"), ("TMPDIR", "/var/tmp")]));
    assert!(one != built("three", &[("SOURCE_DATE_EPOCH", "86400")]), "the time is what it is told");
}

#[test]
fn the_script_that_runs_it_limits_it_and_gives_it_a_user() {
    let script = read("packaging/service/run");
    let last = script.lines().last().expect("a line");
    let limited = last.contains(" exec softlimit -d ") && last.contains(" setuidgid venus-mqtt /opt/victronenergy/venus-mqtt/venus-mqtt");
    assert!(limited, "{script}");
    assert!(read("packaging/service/log/run").ends_with("exec multilog t s25000 n4 /var/log/venus-mqtt\n"));
}

/// What opkg of a device takes: 32-bit ones have all of these, 64-bit ones have their own.
const DEVICES: [(&str, &[&str]); 2] =
    [("armv7ahf-vfp", &["all", "any", "noarch", "armv7ahf-vfp"]), ("aarch64", &["all", "any", "noarch", "aarch64"])];

#[test]
fn each_device_takes_the_package_of_its_architecture_only() {
    for (architecture, _) in DEVICES {
        let control = run(Command::new("dpkg-deb").arg("--field").arg(package(architecture)).arg("Architecture"));
        for (device, taken) in DEVICES {
            assert_eq!(taken.contains(&control.trim_end()), device == architecture, "{control} on {device}");
        }
    }
}

//! The package on a device: its maintainer scripts, run for real.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use tempfile::TempDir;
use venus_mqtt_integration::{Gx, gx::Said};

use crate::{MINE, TOP, USER, build_package, device, package, rig, same, serves, serves_anew};

const ARCHITECTURE: &str = "armv7ahf-vfp";

fn install(gx: &Gx, package: &Path) -> Said {
    gx.dpkg(&format!("--install {}", package.display()))
}

/// An installed device that serves, and its package's file system before that.
fn installed(gx: &mut Gx) -> BTreeSet<String> {
    gx.boot();
    gx.remount_rw();
    let before = gx.inventory();
    let said = install(gx, &package(ARCHITECTURE));
    assert!(said.success, "{}", said.text);
    assert!(said.text.contains("/data/conf/venus-mqtt.toml"), "what to do next: {}", said.text);
    before
}

#[test]
#[ignore = "needs root: integration/test"]
fn installed_upgraded_removed() {
    let rig = rig();
    let mut gx = device(&rig);
    let before = installed(&mut gx);
    let old = serves(&gx, &rig);
    let log = gx.run("cat /var/log/venus-mqtt/current");
    // multilog's time stamps
    assert!(log.lines().all(|line| line.starts_with('@')) && log.contains("connected to the bus"), "{log}");

    // an upgrade: the new program runs, and what the user has written is as it was
    let said = install(&gx, &package(ARCHITECTURE));
    assert!(said.success && !said.text.contains("firmware update"), "{}", said.text);
    serves_anew(&gx, &rig, Some(old));
    assert!(gx.run("cat /data/conf/venus-mqtt.toml").starts_with(MINE));

    // a reboot
    gx.reboot();
    serves(&gx, &rig);

    gx.remount_rw();
    let said = gx.dpkg("--remove venus-mqtt");
    assert!(said.success, "{}", said.text);
    assert!(gx.process("venus-mqtt").is_none());
    assert_eq!(gx.run("ls -A /service"), "neighbour\n");
    same(&before, &gx.inventory());
    assert!(gx.run("cat /data/conf/venus-mqtt.toml").starts_with(MINE));
    assert_eq!(gx.run("ls /data/venus-mqtt"), "devices.json\n", "what was remembered stays");
}

#[test]
#[ignore = "needs root: integration/test"]
fn a_first_install_writes_a_configuration_that_says_what_there_is() {
    let mut gx = Gx::new();
    installed(&mut gx);
    assert_eq!(gx.run("cat /data/conf/venus-mqtt.toml"), crate::read("packaging/venus-mqtt.toml"));
    let checked = gx.sh("venus-mqtt check");
    assert!(checked.success && checked.text.contains("# from /data/conf/venus-mqtt.toml"), "{}", checked.text);
    // there is no bus: it is started again and again, and says why
    venus_mqtt_integration::eventually("the log says what is missing", venus_mqtt_integration::DEADLINE, || {
        gx.sh("cat /var/log/venus-mqtt/current").text.contains("no connection to the bus").then_some(())
    });
    assert!(gx.run("ls -nd /data/venus-mqtt").starts_with("drwx------    2 811      811 "), "the daemon's own folder");
}

#[test]
#[ignore = "needs root: integration/test"]
fn a_root_that_is_read_only_is_told_before_anything_is_unpacked() {
    let mut gx = Gx::new();
    gx.boot();
    // dpkg itself writes where it keeps its notes
    let preinst = Path::new(TOP).join("packaging/ipk/preinst");
    gx.copy(&preinst, "preinst");
    let said = gx.sh("/data/preinst install");
    assert!(!said.success && said.text.contains("remount-rw.sh"), "{}", said.text);
    gx.remount_rw();
    assert!(gx.sh("/data/preinst install").success);
    assert_eq!(gx.run("ls -A /opt"), "victronenergy\n");
}

#[test]
#[ignore = "needs root: integration/test"]
fn the_package_of_another_architecture_is_refused() {
    let mut gx = Gx::new();
    gx.boot();
    gx.remount_rw();
    let before = gx.inventory();
    let said = install(&gx, &package("aarch64"));
    assert!(!said.success && said.text.contains("architecture"), "{}", said.text);
    same(&before, &gx.inventory());
}

#[test]
#[ignore = "needs root: integration/test"]
fn a_factory_reset_of_the_data_is_made_good_at_the_next_start() {
    let rig = rig();
    let mut gx = device(&rig);
    installed(&mut gx);
    serves(&gx, &rig);
    let configuration = fs::read_to_string(gx.data().join("conf/venus-mqtt.toml")).expect("there");
    gx.run("rm -rf /data/venus-mqtt /data/conf");
    gx.write("conf/venus-mqtt.toml", &configuration);
    gx.reboot();
    serves(&gx, &rig);
    assert!(gx.run("ls -n /data/venus-mqtt").contains(&USER.to_string()));
}

/// As opkg does with `--offline-root`, and an image's build with `D`: scripts of the package, the root somewhere else.
#[test]
fn in_an_image_there_is_the_account_and_nothing_runs() {
    for variable in ["PKG_ROOT", "D"] {
        let dir = TempDir::new().expect("a folder");
        let unpacked = Command::new("dpkg-deb").arg("--raw-extract").arg(package(ARCHITECTURE)).arg(dir.path()).output().expect("dpkg-deb");
        assert!(unpacked.status.success());
        fs::create_dir(dir.path().join("etc")).expect("made");
        for file in ["passwd", "group"] {
            fs::write(dir.path().join("etc").join(file), "root:*:0:0\n").expect("written");
        }
        let script = |name: &str, argument: &str| {
            let mut command = Command::new("/bin/sh");
            command.arg(dir.path().join("DEBIAN").join(name)).arg(argument).env(variable, dir.path());
            let output = command.output().expect("a shell");
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success() && text.is_empty(), "{name} {argument}: {text}");
        };
        let accounts = || ["passwd", "group"].map(|file| fs::read_to_string(dir.path().join("etc").join(file)).expect("there"));
        script("preinst", "install");
        for _ in 0..2 {
            script("postinst", "configure");
            let [passwd, group] = accounts();
            assert_eq!(passwd, "root:*:0:0\nvenus-mqtt:*:811:811:venus-mqtt:/data/venus-mqtt:/bin/false\n");
            assert_eq!(group, "root:*:0:0\nvenus-mqtt:x:811:\n");
        }
        assert!(!dir.path().join("data").exists() && !dir.path().join("service").exists());
        script("prerm", "remove");
        fs::remove_dir_all(dir.path().join("opt")).expect("gone");
        script("postrm", "remove");
        assert_eq!(accounts(), ["root:*:0:0\n", "root:*:0:0\n"]);
    }
}

#[test]
fn a_number_that_is_taken_is_said() {
    let dir = TempDir::new().expect("a folder");
    fs::create_dir(dir.path().join("etc")).expect("made");
    fs::write(dir.path().join("etc/passwd"), "root:*:0:0\nother:*:811:811\n").expect("written");
    fs::write(dir.path().join("etc/group"), "root:x:0:\n").expect("written");
    let mut command = Command::new(Path::new(TOP).join("packaging/venus-mqtt-setup"));
    let output = command.arg("prepare").env("VENUS_MQTT_ROOT", dir.path()).output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("811 is taken") && text.contains("(other)"), "{text}");
    assert_eq!(fs::read_to_string(dir.path().join("etc/group")).expect("there"), "root:x:0:\n");
}

#[test]
fn a_package_can_be_built_again_over_an_old_one() {
    let dir = TempDir::new().expect("a folder");
    let first = build_package("aarch64", dir.path(), &[]);
    let size = fs::metadata(&first).expect("built").len();
    assert_eq!(build_package("aarch64", dir.path(), &[]), first);
    assert_eq!(fs::metadata(&first).expect("built").len(), size);
}

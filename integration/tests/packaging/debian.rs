//! The Debian package under a real systemd: it is ready when it says so, and is started anew when its loop stands still.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;
use venus_mqtt_integration::{DEADLINE, eventually, parts::binary};

use crate::{TOP, program, run};

/// A Debian that has booted, with a bus and a broker; it goes with the test.
struct Debian {
    id: String,
}

impl Debian {
    fn boot() -> Self {
        let mut docker = Command::new("docker");
        docker.args(["run", "--detach", "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--cgroupns", "host"]);
        docker.args(["--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp"]);
        docker.args(["--env", "container=docker"]);
        docker.arg("--label").arg(format!("org.venusmqtt.run={}", std::env::var("RIG_RUN").unwrap_or_default()));
        let debian = Self { id: run(docker.arg("venus-mqtt-systemd:bookworm")).trim().to_owned() };
        eventually("it has booted", Duration::from_secs(60), || {
            ["running", "degraded"].contains(&debian.sh("systemctl is-system-running").1.trim()).then_some(())
        });
        debian
    }

    fn sh(&self, line: &str) -> (bool, String) {
        let output = Command::new("docker").args(["exec", &self.id, "sh", "-c", line]).output().expect("docker");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// What a command says; it has to succeed.
    fn run(&self, line: &str) -> String {
        let (success, text) = self.sh(line);
        assert!(success, "{line}: {text}");
        text
    }

    fn copy(&self, from: &Path, to: &str) {
        run(Command::new("docker").arg("cp").arg(from).arg(format!("{}:{to}", self.id)));
    }

    /// A property of the service.
    fn shows(&self, property: &str) -> String {
        self.run(&format!("systemctl show --value --property {property} venus-mqtt")).trim().to_owned()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- journal ---\n{}", self.sh("journalctl --no-pager --lines 60").1);
        }
        let _ = Command::new("docker").args(["rm", "--force", "--volumes", &self.id]).output();
    }
}

fn package(folder: &Path) -> PathBuf {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    run(Command::new(Path::new(TOP).join("packaging/debian/build")).arg(program()).arg(target).arg(folder)).trim().into()
}

#[test]
#[ignore = "needs a container engine and the image: integration/test --containers"]
fn containers_systemd_starts_it_watches_it_and_ends_it() {
    let folder = TempDir::new().expect("a folder");
    let package = package(folder.path());
    let debian = Debian::boot();
    debian.copy(&package, "/root/venus-mqtt.deb");
    debian.run("dpkg --install /root/venus-mqtt.deb");
    debian.run("systemd-analyze verify --man=no venus-mqtt.service");

    // dpkg waits for the service, and the service says when it is ready
    assert_eq!(debian.shows("ActiveState"), "active");
    let process = debian.shows("MainPID");
    eventually("the broker is there", DEADLINE, || (debian.shows("StatusText") == "connected to the bus and to the broker").then_some(()));
    assert_eq!(debian.run(&format!("ps -o user= -p {process} 2>/dev/null || stat -c %U /proc/{process}")).trim(), "venus-mqtt");
    // once it is known that no other bridge is there
    eventually("it is online", Duration::from_secs(60), || (debian.sh("venus-mqtt health") == (true, "online\n".into())).then_some(()));

    // a device registers, and another program reads it on the system bus, by the rights that the package gives
    debian.copy(&binary("VENUS_SETTINGS_BIN", "fake-localsettings").expect("built"), "/usr/bin/fake-localsettings");
    debian.run("systemd-run --quiet fake-localsettings --dbus unix:path=/run/dbus/system_bus_socket --file /root/settings.json");
    let status = r#"{"clientId":"fe001","connected":1,"services":{"t1":"temperature"}}"#;
    eventually("it is on the bus", DEADLINE, || {
        debian.run(&format!("mosquitto_pub -t device/fe001/Status -m '{status}'"));
        let get = "dbus-send --system --print-reply=literal --dest=com.victronenergy.temperature.mqtt_fe001_t1 /DeviceInstance com.victronenergy.BusItem.GetValue";
        debian.sh(get).1.contains("int32 1").then_some(())
    });
    assert!(debian.run("venus-mqtt devices").contains("t1 temperature/1"));
    assert!(!debian.sh("setpriv --reuid nobody --clear-groups dbus-send --system --print-reply --dest=com.victronenergy.settings / com.victronenergy.BusItem.GetItems").0);

    // it is told to read its configuration again, and is the same process
    debian.run("systemctl reload venus-mqtt");
    eventually("it has", DEADLINE, || debian.run("journalctl --unit venus-mqtt --no-pager").contains("told to start again").then_some(()));
    eventually("it is back", DEADLINE, || (debian.shows("ActiveState") == "active").then_some(()));
    assert_eq!(debian.shows("MainPID"), process);

    // a loop that stands still
    debian.run("mkdir -p /run/systemd/system/venus-mqtt.service.d && printf '[Service]\\nWatchdogSec=2\\n' > /run/systemd/system/venus-mqtt.service.d/quick.conf && systemctl daemon-reload && systemctl restart venus-mqtt");
    let process = debian.shows("MainPID");
    debian.run(&format!("kill -STOP {process}"));
    eventually("it is started anew", DEADLINE, || {
        (debian.shows("ActiveState") == "active" && debian.shows("MainPID") != process).then_some(())
    });
    assert!(debian.run("journalctl --unit venus-mqtt --no-pager").contains("Watchdog timeout"));

    // a wrong configuration is not tried again and again
    debian.run("cp /etc/venus-mqtt/config.toml /root/; echo nonsense > /etc/venus-mqtt/config.toml");
    debian.sh("systemctl restart venus-mqtt");
    eventually("it is given up", DEADLINE, || (debian.shows("ActiveState") == "failed").then_some(()));
    assert_eq!(debian.shows("ExecMainStatus"), "78");
    debian.run("cp /root/config.toml /etc/venus-mqtt/; systemctl restart venus-mqtt");

    debian.run("dpkg --remove venus-mqtt");
    assert!(!debian.sh("pidof venus-mqtt").0);
    assert!(debian.sh("test -s /var/lib/venus-mqtt/devices.json -a -s /etc/venus-mqtt/config.toml").0, "what is the user's stays");
    debian.run("dpkg --purge venus-mqtt");
    assert!(!debian.sh("ls -d /var/lib/venus-mqtt /etc/venus-mqtt/config.toml /usr/bin/venus-mqtt").0);
}

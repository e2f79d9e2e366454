//! A GX device without one: a root file system of BusyBox and daemontools, and what happens to it between two boots.
//!
//! What it promises: the root is read-only and /data is not, /etc and /service are volatile, svscan runs what is in /service, and
//! /data/rc.local is run at the end of a boot if it is executable and modifications are not switched off, all as on a device. It is a machine in name spaces of its own: when it is powered off,
//! or dropped, every process in it has ended. What it is not: a kernel, and the rest of Venus OS.
//!
//! It needs root, util-linux, busybox-static and daemontools, and dpkg in place of opkg, whose packages have the same form.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{DEADLINE, Rig, eventually, parts::binary};

/// What a GX device's BusyBox has not, or another program has in its place.
const NOT_IN_BUSYBOX: [&str; 13] = [
    "adduser",
    "addgroup",
    "deluser",
    "delgroup",
    "svc",
    "svok",
    "svlogd",
    "setuidgid",
    "envuidgid",
    "envdir",
    "softlimit",
    "stat",
    "dpkg",
];
/// Of daemontools.
const DAEMONTOOLS: [&str; 8] = ["svscan", "supervise", "svc", "svok", "svstat", "multilog", "setuidgid", "softlimit"];

const PASSWD: &str = "root:*:0:0:root:/root:/bin/sh\nnobody:*:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// How the machine comes up: what is read-only and what is volatile, then what init does. The arguments are the root and /data.
const BOOT: &str = r#"
set -e
cd "$1"
mount --bind . .
cd "$1"
mount --bind "$2" data
if [ -d rig ]; then mount --bind "$3" rig; fi
mount -t proc proc proc
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs service
mount --bind /dev/null dev/null
if [ "$4" = volatile ]; then
    cp -a etc run/etc
    mount --bind run/etc etc
fi
mount -o remount,bind,ro .
exec chroot . /bin/sh -c '
    cp -r /opt/victronenergy/service/. /service/
    svscan /service &
    if grep -q "<AllModificationsEnabled[^>]*>0<" /data/conf/settings.xml 2>/dev/null; then mv /data/rc.local /data/rc.local.disabled; fi
    /etc/init.d/custom-rc-late.sh start
    : > /run/booted
    wait'
"#;

/// What init runs last.
const CUSTOM_RC: &str = "#!/bin/sh\nif [ \"$1\" = start ] && [ -x /data/rc.local ]; then\n    /data/rc.local\nfi\nexit 0\n";

/// A device. It is off until it is booted.
pub struct Gx {
    dir: TempDir,
    /// The folder of a rig, which the device sees as /rig.
    rig: Option<PathBuf>,
    volatile_etc: bool,
    /// /bin/sh is bash, as in most images; else BusyBox.
    bash: bool,
    machine: Option<Child>,
}

/// What a command in the device said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub success: bool,
    pub text: String,
}

impl Gx {
    /// A new device, as it comes from the factory.
    pub fn new() -> Self {
        let gx = tempfile::Builder::new().prefix("venus-gx-").tempdir().map_err(anyhow::Error::from).and_then(|dir| {
            let gx = Self { dir, rig: None, volatile_etc: true, bash: false, machine: None };
            fs::create_dir_all(gx.data().join("conf"))?;
            fs::create_dir_all(gx.data().join("log"))?;
            gx.flash()?;
            Ok(gx)
        });
        gx.unwrap_or_else(|error| panic!("no device: {error:#}"))
    }

    /// One that sees the bus and the broker of a rig.
    pub fn beside(rig: &Rig) -> Self {
        let mut gx = Self::new();
        gx.rig = Some(rig.dir().to_owned());
        fs::create_dir(gx.root().join("rig")).expect("the root takes a folder");
        gx
    }

    /// One whose /etc is as read-only as the rest.
    pub fn with_read_only_etc(mut self) -> Self {
        self.volatile_etc = false;
        self
    }

    /// One whose shell is bash.
    pub fn with_bash() -> Self {
        let mut gx = Self::new();
        gx.bash = true;
        gx.replace_root();
        gx
    }

    /// The root file system, as a firmware has it.
    fn flash(&self) -> Result<()> {
        let root = self.root();
        for dir in [
            "bin",
            "usr/bin",
            "etc/init.d",
            "dev",
            "proc",
            "run",
            "tmp",
            "root",
            "service",
            "data",
            "opt/victronenergy/service",
            "var/lib/dpkg/info",
        ] {
            fs::create_dir_all(root.join(dir))?;
        }
        if self.rig.is_some() {
            fs::create_dir(root.join("rig"))?;
        }
        fs::write(root.join("dev/null"), "")?;
        fs::write(root.join("etc/passwd"), PASSWD)?;
        fs::write(root.join("etc/group"), GROUP)?;
        // of somebody else, so that the folders are not ours alone
        fs::create_dir(root.join("opt/victronenergy/service/neighbour"))?;
        fs::write(root.join("opt/victronenergy/service/neighbour/run"), "#!/bin/sh\nexec sleep 100000\n")?;
        fs::set_permissions(root.join("opt/victronenergy/service/neighbour/run"), fs::Permissions::from_mode(0o755))?;
        fs::write(root.join("var/lib/dpkg/status"), "")?;
        fs::write(root.join("var/lib/dpkg/arch"), "armv7ahf-vfp\n")?;
        symlink("/data/log", root.join("var/log"))?;
        fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is not installed")?;
        let applets = Command::new("/bin/busybox").arg("--list").output()?;
        for applet in String::from_utf8(applets.stdout)?.lines().filter(|applet| !NOT_IN_BUSYBOX.contains(applet) && *applet != "busybox") {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        symlink("/bin/busybox", root.join("usr/bin/env"))?;
        fs::write(root.join("etc/init.d/custom-rc-late.sh"), CUSTOM_RC)?;
        fs::set_permissions(root.join("etc/init.d/custom-rc-late.sh"), fs::Permissions::from_mode(0o755))?;
        if self.bash {
            fs::copy("/bin/bash", root.join("bin/bash"))?;
            self.add_libraries(Path::new("/bin/bash"))?;
            fs::remove_file(root.join("bin/sh"))?;
            symlink("bash", root.join("bin/sh"))?;
        }
        for program in DAEMONTOOLS {
            let from = Path::new("/usr/bin").join(program);
            fs::copy(&from, root.join("usr/bin").join(program))
                .with_context(|| format!("{}: daemontools is not installed", from.display()))?;
            self.add_libraries(&from)?;
        }
        // a device has more than these, and the packages of devices need none
        self.add_libraries(&binary("VENUS_MQTT_BIN", "venus-mqtt")?)
    }

    /// What a program of this machine needs to run in the device.
    pub fn add_libraries(&self, program: &Path) -> Result<()> {
        let listed = Command::new("ldd").arg(program).output()?;
        for word in String::from_utf8(listed.stdout)?.split_whitespace().filter(|word| word.starts_with('/')) {
            let to = self.root().join(word.trim_start_matches('/'));
            if !to.exists() {
                fs::create_dir_all(to.parent().context("a library lies in a folder")?)?;
                fs::copy(word, to)?;
            }
        }
        Ok(())
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// /data, which outlives every firmware.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Puts a file into /data.
    pub fn write(&self, file: &str, content: &str) {
        let path = self.data().join(file);
        let made = fs::create_dir_all(path.parent().unwrap_or(&path)).and_then(|()| fs::write(&path, content));
        made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Puts a file, with its rights, or a folder of this machine into /data.
    pub fn copy(&self, from: &Path, to: &str) {
        let said = Command::new("cp").args(["-a", "--"]).arg(from).arg(self.data().join(to)).output().expect("cp");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }

    /// Powers it on, and returns when init has done its work.
    pub fn boot(&mut self) {
        self.try_boot().unwrap_or_else(|error| panic!("it does not boot: {error:#}"));
        self.await_boot();
    }

    fn await_boot(&self) {
        eventually(&format!("it is booted: {}", self.console()), DEADLINE, || self.sh("test -e /run/booted").success.then_some(()));
    }

    fn try_boot(&mut self) -> Result<()> {
        ensure!(self.machine.is_none(), "it runs already");
        let console = fs::File::create(self.dir.path().join("console"))?;
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
            "/bin/sh",
            "-c",
            BOOT,
            "boot",
        ]);
        command.arg(self.root()).arg(self.data()).arg(self.rig.as_deref().unwrap_or(Path::new("")));
        command.arg(if self.volatile_etc { "volatile" } else { "read-only" });
        clean(&mut command).stdout(console.try_clone()?).stderr(console);
        self.machine = Some(command.spawn().context("setpriv and unshare come with util-linux")?);
        Ok(())
    }

    /// Every process ends at once, and what was volatile is gone.
    pub fn power_off(&mut self) {
        if let Some(mut machine) = self.machine.take() {
            let _ = machine.kill();
            let _ = machine.wait();
        }
    }

    pub fn reboot(&mut self) {
        self.power_off();
        self.boot();
    }

    /// Another root file system, with /data as it was; then it boots.
    pub fn update_firmware(&mut self) {
        self.power_off();
        self.replace_root();
        self.boot();
    }

    /// The same, and the new one has the files of this package from the beginning, as an image has that was built with it.
    pub fn update_firmware_with(&mut self, package: &Path) {
        self.update_firmware_without_waiting(package);
        self.await_boot();
    }

    /// The same, and rc.local may be running still.
    pub fn update_firmware_without_waiting(&mut self, package: &Path) {
        self.power_off();
        self.replace_root();
        let said = Command::new("dpkg-deb").arg("--extract").arg(package).arg(self.root()).output().expect("dpkg-deb");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        self.try_boot().unwrap_or_else(|error| panic!("it does not boot: {error:#}"));
    }

    fn replace_root(&self) {
        fs::remove_dir_all(self.root()).and_then(|()| self.flash().map_err(std::io::Error::other)).expect("the new firmware fits");
    }

    /// What init, and what it started, had to say.
    pub fn console(&self) -> String {
        fs::read_to_string(self.dir.path().join("console")).unwrap_or_default()
    }

    /// As an administrator does before a package is installed.
    pub fn remount_rw(&self) {
        let said = self.host("mount -o remount,bind,rw \"$0\"");
        assert!(said.success, "{}", said.text);
    }

    /// A command in the device that runs, as root.
    pub fn sh(&self, line: &str) -> Said {
        self.host_with("exec chroot \"$0\" /bin/sh -c \"$1\"", line)
    }

    /// One that succeeds; what it said.
    pub fn run(&self, line: &str) -> String {
        let said = self.sh(line);
        assert!(said.success, "{line}: {}", said.text);
        said.text
    }

    /// dpkg of this machine on the device's file system. It runs the maintainer scripts in the device, as opkg does.
    pub fn dpkg(&self, arguments: &str) -> Said {
        // a BusyBox root has neither ldconfig nor start-stop-daemon; debconf and triggers of this machine are none of its business
        self.host(&format!("exec dpkg --root=\"$0\" --force-bad-path --force-unsafe-io --no-triggers {arguments}"))
    }

    /// A command of this machine that sees the device's mounts.
    fn host(&self, line: &str) -> Said {
        self.host_with(line, "")
    }

    fn host_with(&self, line: &str, argument: &str) -> Said {
        let machine = self.machine.as_ref().expect("the device is on");
        let mut command = Command::new("nsenter");
        let (target, processes) = (machine.id().to_string(), format!("--pid=/proc/{}/ns/pid_for_children", machine.id()));
        command.args(["--target", &target, "--mount", &processes, "--", "/bin/sh", "-c", line]).arg(self.root()).arg(argument);
        let output = clean(&mut command).output().expect("nsenter comes with util-linux");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Said { success: output.status.success(), text }
    }

    /// Waits until a service runs for longer than its supervisor waits before it starts it again; gives its process and its user.
    /// `other`: it is not this process, which is on its way out.
    pub fn await_up(&self, service: &str, other: Option<u32>) -> (u32, u32) {
        eventually(&format!("{service} is up: {}", self.sh("svstat /service/*").text), DEADLINE, || {
            let line = self.sh(&format!("svstat /service/{service}")).text;
            let (_, rest) = line.split_once(": up (pid ")?;
            let (_, rest) = rest.split_once(") ")?;
            let seconds: u32 = rest.split(' ').next()?.parse().ok()?;
            self.process(service).filter(|(pid, _)| seconds >= 2 && Some(*pid) != other)
        })
    }

    /// Process ID and user of a program in the device, as this machine sees them.
    pub fn process(&self, name: &str) -> Option<(u32, u32)> {
        let root = fs::metadata(self.root()).ok()?;
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let inside = fs::metadata(entry.path().join("root")).ok()?;
            let is = fs::read_to_string(entry.path().join("comm")).ok()?.trim_end() == name;
            let user = fs::metadata(entry.path()).ok()?.uid();
            (is && inside.ino() == root.ino() && inside.dev() == root.dev()).then_some((pid, user))
        })
    }

    /// Everything in the root file system but dpkg's own notes, with kind and rights; and the accounts.
    pub fn inventory(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        list(&self.root(), &self.root(), &mut found).unwrap_or_else(|error| panic!("the root: {error:#}"));
        found.retain(|line| !line.contains(" var/lib/dpkg"));
        for file in ["etc/passwd", "etc/group"] {
            found.extend(fs::read_to_string(self.root().join(file)).unwrap_or_default().lines().map(ToOwned::to_owned));
        }
        found
    }
}

impl Default for Gx {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Gx {
    fn drop(&mut self) {
        if std::thread::panicking() && self.machine.is_some() {
            eprintln!("--- console ---\n{}", self.console());
            eprintln!("--- log ---\n{}", self.sh("cat /var/log/venus-mqtt/current").text);
        }
        self.power_off();
    }
}

fn list(root: &Path, dir: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = path.symlink_metadata()?;
        let name = path.strip_prefix(root)?.display();
        let kind = if meta.is_dir() {
            "folder"
        } else if meta.is_symlink() {
            "link"
        } else if meta.is_file() {
            "file"
        } else {
            bail!("what is {name}?")
        };
        found.insert(format!("{kind} {:o} {name}", meta.permissions().mode() & 0o7777));
        if meta.is_dir() {
            list(root, &path, found)?;
        }
    }
    Ok(())
}

/// The environment of a device, not that of a test.
fn clean(command: &mut Command) -> &mut Command {
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DPKG_COLORS", "never").stdin(Stdio::null())
}

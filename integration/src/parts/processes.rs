//! The parts as processes of this machine, each ended by its pid.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{Ended, Part, Parts, replace};
use crate::{
    Setup,
    proxy::Proxy,
    setup::{bus_address, settings_arguments},
};

/// Where brokers listen: above the well-known ports, below the kernel's own range.
const PORTS: Range<u16> = 18_000..32_000;

/// The parts of one rig, as processes.
pub struct Processes {
    dir: TempDir,
    children: BTreeMap<Part, Child>,
    port: u16,
    second: Option<u16>,
    proxy: Option<Proxy>,
    /// the bridge's
    env: Vec<(String, String)>,
    /// see [`Setup::disk`]
    disk: Option<u32>,
    /// see [`Setup::account`]
    account: Option<String>,
    /// see [`Setup::fake_broker`]
    fake_broker: Option<Vec<String>>,
}

impl Processes {
    pub fn new(setup: &Setup) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("venus-rig-").tempdir()?;
        setup.write_files(dir.path())?;
        let port = free_port()?;
        let second = if setup.has_listener() { Some(free_port()?) } else { None };
        let proxy = if setup.proxied { Some(Proxy::start(loopback(second.unwrap_or(port)))?) } else { None };
        let mut parts =
            Self { dir, children: BTreeMap::new(), port, second, proxy, env: Vec::new(), disk: None, account: None, fake_broker: None };
        parts.configure(setup)?;
        Ok(parts)
    }

    fn command(&self, part: Part) -> Result<Command> {
        let dir = self.dir.path();
        let (program, arguments): (PathBuf, Vec<String>) = match part {
            Part::Bus => {
                ("dbus-daemon".into(), vec!["--nofork".into(), "--nopidfile".into(), format!("--config-file={}/bus.conf", dir.display())])
            }
            Part::Broker if let Some(arguments) = &self.fake_broker => (binary("VENUS_BROKER_BIN", "fake-broker")?, arguments.clone()),
            Part::Broker => (mosquitto(), vec!["-c".into(), format!("{}/mosquitto.conf", dir.display())]),
            Part::Fake => (binary("VENUS_FAKE_BIN", "fake-venus")?, vec!["--dbus".into(), bus_address(dir)]),
            Part::Settings => (binary("VENUS_SETTINGS_BIN", "fake-localsettings")?, settings_arguments(dir)),
            Part::Bridge => (
                binary("VENUS_MQTT_BIN", "venus-mqtt")?,
                vec!["run".into(), "--config".into(), format!("{}/venus-mqtt.toml", dir.display())],
            ),
        };
        // so that nothing is left even when the test itself is killed: the kernel ends the part with the thread that started it
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        command.env_remove("JOURNAL_STREAM").env_remove("DBUS_SESSION_BUS_ADDRESS").stdin(Stdio::null());
        if part == Part::Bridge {
            for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
                command.env_remove(name).env_remove(name.to_lowercase());
            }
            command.envs(self.env.iter().map(|(name, value)| (name, value)));
            if let Some(kib) = self.disk {
                command.args(own_disk(&dir.join("state"), kib)?);
            }
        }
        if part == Part::Bus
            && let Some(line) = &self.account
        {
            command.args(own_accounts(&dir.join("passwd"), line)?);
        }
        command.arg(program).args(arguments);
        Ok(command)
    }

    fn child(&mut self, part: Part) -> Result<&mut Child> {
        self.children.get_mut(&part).with_context(|| format!("the {part} was never started"))
    }

    fn log_path(&self, part: Part) -> PathBuf {
        self.dir.path().join(format!("{part}.log"))
    }
}

impl Parts for Processes {
    fn configure(&mut self, setup: &Setup) -> Result<()> {
        let dir = self.dir.path();
        replace(&dir.join("mosquitto.conf"), setup.mosquitto_conf(dir, "127.0.0.1", self.port, self.second))?;
        self.env = setup.environment(dir).map(|(name, value)| (name.to_owned(), value)).collect();
        self.disk = setup.disk;
        self.account.clone_from(&setup.account);
        self.fake_broker = setup.fake_broker_arguments(dir, self.port);
        let port = self.proxy.as_ref().map_or(self.second.unwrap_or(self.port), |proxy| proxy.address().port());
        replace(&dir.join("venus-mqtt.toml"), setup.bridge_toml(dir, &setup.host, port))?;
        Ok(())
    }

    fn start(&mut self, part: Part) -> Result<()> {
        if let Some(child) = self.children.get_mut(&part)
            && child.try_wait()?.is_none()
        {
            bail!("the {part} runs already");
        }
        let log: File = OpenOptions::new().create(true).append(true).open(self.log_path(part))?;
        let mut command = self.command(part)?;
        command.stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting the {part}: is setpriv (util-linux) there?"))?;
        self.children.insert(part, child);
        Ok(())
    }

    fn signal(&mut self, part: Part, signal: Signal) -> Result<()> {
        let child = self.child(part)?;
        // one that was waited for is gone: its number may be somebody else's by now
        if child.try_wait()?.is_some() {
            bail!("the {part} has ended");
        }
        Ok(signal::kill(pid_of(child), signal)?)
    }

    fn pause(&mut self, part: Part) -> Result<()> {
        self.signal(part, Signal::SIGSTOP)
    }

    fn resume(&mut self, part: Part) -> Result<()> {
        self.signal(part, Signal::SIGCONT)
    }

    fn ended(&mut self, part: Part, within: Duration) -> Result<Option<Ended>> {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.child(part)?.try_wait()? {
                return Ok(Some(how(status)));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn cut_off(&mut self) -> Result<()> {
        self.proxy.as_ref().context("only a Setup::proxied can be cut off")?.cut_off();
        Ok(())
    }

    fn reconnect(&mut self) -> Result<()> {
        self.proxy.as_ref().context("only a Setup::proxied can be cut off")?.reconnect();
        Ok(())
    }

    fn host(&self) -> Result<IpAddr> {
        Ok(Ipv4Addr::LOCALHOST.into())
    }

    fn broker(&self) -> SocketAddr {
        loopback(self.port)
    }

    fn pid(&self, part: Part) -> Result<i32> {
        Ok(pid_of(self.children.get(&part).with_context(|| format!("the {part} was never started"))?).as_raw())
    }

    fn log(&self, part: Part) -> String {
        std::fs::read(self.log_path(part)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for (_, mut child) in std::mem::take(&mut self.children) {
            // kills a stopped process as well; one that was waited for is left alone
            let _ = child.kill();
            let _ = child.wait();
            // what `faketime` shares between processes outlives one that is killed
            for name in ["faketime_shm_", "sem.faketime_sem_"] {
                let _ = std::fs::remove_file(format!("/dev/shm/{name}{}", child.id()));
            }
        }
    }
}

/// What runs a program with a small disk of its own at `dir`, which goes with it: a mount that nobody else sees, for which nobody
/// has to be root where the system lets users have name spaces.
fn own_disk(dir: &Path, kib: u32) -> Result<Vec<String>> {
    std::fs::create_dir_all(dir)?;
    let mut words = vec!["unshare", "--mount"];
    if !nix::unistd::geteuid().is_root() {
        words.extend(["--user", "--map-current-user", "--keep-caps"]);
    }
    words.extend(["sh", "-c", r#"mount -t tmpfs -o "size=$1k" tmpfs "$0" && shift && exec "$@""#]);
    let mut words: Vec<String> = words.into_iter().map(ToOwned::to_owned).collect();
    words.extend([dir.display().to_string(), kib.to_string()]);
    Ok(words)
}

/// What runs a program with one account more than this machine has, for which one has to be root.
fn own_accounts(file: &Path, line: &str) -> Result<Vec<String>> {
    let known = std::fs::read_to_string("/etc/passwd")?;
    std::fs::write(file, format!("{known}{line}\n"))?;
    let words = ["unshare", "--mount", "sh", "-c", r#"mount --bind "$0" /etc/passwd && exec "$@""#];
    Ok(words.iter().map(|&word| word.to_owned()).chain([file.display().to_string()]).collect())
}

/// A program of this workspace: from the environment, else beside the test's own folder in the build directory.
pub fn binary(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let places = test.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    for place in places {
        if place.is_file() {
            return Ok(place);
        }
    }
    bail!("no {name} beside {}: run `cargo build --workspace` first, or name it in {variable}", test.display())
}

/// Debian keeps it where a user's PATH does not look.
fn mosquitto() -> PathBuf {
    let sbin = Path::new("/usr/sbin/mosquitto");
    if sbin.is_file() { sbin.into() } else { "mosquitto".into() }
}

/// A port nobody listens on at this moment, and that nobody else in this process is given. Below the range the kernel takes ports
/// from for outgoing connections: one that was free could be somebody's own end by the time it is used.
pub fn free_port() -> Result<u16> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // several test programs at a time begin at different places
    let first = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS.len() {
        let next = first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from(next % u32::try_from(PORTS.len())?)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port in {PORTS:?}")
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("Linux' process IDs fit"))
}

fn how(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or_default()),
    }
}

//! The parts of a run: a private bus, the fake services, a broker, the subscriber, the bridge and, for devices, localsettings, and which CPU each
//! may use.
//!
//! Everything listens on a socket in a folder of its own or on a free loopback port, and ends with the `Rig`, by pid.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::connection::Connection;
use crate::fake::Fake;
use crate::measure;
use crate::subscriber::Subscriber;

pub const PORTAL: &str = "c0619ab1c2d3";

/// Set by SIGINT and SIGTERM: every wait ends with an error then, and the parts with it.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A part that has not started or ended by then never will.
const PART_TIMEOUT: Duration = Duration::from_secs(5);

/// A process of the run.
pub struct Part {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

/// The CPUs: one for everything that is measured, another for the measuring thread. With one CPU nothing is pinned.
struct Cpus {
    measured: CpuSet,
    measuring: CpuSet,
    all: CpuSet,
}

pub struct Rig {
    // in the order in which they must end
    bridge: Option<Part>,
    settings: Option<Part>,
    pub subscriber: Subscriber,
    pub broker: Part,
    pub fake: Fake,
    pub bus: Part,
    cpus: Cpus,
    port: u16,
    socket: PathBuf,
    folder: TempDir,
    /// What the first bridge was started with.
    command: String,
    /// What the bridge's log shows.
    pub log_level: &'static str,
}

impl Rig {
    /// Everything but the bridge.
    pub fn prepare() -> Result<Self> {
        let cpus = Cpus::find()?;
        let folder = tempfile::Builder::new().prefix("venus-mqtt-bench").tempdir()?;
        let socket = folder.path().join("bus");
        let config = folder.path().join("bus.conf");
        fs::write(&config, bus_config(&bus_address(&socket)))?;
        let mut command = Command::new("dbus-daemon");
        command.arg(format!("--config-file={}", config.display())).args(["--nofork", "--nosyslog"]);
        let mut bus = Part::start("dbus-daemon", command, folder.path(), &cpus)?;
        wait_until(PART_TIMEOUT, "dbus-daemon to listen", || Ok(bus.check()? && socket.exists()))?;
        let fake = cpus.measured_thread(|| Fake::start(&socket))?;

        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let config = folder.path().join("mosquitto.conf");
        fs::write(&config, broker_config(port))?;
        let mut command = Command::new(mosquitto());
        command.arg("-c").arg(&config);
        let mut broker = Part::start("mosquitto", command, folder.path(), &cpus)?;
        wait_until(PART_TIMEOUT, "mosquitto to listen", || Ok(broker.check()? && TcpStream::connect(("127.0.0.1", port)).is_ok()))?;
        let subscriber = cpus.measured_thread(|| Subscriber::start(port, PORTAL))?;
        Ok(Self {
            bridge: None,
            settings: None,
            subscriber,
            broker,
            fake,
            bus,
            cpus,
            port,
            socket,
            folder,
            command: String::new(),
            log_level: "warn",
        })
    }

    /// Starts the bridge: `template` with `{port}`, `{bus}`, `{portal}`, `{dir}` and `{level}` filled in, split at blanks.
    pub fn start_bridge(&mut self, template: &str) -> Result<()> {
        template.clone_into(&mut self.command);
        self.launch(template)
    }

    /// Ends the bridge, and starts another one, with these arguments more than the first one had.
    pub fn restart_bridge(&mut self, more: &str) -> Result<()> {
        self.end_bridge();
        self.launch(&format!("{} {more}", self.command))
    }

    pub fn end_bridge(&mut self) {
        self.bridge = None;
    }

    fn launch(&mut self, template: &str) -> Result<()> {
        let (address, port, folder) = (bus_address(&self.socket), self.port.to_string(), self.folder.path().display().to_string());
        let filled = template
            .replace("{port}", &port)
            .replace("{bus}", &address)
            .replace("{portal}", PORTAL)
            .replace("{dir}", &folder)
            .replace("{level}", self.log_level);
        let mut words = filled.split_whitespace();
        let mut command = Command::new(words.next().context("the command of the bridge is empty")?);
        command.args(words).env("DBUS_SYSTEM_BUS_ADDRESS", &address).env("DBUS_SESSION_BUS_ADDRESS", &address);
        self.bridge = Some(Part::start("the bridge", command, self.folder.path(), &self.cpus)?);
        Ok(())
    }

    /// Starts localsettings, which writes its file as late as the real one.
    pub fn start_settings(&mut self, program: &Path) -> Result<()> {
        let mut command = Command::new(program);
        command
            .args(["--dbus", &bus_address(&self.socket), "--write-after", "2000", "--file"])
            .arg(self.folder.path().join("settings.json"));
        self.settings = Some(Part::start("fake-localsettings", command, self.folder.path(), &self.cpus)?);
        Ok(())
    }

    /// Where `{dir}` is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A connection to the bus, for the measuring thread.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(&self.socket)
    }

    pub fn settings_pid(&self) -> i32 {
        self.settings.as_ref().map_or(0, Part::pid)
    }

    pub fn bridge_pid(&self) -> i32 {
        self.bridge.as_ref().map_or(0, Part::pid)
    }

    /// Ends with an error when the bench was interrupted or a part has died.
    pub fn check(&mut self) -> Result<()> {
        if INTERRUPTED.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        for part in [&mut self.bus, &mut self.broker].into_iter().chain(&mut self.bridge).chain(&mut self.settings) {
            part.check()?;
        }
        Ok(())
    }

    /// What the bridge has counted so far, as it says when it is told to: the number before `word` in its log.
    pub fn counted(&self, word: &str) -> Result<u64> {
        let bridge = self.bridge.as_ref().context("there is no bridge")?;
        let lines = || bridge.log().lines().filter(|line| line.contains(word)).count();
        let before = lines();
        bridge.signal(Signal::SIGUSR1)?;
        wait_until(PART_TIMEOUT, "the summary of the bridge", || Ok(lines() > before))?;
        let log = bridge.log();
        let number = log.rsplit_once(&format!(" {word}")).and_then(|(head, _)| head.rsplit(' ').next()?.parse().ok());
        number.with_context(|| format!("the bridge's summary does not say how many were {word}"))
    }

    /// The longest turn of the bridge's loop since this was asked last, in milliseconds.
    pub fn longest_turn(&self) -> Result<f64> {
        const LINE: &str = "longest turn of the loop since the last summary: ";
        let bridge = self.bridge.as_ref().context("there is no bridge")?;
        let lines = || bridge.log().matches(LINE).count();
        let before = lines();
        bridge.signal(Signal::SIGUSR1)?;
        wait_until(PART_TIMEOUT, "the summary of the bridge", || Ok(lines() > before))?;
        let log = bridge.log();
        let number = log.rsplit_once(LINE).and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        number.context("the bridge's summary does not say how long a turn was")
    }

    /// What the bridge has to say about what went wrong.
    pub fn last_words(&self) -> String {
        self.bridge.as_ref().map(Part::last_words).filter(|words| !words.is_empty()).unwrap_or("nothing".into())
    }

    /// Lets everything use every CPU, or only the one that is measured.
    pub fn pin(&self, pinned: bool) -> Result<()> {
        let cpus = if pinned { &self.cpus.measured } else { &self.cpus.all };
        let pids = [self.bus.pid(), self.broker.pid(), self.bridge_pid(), self.settings_pid()];
        let tasks = pids.into_iter().filter(|pid| *pid > 0).flat_map(measure::family).flat_map(measure::tasks).map(|(_, task)| task);
        for task in tasks.chain([self.fake.thread_id, self.subscriber.thread_id]) {
            sched_setaffinity(Pid::from_raw(task), cpus).or_else(gone_is_fine)?;
        }
        Ok(())
    }
}

/// Waits for `condition`, looking every few milliseconds.
pub fn wait_until(timeout: Duration, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !condition()? {
        if INTERRUPTED.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        if Instant::now() > deadline {
            bail!("waited {} s in vain for {what}", timeout.as_secs());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

impl Part {
    /// Starts on the measured CPU: a child inherits the affinity of the thread that starts it. In a process group of its own: Ctrl-C is for the
    /// bench, which ends its parts in order.
    fn start(name: &'static str, mut command: Command, folder: &Path, cpus: &Cpus) -> Result<Self> {
        let log = folder.join(format!("{}.log", name.replace(' ', "-")));
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).current_dir(folder).process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let child =
            cpus.measured_thread(|| command.spawn().with_context(|| format!("cannot start {name} ({program}): is it installed?")))?;
        Ok(Self { name, child, log })
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()), signal)?)
    }

    /// `true`, or an error with the end of its log if it has ended.
    fn check(&mut self) -> Result<bool> {
        let Some(status) = self.child.try_wait()? else { return Ok(true) };
        Err(anyhow!("{} ended ({status}): {}", self.name, self.last_words()))
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(1500);
        log.get(from..).unwrap_or(&log).to_owned()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        drop(self.signal(Signal::SIGCONT));
        drop(self.signal(Signal::SIGTERM));
        let deadline = Instant::now() + PART_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                drop(self.child.kill());
                drop(self.child.wait());
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Cpus {
    fn find() -> Result<Self> {
        let me = Pid::from_raw(0);
        // asked of the process, not of this thread, which may be pinned already
        let allowed = sched_getaffinity(Pid::from_raw(std::process::id() as i32))?;
        let all = ALL_CPUS.get_or_init(|| allowed);
        let usable: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or(false)).collect();
        let one = |cpu: usize| -> Result<CpuSet> {
            let mut set = CpuSet::new();
            set.set(cpu)?;
            Ok(set)
        };
        let cpus = match usable.as_slice() {
            [first, second, ..] => Self { measured: one(*second)?, measuring: one(*first)?, all: *all },
            _ => Self { measured: *all, measuring: *all, all: *all },
        };
        sched_setaffinity(me, &cpus.measuring)?;
        Ok(cpus)
    }

    /// Runs `start` on the measured CPU, so that what it starts stays there.
    fn measured_thread<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        sched_setaffinity(Pid::from_raw(0), &self.measured)?;
        let started = start();
        sched_setaffinity(Pid::from_raw(0), &self.measuring)?;
        started
    }
}

/// What the process may use, as it was before anything was pinned.
static ALL_CPUS: std::sync::OnceLock<CpuSet> = std::sync::OnceLock::new();

fn gone_is_fine(error: nix::errno::Errno) -> Result<()> {
    if error == nix::errno::Errno::ESRCH { Ok(()) } else { Err(error.into()) }
}

/// Debian keeps it where only root looks.
fn mosquitto() -> &'static str {
    let sbin = "/usr/sbin/mosquitto";
    if Path::new(sbin).exists() { sbin } else { "mosquitto" }
}

fn bus_address(socket: &Path) -> String {
    format!("unix:path={}", socket.display())
}

/// What a session bus allows, but for the number of connections: each registered service is one.
fn bus_config(address: &str) -> String {
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
  <limit name="max_connections_per_user">2048</limit>
</busconfig>
"#
    )
}

fn broker_config(port: u16) -> String {
    format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\nset_tcp_nodelay true\nlog_type error\nlog_type warning\nuser root\n"
    )
}

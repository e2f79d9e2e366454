//! What the demo starts outside its own thread, and how each of them ends: the folder, the bridge, a Mosquitto, signals.
//!
//! Promises: whatever was started is ended by its process ID, also when the demo fails half-way; the folder is removed.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use crate::backend::KEY;

/// The bridge ends within 2 s of being asked to; a Mosquitto is quicker.
const END_WITHIN: Duration = Duration::from_secs(5);
/// The bridge's configuration.
pub const CONFIG: &str = "venus-mqtt.toml";
/// Often enough that there is something to see.
pub const MEASURE_EVERY: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// A folder of this run alone, which nobody else may look into.
pub struct Folder(PathBuf);

impl Folder {
    pub fn create() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("venus-mqtt-demo-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A child process; it does not outlive this value.
pub struct Process {
    child: Child,
    name: &'static str,
}

impl Process {
    /// In a process group of its own: Ctrl-C at the terminal is for the demo, which then ends its parts in order.
    pub fn start(name: &'static str, command: &mut Command) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).process_group(0).spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name })
    }

    /// The bridge itself, the whole program, in this executable; its log lines are shown as they come.
    pub fn bridge(folder: &Folder, portal_id: &str, bus: &str, broker: u16, backend: u16) -> anyhow::Result<Self> {
        let config = configure(folder, portal_id, bus, broker, backend)?;
        let program = std::env::current_exe().context("cannot find the demo's own executable")?;
        let mut command = Command::new(program);
        command
            .args(["bridge", "run", "--config"])
            .arg(config)
            // nobody else's proxy leads to the backend
            .env("NO_PROXY", "127.0.0.1")
            .stderr(Stdio::piped());
        let mut bridge = Self::start("the bridge", &mut command)?;
        if let Some(log) = bridge.child.stderr.take() {
            // it ends with the pipe
            std::thread::spawn(move || {
                for line in BufReader::new(log).lines().map_while(Result::ok) {
                    let _ = writeln!(io::stderr(), "bridge | {line}");
                }
            });
        }
        Ok(bridge)
    }

    /// A Mosquitto found on the PATH or where Debian puts it, on the loopback address only.
    pub async fn mosquitto(folder: &Folder, port: u16) -> anyhow::Result<Self> {
        let program = find("mosquitto").context("no mosquitto found: install it (Debian: apt install mosquitto) or leave --broker out")?;
        let config = folder.join("mosquitto.conf");
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\nlog_type error\n");
        std::fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut mosquitto = Self::start("mosquitto", Command::new(program).arg("-c").arg(&config))?;
        let deadline = Instant::now() + END_WITHIN;
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if let Some(status) = mosquitto.child.try_wait()? {
                bail!("mosquitto ended at once ({status})");
            }
            if Instant::now() > deadline {
                bail!("mosquitto does not listen on 127.0.0.1:{port}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(mosquitto)
    }

    /// Waits until the process ends by itself; cancel-safe.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks it to end, and waits; kills it when that takes too long.
    pub async fn stop(mut self) -> anyhow::Result<ExitStatus> {
        // the process ID of one that has ended may be another's by now
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        match tokio::time::timeout(END_WITHIN, self.ended()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} did not end within {} s of SIGTERM and was killed", self.name, END_WITHIN.as_secs()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// SIGINT, SIGTERM and SIGHUP (the terminal was closed): all of them end the demo.
pub struct Signals(UnixStream);

impl Signals {
    pub fn install() -> io::Result<Self> {
        let (read, write) = StdUnixStream::pair()?;
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        read.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(read)?))
    }

    pub async fn next(&mut self) {
        let _ = self.0.read_u8().await;
    }
}

/// Writes a configuration of the demo's own, so that what is installed on this machine does not reach into it; gives its path.
fn configure(folder: &Folder, portal_id: &str, bus: &str, broker: u16, backend: u16) -> anyhow::Result<PathBuf> {
    // a text in JSON is one in TOML too
    let (portal_id, bus) = (json!(portal_id), json!(bus));
    let every = MEASURE_EVERY.as_secs();
    let text = format!(
        r#"portal_id = {portal_id}
[dbus]
address = {bus}
[mqtt]
host = "127.0.0.1"
port = {broker}
[bridge]
enabled = true
[devices]
state_dir = "state"
catalogue_dir = "catalogue"
[http]
url = "http://127.0.0.1:{backend}"
api_key_file = "backend.key"
update_interval = {every}
"#
    );
    let config = folder.join(CONFIG);
    for (path, text) in [(&config, text.as_str()), (&folder.join("backend.key"), KEY)] {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(config)
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beyond = ["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(beyond).map(|folder| folder.join(program)).find(|path| is_file(path))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

//! Finds the portal ID, by which the device is known in every topic.
//!
//! Asks in this order and takes the first that answers with something usable: the option, the file the system keeps it in,
//! the program that computes it, the bus (asked by the caller), the MAC address. What answers with nonsense is logged and
//! passed over. Takes at most as long as the bus, and two seconds for the program. Called by the daemon at start.

use std::env;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use log::warn;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep, timeout_at};

use crate::bridge::name::PortalId;
use crate::files::{read_bounded, why};
use crate::text::escape_bytes;

/// Where a device keeps its ID.
const FILE: &str = "/data/venus/unique-id";
/// What computes it.
const PROGRAM: &str = "/sbin/get-unique-id";
/// How long the program may take: it reads an address, and is done in milliseconds.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(2);
/// How long a program that was killed may take to be gone, before it is left behind.
const REAP_DEADLINE: Duration = Duration::from_millis(200);
/// Most bytes read of a file or of the program's output: an ID has twelve.
const ANSWER_MAX: usize = 1024;
/// Where the kernel tells the addresses of the network interfaces.
const NETWORK: &str = "/sys/class/net";
/// The interface whose address makes the ID, unless `VRM_IFACE` names another.
const INTERFACE: &str = "eth0";

/// Where the ID is looked for.
#[derive(Clone, Debug)]
pub struct Sources {
    /// What the configuration says; nothing else is asked then.
    pub option: Option<PortalId>,
    pub file: PathBuf,
    pub program: PathBuf,
    /// The folder of the network interfaces.
    pub network: PathBuf,
    pub interface: String,
}

impl Sources {
    /// Those of this device.
    pub fn new(option: Option<PortalId>) -> Self {
        Self {
            option,
            file: FILE.into(),
            program: PROGRAM.into(),
            network: NETWORK.into(),
            interface: env::var("VRM_IFACE").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| INTERFACE.into()),
        }
    }

    /// The portal ID. `ask_bus` gives `/Serial` of `com.victronenergy.system`, or why there is none; it has its own deadline
    /// and is only called when nothing before it answered.
    pub async fn find<F>(&self, ask_bus: F) -> Result<Found, PortalError>
    where
        F: AsyncFnOnce() -> Result<String, String>,
    {
        if let Some(id) = &self.option {
            return Ok(Found { id: id.clone(), from: "the configuration".into() });
        }
        let mut tried = Vec::new();
        let answer = read_bounded(&self.file, ANSWER_MAX as u64).map_err(|error| why(&error));
        if let Some(found) = take(self.file.display().to_string(), answer, &mut tried) {
            return Ok(found);
        }
        let answer = output(&self.program).await;
        if let Some(found) = take(self.program.display().to_string(), answer, &mut tried) {
            return Ok(found);
        }
        let answer = ask_bus().await.map(String::into_bytes);
        if let Some(found) = take("/Serial of com.victronenergy.system".into(), answer, &mut tried) {
            return Ok(found);
        }
        let answer = mac(&self.network, &self.interface);
        if let Some(found) = take(format!("the MAC address of {}", self.interface), answer, &mut tried) {
            return Ok(found);
        }
        Err(PortalError { tried })
    }
}

/// The ID and who said so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub id: PortalId,
    pub from: String,
}

/// Nobody knows the ID: who was asked, and why that gave none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortalError {
    tried: Vec<(String, String)>,
}

impl std::error::Error for PortalError {}

impl fmt::Display for PortalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the portal ID cannot be found out; set `portal_id` in the configuration, or --portal-id (tried ")?;
        for (i, (source, why)) in self.tried.iter().enumerate() {
            write!(f, "{}{source}: {why}", if i > 0 { "; " } else { "" })?;
        }
        f.write_str(")")
    }
}

/// The first line of an answer as an ID.
fn take(from: String, answer: Result<Vec<u8>, String>, tried: &mut Vec<(String, String)>) -> Option<Found> {
    let why = match answer {
        Err(why) => why,
        Ok(bytes) => {
            let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
            match str::from_utf8(line).map(PortalId::parse) {
                Ok(Ok(id)) => return Some(Found { id, from }),
                _ => {
                    let why = format!("not a portal ID: \"{}\"", escape_bytes(line));
                    warn!("{from}: {why}");
                    why
                }
            }
        }
    };
    tried.push((from, why));
    None
}

/// What `program` prints. It is killed when it does not end in time or prints too much.
async fn output(program: &Path) -> Result<Vec<u8>, String> {
    let mut child =
        Command::new(program).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(|error| why(&error))?;
    let answer = answer(&mut child, Instant::now() + PROGRAM_DEADLINE).await;
    end(&mut child).await;
    answer
}

async fn answer(child: &mut Child, deadline: Instant) -> Result<Vec<u8>, String> {
    let too_late = |_| format!("no answer within {} s", PROGRAM_DEADLINE.as_secs());
    let stdout = child.stdout.take().ok_or("no output")?;
    let stdout = pipe::Receiver::from_owned_fd(OwnedFd::from(stdout)).map_err(|error| why(&error))?;
    let mut bytes = Vec::new();
    let mut bounded = stdout.take(ANSWER_MAX as u64 + 1);
    timeout_at(deadline, bounded.read_to_end(&mut bytes)).await.map_err(too_late)?.map_err(|error| why(&error))?;
    if bytes.len() > ANSWER_MAX {
        return Err(format!("more than {ANSWER_MAX} bytes of output"));
    }
    match timeout_at(deadline, ended(child)).await.map_err(too_late)? {
        Ok(true) => Ok(bytes),
        Ok(false) => Err("it failed".into()),
        Err(error) => Err(why(&error)),
    }
}

/// Whether the child succeeded, when it has ended. There is no waiting for a child in this runtime without a handler for
/// SIGCHLD; once its output has ended it is as good as gone.
async fn ended(child: &mut Child) -> io::Result<bool> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        sleep(Duration::from_millis(2)).await;
    }
}

async fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(None)) {
        let _ = child.kill();
        let _ = timeout_at(Instant::now() + REAP_DEADLINE, ended(child)).await;
    }
}

/// The hardware address of an interface as an ID: lower case, no colons.
fn mac(network: &Path, interface: &str) -> Result<Vec<u8>, String> {
    if interface.contains('/') || interface.starts_with('.') {
        return Err("not the name of an interface; correct VRM_IFACE".into());
    }
    let bytes = read_bounded(&network.join(interface).join("address"), ANSWER_MAX as u64).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "no such interface".into(),
        _ => why(&error),
    })?;
    let digits: Vec<u8> = bytes.trim_ascii().iter().filter(|&&b| b != b':').map(u8::to_ascii_lowercase).collect();
    if digits.len() != 12 || !digits.iter().all(u8::is_ascii_hexdigit) || digits.iter().all(|&b| b == b'0') {
        return Err(format!("not a usable address: \"{}\"", escape_bytes(bytes.trim_ascii())));
    }
    Ok(digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn sources(dir: &Scratch) -> Sources {
        Sources {
            option: None,
            file: dir.path().join("unique-id"),
            program: dir.path().join("get-unique-id"),
            network: dir.path().join("net"),
            interface: "eth0".into(),
        }
    }

    fn find(dir: &Scratch, sources: &Sources, bus: Result<&str, &str>) -> Result<(String, String), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(sources.find(async || bus.map(str::to_owned).map_err(str::to_owned)));
        let folder = format!("{}/", dir.path().display());
        found.map(|found| (found.id.to_string(), found.from.replace(&folder, ""))).map_err(|error| error.to_string().replace(&folder, ""))
    }

    fn ok(id: &str, from: &str) -> Result<(String, String), String> {
        Ok((id.into(), from.into()))
    }

    const NO_BUS: Result<&str, &str> = Err("no such service");

    /// A program that prints, or does what `script` says.
    fn program(dir: &Scratch, script: &str) {
        dir.file_with_mode("get-unique-id", format!("#!/bin/sh\n{script}\n"), 0o700);
    }

    /// As [`find`], with the patience that a test has to have where others write programs at the same time: a fork of theirs
    /// can hold ours open for a moment.
    fn find_with_program(dir: &Scratch, bus: Result<&str, &str>) -> Result<(String, String), String> {
        for _ in 0..1000 {
            let found = find(dir, &sources(dir), bus);
            match &found {
                Err(error) if error.contains("text file busy") => std::thread::yield_now(),
                _ => return found,
            }
        }
        panic!("the program is busy for ever");
    }

    #[test]
    fn the_order_of_the_sources() {
        let dir = Scratch::new();
        dir.file("net/eth0/address", "C0:61:9A:B1:C2:D5\n");
        assert_eq!(find(&dir, &sources(&dir), NO_BUS), ok("c0619ab1c2d5", "the MAC address of eth0"));
        let bus = Ok("c0619ab1c2d4");
        assert_eq!(find(&dir, &sources(&dir), bus), ok("c0619ab1c2d4", "/Serial of com.victronenergy.system"));
        program(&dir, "echo c0619ab1c2d3");
        assert_eq!(find_with_program(&dir, bus), ok("c0619ab1c2d3", "get-unique-id"));
        dir.file("unique-id", "c0619ab1c2d2\nmore\n");
        assert_eq!(find(&dir, &sources(&dir), bus), ok("c0619ab1c2d2", "unique-id"));
        let option = Sources { option: Some(PortalId::parse("c0619ab1c2d1").unwrap()), ..sources(&dir) };
        assert_eq!(find(&dir, &option, bus), ok("c0619ab1c2d1", "the configuration"));
    }

    #[test]
    fn nonsense_is_passed_over() {
        let dir = Scratch::new();
        dir.file("unique-id", b"\xff\xfe");
        let bus = Ok("c0619ab1c2d4");
        let from_bus = ok("c0619ab1c2d4", "/Serial of com.victronenergy.system");
        for script in ["exit 1", "echo c0619ab1c2d3; exit 1", "echo a/b", "true", "yes"] {
            program(&dir, script);
            assert_eq!(find_with_program(&dir, bus), from_bus, "{script}");
        }
        dir.file("unique-id", "x".repeat(5000));
        assert_eq!(find_with_program(&dir, bus), from_bus);
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let dir = Scratch::new();
        // that it printed something first must not matter
        program(&dir, "echo c0619ab1c2d3; echo $$ > \"$0.pid\"; exec sleep 1000");
        let found = find_with_program(&dir, NO_BUS).unwrap_err();
        assert!(found.contains("get-unique-id: no answer within 2 s"), "{found}");
        let pid = std::fs::read_to_string(dir.path().join("get-unique-id.pid")).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "it is still there");
    }

    #[test]
    fn nothing_works() {
        let dir = Scratch::new();
        dir.file("unique-id", "\n");
        dir.file("net/eth0/address", "00:00:00:00:00:00\n");
        assert_eq!(
            find(&dir, &sources(&dir), NO_BUS).unwrap_err(),
            "the portal ID cannot be found out; set `portal_id` in the configuration, or --portal-id (tried \
             unique-id: not a portal ID: \"\"; get-unique-id: no such file; \
             /Serial of com.victronenergy.system: no such service; \
             the MAC address of eth0: not a usable address: \"00:00:00:00:00:00\")"
        );
        for (interface, expected) in [
            ("wlan0", "the MAC address of wlan0: no such interface)"),
            ("../x", "the MAC address of ../x: not the name of an interface; correct VRM_IFACE)"),
        ] {
            let sources = Sources { interface: interface.into(), ..sources(&dir) };
            let error = find(&dir, &sources, NO_BUS).unwrap_err();
            assert!(error.ends_with(expected), "{error}");
        }
    }
}

//! How parts are started, stopped, killed, paused and cut off: the only place that knows processes from containers.

mod containers;
mod processes;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::Result;
pub use containers::Containers;
pub use nix::sys::signal::Signal;
pub use processes::{Processes, binary, free_port};

use crate::Setup;

/// One part of a rig.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    Bus,
    Broker,
    Fake,
    /// localsettings
    Settings,
    Bridge,
}

impl Part {
    pub const ALL: [Self; 5] = [Self::Bus, Self::Broker, Self::Fake, Self::Settings, Self::Bridge];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bus => "bus",
            Self::Broker => "broker",
            Self::Fake => "fake",
            Self::Settings => "settings",
            Self::Bridge => "bridge",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a part ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    Code(i32),
    Signal(i32),
}

/// The parts of one rig. Dropping it ends them all, whatever state they are in.
pub trait Parts: Send {
    /// Writes the configuration of the broker and the bridge: it needs to know where they will find each other.
    fn configure(&mut self, setup: &Setup) -> Result<()>;
    /// Starts a part that does not run. Returns when it was started, not when it is ready.
    fn start(&mut self, part: Part) -> Result<()>;
    fn signal(&mut self, part: Part, signal: Signal) -> Result<()>;
    /// Stops time for a part, and lets it go on.
    fn pause(&mut self, part: Part) -> Result<()>;
    fn resume(&mut self, part: Part) -> Result<()>;
    /// How the part ended, if it does within this time.
    fn ended(&mut self, part: Part, within: Duration) -> Result<Option<Ended>>;
    /// Between the bridge and the broker nothing passes, and nobody is told.
    fn cut_off(&mut self) -> Result<()>;
    fn reconnect(&mut self) -> Result<()>;
    /// The address under which the parts reach this process.
    fn host(&self) -> Result<IpAddr>;
    /// Where the scenario's own client finds the broker.
    fn broker(&self) -> SocketAddr;
    /// The process ID of a part, as the host sees it.
    fn pid(&self, part: Part) -> Result<i32>;
    /// What the part has written so far.
    fn log(&self, part: Part) -> String;
    /// The folder of the rig, the same path for every part.
    fn dir(&self) -> &Path;
}

/// Replaces a file as a whole: a part that reads it at this moment must not find it empty.
pub(crate) fn replace(path: &Path, content: impl AsRef<[u8]>) -> std::io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, content)?;
    std::fs::rename(new, path)
}

//! One rig: the parts of a scenario, wired to each other.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    Client, DEADLINE, Fake, PORTAL, Setup, Watch, eventually,
    mqtt::{Options, Will},
    parts::{Containers, Ended, Part, Parts, Processes, Signal},
    setup::bus_address,
};

/// A bus, a broker and the fake services run; the bridge when it is told to. Everything ends with it; when its test fails, the logs
/// are printed.
pub struct Rig {
    fake: Option<Fake>,
    parts: Box<dyn Parts>,
    setup: Setup,
}

impl Rig {
    /// As processes.
    pub fn new(setup: Setup) -> Self {
        let mut last = None;
        // a port that was free can be taken by somebody else before Mosquitto has it: then another one
        for _ in 0..5 {
            match Processes::new(&setup).and_then(|parts| Self::bring_up(Box::new(parts), setup.clone())) {
                Ok(rig) => return rig,
                Err(error) => last = Some(error),
            }
        }
        panic!("the rig does not come up: {:#}", last.unwrap_or_else(|| anyhow::anyhow!("no reason")));
    }

    /// As containers.
    pub fn in_containers(setup: Setup) -> Self {
        match Containers::new(&setup).and_then(|parts| Self::bring_up(Box::new(parts), setup)) {
            Ok(rig) => rig,
            Err(error) => panic!("the containers do not come up: {error:#}"),
        }
    }

    fn bring_up(parts: Box<dyn Parts>, setup: Setup) -> Result<Self> {
        let mut rig = Self { fake: None, parts, setup };
        rig.start(Part::Broker);
        rig.start_bus()?;
        // its own word, and not that something answers at that port: it could be another broker
        let end = Instant::now() + DEADLINE;
        while !rig.log(Part::Broker).contains(" running\n") {
            let over = rig.parts.ended(Part::Broker, Duration::from_millis(5))?.is_some() || Instant::now() > end;
            ensure!(!over, "the broker does not come up: {}", rig.log(Part::Broker));
        }
        Ok(rig)
    }

    /// The bus, and who lives on it.
    fn start_bus(&mut self) -> Result<()> {
        self.start(Part::Bus);
        let socket = self.dir().join("bus");
        eventually("the bus listens", DEADLINE, || std::os::unix::net::UnixStream::connect(&socket).ok());
        self.start(Part::Fake);
        self.fake = Some(Fake::connect(&bus_address(self.dir()))?);
        if self.setup.settings {
            self.start_settings();
        }
        Ok(())
    }

    /// The bus ends, everybody on it with it, and all but the bridge are started again. The fake services are as if they were new.
    pub fn restart_bus(&mut self) {
        self.kill(Part::Bus);
        self.ended(Part::Fake);
        if self.setup.settings {
            self.ended(Part::Settings);
        }
        self.start_bus().unwrap_or_else(|error| panic!("the bus does not come up again: {error:#}"));
    }

    pub fn fake(&self) -> &Fake {
        self.fake.as_ref().expect("there since bring_up")
    }

    /// A client that has subscribed to nothing yet.
    pub fn client(&self) -> Client {
        self.client_as(&Options { credentials: self.setup.credentials.clone(), ..Options::default() })
    }

    /// A client that leaves something behind when it goes without a word.
    pub fn client_with_will(&self, will: Will) -> Client {
        self.client_as(&Options { credentials: self.setup.credentials.clone(), will: Some(will), ..Options::default() })
    }

    fn client_as(&self, options: &Options) -> Client {
        Client::connect(self.parts.broker(), options).expect("the broker takes the test's client").with_prefix(&self.setup.prefix)
    }

    /// A client that has subscribed to everything.
    pub fn listener(&self) -> Client {
        let client = self.client();
        client.subscribe("#");
        client
    }

    /// Starts the bridge and wakes it: a client that has heard everything there is.
    pub fn awake(&mut self) -> Client {
        self.start_bridge();
        let client = self.listener();
        client.keepalive("");
        client.completed();
        client
    }

    /// Starts the bridge and waits until it says that it is there.
    pub fn start_bridge(&mut self) {
        let watcher = self.client();
        watcher.subscribe(&self.status_topic());
        watcher.barrier();
        watcher.mark();
        self.start(Part::Bridge);
        self.await_online(&watcher);
    }

    /// Starts localsettings and waits until it has its name.
    pub fn start_settings(&mut self) {
        self.start(Part::Settings);
        eventually("localsettings has its name", DEADLINE, || {
            let ended = self.parts.ended(Part::Settings, Duration::ZERO).ok().flatten();
            assert!(ended.is_none(), "localsettings ended with {ended:?}");
            self.fake().names().iter().any(|name| name == "com.victronenergy.settings").then_some(())
        });
    }

    /// Waits for `online` on a client that is subscribed to the status, and fails at once when the bridge ends instead.
    pub fn await_online(&mut self, watcher: &Client) {
        let topic = self.status_topic();
        eventually("the bridge is online", DEADLINE, || {
            let ended = self.parts.ended(Part::Bridge, Duration::ZERO).ok().flatten();
            assert!(ended.is_none(), "the bridge ended with {ended:?} instead of coming online");
            watcher.on(&topic).iter().any(|message| message.payload == b"online").then_some(())
        });
    }

    /// `venus-mqtt/<portal>/status`, with the prefix if there is one.
    pub fn status_topic(&self) -> String {
        format!("{}venus-mqtt/{PORTAL}/status", self.setup.prefix)
    }

    pub fn start(&mut self, part: Part) {
        self.parts.start(part).unwrap_or_else(|error| panic!("starting the {part}: {error:#}"));
    }

    pub fn signal(&mut self, part: Part, signal: Signal) {
        self.parts.signal(part, signal).unwrap_or_else(|error| panic!("{signal} to the {part}: {error:#}"));
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self, part: Part) -> Ended {
        self.signal(part, Signal::SIGTERM);
        self.ended(part)
    }

    /// SIGKILL, as a crash or a power cut would.
    pub fn kill(&mut self, part: Part) {
        self.signal(part, Signal::SIGKILL);
        self.ended(part);
    }

    /// How the part ended; it has to.
    pub fn ended(&mut self, part: Part) -> Ended {
        self.parts
            .ended(part, DEADLINE)
            .unwrap_or_else(|error| panic!("waiting for the end of the {part}: {error:#}"))
            .unwrap_or_else(|| panic!("the {part} does not end"))
    }

    /// Whether the part runs.
    pub fn runs(&mut self, part: Part) -> bool {
        self.parts.ended(part, Duration::ZERO).is_ok_and(|ended| ended.is_none())
    }

    pub fn pause(&mut self, part: Part) {
        self.parts.pause(part).unwrap_or_else(|error| panic!("pausing the {part}: {error:#}"));
    }

    pub fn resume(&mut self, part: Part) {
        self.parts.resume(part).unwrap_or_else(|error| panic!("resuming the {part}: {error:#}"));
    }

    /// Nothing passes between the bridge and the broker, and nobody is told.
    pub fn cut_off(&mut self) {
        self.parts.cut_off().unwrap_or_else(|error| panic!("cutting off: {error:#}"));
    }

    pub fn reconnect(&mut self) {
        self.parts.reconnect().unwrap_or_else(|error| panic!("reconnecting: {error:#}"));
    }

    /// Another setup, for parts that are started (or told to read it) after this.
    pub fn configure(&mut self, setup: Setup) {
        setup
            .write_files(self.dir())
            .and_then(|()| self.parts.configure(&setup).map_err(std::io::Error::other))
            .expect("the rig's folder takes files");
        self.setup = setup;
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn dir(&self) -> &Path {
        self.parts.dir()
    }

    /// The bridge's configuration.
    pub fn config(&self) -> PathBuf {
        self.dir().join("venus-mqtt.toml")
    }

    pub fn bus_address(&self) -> String {
        bus_address(self.dir())
    }

    pub fn broker_address(&self) -> std::net::SocketAddr {
        self.parts.broker()
    }

    /// The address under which the parts reach this process: where a [`crate::Backend`] of theirs listens.
    pub fn host(&self) -> std::net::IpAddr {
        self.parts.host().unwrap_or_else(|error| panic!("the address of this process: {error:#}"))
    }

    /// What the time is for the bridge, from now on: see [`Setup::clock`].
    pub fn set_clock(&self, time: &str) {
        crate::parts::replace(&self.dir().join(crate::setup::CLOCK), time).expect("the rig's folder takes files");
    }

    /// A folder as the bridge sees it, while it runs: its disk may be one of its own.
    pub fn bridge_dir(&self, name: &str) -> PathBuf {
        let dir = self.dir().join(name);
        let dir = dir.strip_prefix("/").unwrap_or(&dir);
        Path::new("/proc").join(self.pid(Part::Bridge).to_string()).join("root").join(dir)
    }

    /// Sees every signal on the bus from now on.
    pub fn watch(&self) -> Watch {
        Watch::connect(&self.bus_address()).expect("the bus takes the test's monitor")
    }

    pub fn log(&self, part: Part) -> String {
        self.parts.log(part)
    }

    /// Waits until the part has logged a line that contains `text`.
    pub fn await_log(&self, part: Part, text: &str) -> String {
        eventually(&format!("a line with {text:?} in the log of the {part}"), DEADLINE, || {
            self.log(part).lines().find(|line| line.contains(text)).map(ToOwned::to_owned)
        })
    }

    /// The process ID of a part that runs, as this machine sees it.
    pub fn pid(&self, part: Part) -> i32 {
        self.parts.pid(part).unwrap_or_else(|error| panic!("the pid of the {part}: {error:#}"))
    }

    /// Resident memory of a part, in KiB.
    pub fn rss(&self, part: Part) -> u64 {
        let pid = self.pid(part);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the part runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("VmRSS is a number")
    }

    /// How many files and sockets a part has open.
    pub fn open_files(&self, part: Part) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid(part))).expect("the part runs").count()
    }

    /// Everything retained at the broker below `filter`, as a fresh subscriber sees it.
    pub fn retained(&self, filter: &str) -> BTreeMap<String, String> {
        self.client().retained(filter)
    }

    /// Waits until exactly these topics of items are retained, by what stands behind the portal ID.
    pub fn await_retained_items(&self, wanted: &[&str]) {
        let prefix = format!("{}N/{PORTAL}/", self.setup.prefix);
        let mut last = Vec::new();
        let wanted: Vec<String> = wanted.iter().map(|&rest| rest.to_owned()).collect();
        let end = Instant::now() + DEADLINE;
        loop {
            let all = self.retained("#");
            let items = all.keys().filter_map(|topic| topic.strip_prefix(&prefix));
            let mut now: Vec<String> =
                items.filter(|rest| !["system/0/Serial", "keepalive"].contains(rest)).map(ToOwned::to_owned).collect();
            now.sort();
            let mut sorted = wanted.clone();
            sorted.sort();
            if now == sorted {
                return;
            }
            if now != last {
                last = now;
            }
            assert!(Instant::now() < end, "retained should be {sorted:?}, but is {last:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for part in Part::ALL {
                let log = self.parts.log(part);
                let skipped = log.lines().count().saturating_sub(80);
                eprintln!("--- {part} ({skipped} lines before) ---");
                for line in log.lines().skip(skipped) {
                    eprintln!("{line}");
                }
            }
        }
    }
}

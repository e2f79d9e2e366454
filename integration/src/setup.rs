//! What a scenario wants of its parts, and the configuration files that follow from it.

use std::{fmt::Write as _, path::Path};

use crate::{PORTAL, parts::replace};

/// The file of a rig that says what time it is, where a scenario has asked for it.
pub const CLOCK: &str = "clock";

/// How the parts of a rig are set up. The default: a broker open to all, the bridge switched on with the real keep-alive interval.
#[derive(Clone)]
pub struct Setup {
    top: Vec<String>,
    mqtt: Vec<String>,
    bridge: Vec<String>,
    devices: Vec<String>,
    broker: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
    /// lines of a second listener that the bridge uses instead (TLS, authentication)
    listener: Vec<String>,
    http: Vec<String>,
    env: Vec<(String, String)>,
    /// the size of the bridge's own disk for what it keeps, in KiB; it is the machine's otherwise
    pub disk: Option<u32>,
    pub host: String,
    /// the bridge reaches the broker through a proxy that can be cut off
    pub proxied: bool,
    pub prefix: String,
    /// whether [`crate::Rig::start_bridge`] waits for its status
    pub portal: Option<String>,
    pub credentials: Option<(String, String)>,
    /// localsettings runs
    pub settings: bool,
    /// how many connections one user may have to the bus
    pub connections: u32,
    /// a line of /etc/passwd for the bus, which turns away whom it does not know
    pub account: Option<String>,
    /// the bridge reaches the bus over TCP, by this port of the loopback
    pub bus_port: Option<u16>,
    /// the broker is `fake-broker` with these arguments, not Mosquitto
    fake_broker: Vec<String>,
    /// further addresses on which the bus listens, and those that the bridge is told; `{dir}` is the rig's folder
    bus_listens: Vec<String>,
    bus_addresses: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            top: vec!["log_level = \"debug\"".into()],
            mqtt: Vec::new(),
            bridge: vec!["enabled = true".into()],
            devices: vec!["state_dir = \"{dir}/state\"".into(), "catalogue_dir = \"{dir}/catalogue\"".into()],
            broker: Vec::new(),
            files: Vec::new(),
            listener: Vec::new(),
            http: Vec::new(),
            env: Vec::new(),
            disk: None,
            host: "127.0.0.1".into(),
            proxied: false,
            prefix: String::new(),
            portal: Some(PORTAL.into()),
            credentials: None,
            settings: false,
            connections: 2048,
            account: None,
            bus_port: None,
            fake_broker: Vec::new(),
            bus_listens: Vec::new(),
            bus_addresses: None,
        }
    }
}

impl Setup {
    /// Keep-alives last one second, so that a scenario can see them end.
    pub fn short() -> Self {
        Self::default().bridge("keepalive_interval = 1")
    }

    /// Devices can register: localsettings runs, and they are remembered in the rig's folder.
    pub fn devices() -> Self {
        Self { settings: true, ..Self::default() }
    }

    /// A line before all tables; `key = value` replaces what the key was.
    pub fn top(mut self, line: &str) -> Self {
        put(&mut self.top, line);
        self
    }

    /// A line of `[mqtt]`.
    pub fn mqtt(mut self, line: &str) -> Self {
        put(&mut self.mqtt, line);
        self
    }

    /// A line of `[bridge]`.
    pub fn bridge(mut self, line: &str) -> Self {
        put(&mut self.bridge, line);
        self
    }

    /// A line of `[devices]`; `{dir}` is the rig's folder.
    pub fn device(mut self, line: &str) -> Self {
        put(&mut self.devices, line);
        self
    }

    /// An `[[http]]` section with these lines; `{dir}` is the rig's folder.
    pub fn http(mut self, lines: &str) -> Self {
        self.http.push(lines.into());
        self
    }

    /// A variable of the bridge's environment; `{dir}` is the rig's folder.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The bridge's clock is what the file [`CLOCK`] says, as `faketime` reads it; its timers are left alone.
    pub fn clock(self, time: &str) -> Self {
        let library = libfaketime().expect("libfaketime: integration/test installs it");
        self.file(CLOCK, time)
            .env("LD_PRELOAD", &library)
            .env("FAKETIME_TIMESTAMP_FILE", &format!("{{dir}}/{CLOCK}"))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// What the bridge keeps is on a disk of its own, of so many KiB, which is new at every start.
    pub fn disk(mut self, kib: u32) -> Self {
        self.disk = Some(kib);
        self
    }

    /// localsettings is not there at first; a scenario may start it.
    pub fn without_settings(mut self) -> Self {
        self.settings = false;
        self
    }

    /// One user may have so many connections to the bus.
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// The bus listens on this port of the loopback as well, open to all, as a GX does that exports it; the bridge comes by that way.
    pub fn bus_over_tcp(mut self, port: u16) -> Self {
        self.bus_port = Some(port);
        self
    }

    /// The bus listens here as well; `{dir}` is the rig's folder.
    pub fn bus_listens(mut self, address: &str) -> Self {
        self.bus_listens.push(address.into());
        self
    }

    /// The bridge is told to connect to these addresses; `{dir}` is the rig's folder.
    pub fn bus_addresses(mut self, addresses: &str) -> Self {
        self.bus_addresses = Some(addresses.into());
        self
    }

    /// The bus knows this account, a line of /etc/passwd; only root can have that.
    pub fn account(mut self, line: &str) -> Self {
        self.account = Some(line.into());
        self
    }

    /// A line of Mosquitto's configuration.
    pub fn broker(mut self, line: &str) -> Self {
        self.broker.push(line.into());
        self
    }

    /// A line of the listener that only the bridge uses; `{dir}` is the rig's folder.
    pub fn listener(mut self, line: &str) -> Self {
        self.listener.push(line.into());
        self
    }

    /// The broker is a FlashMQ with dbus-flashmq for the rig's portal ID, as `fake-broker` plays it.
    pub fn flashmq(self) -> Self {
        self.fake_broker(&["--flashmq", PORTAL, "--dbus", "unix:path={dir}/bus"])
    }

    /// The broker is `fake-broker` with these arguments; `{dir}` is the rig's folder.
    pub fn fake_broker(mut self, arguments: &[&str]) -> Self {
        self.fake_broker.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// The arguments of `fake-broker`, where it takes the place of Mosquitto.
    pub fn fake_broker_arguments(&self, dir: &Path, port: u16) -> Option<Vec<String>> {
        if self.fake_broker.is_empty() {
            return None;
        }
        let wanted = self.fake_broker.iter().map(|argument| argument.replace("{dir}", &dir.display().to_string()));
        Some(["--port".into(), port.to_string()].into_iter().chain(wanted).collect())
    }

    /// A file in the rig's folder.
    pub fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.into(), content.into()));
        self
    }

    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = format!("{prefix}/");
        self.mqtt(&format!("prefix = \"{prefix}\""))
    }

    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// The portal ID is not given: the bridge has to find it.
    pub fn without_portal(mut self) -> Self {
        self.portal = None;
        self
    }

    /// The name the bridge calls the broker by.
    pub fn host(mut self, host: &str) -> Self {
        self.host = host.into();
        self
    }

    /// The variables of the bridge's environment.
    pub fn environment(&self, dir: &Path) -> impl Iterator<Item = (&str, String)> {
        self.env.iter().map(|(name, value)| (name.as_str(), value.replace("{dir}", &dir.display().to_string())))
    }

    pub fn has_listener(&self) -> bool {
        !self.listener.is_empty()
    }

    /// Writes the bus' configuration, the broker's files, and what the scenario added.
    pub fn write_files(&self, dir: &Path) -> std::io::Result<()> {
        replace(&dir.join("bus.conf"), bus_conf(dir, self.connections, self.bus_port, &self.bus_listens))?;
        for (name, content) in &self.files {
            replace(&dir.join(name), content)?;
        }
        Ok(())
    }

    /// Mosquitto's configuration. `listen` is the address of its own side; `second` the port of the bridge's own listener.
    pub fn mosquitto_conf(&self, dir: &Path, listen: &str, port: u16, second: Option<u16>) -> String {
        let mut text = format!(
            "per_listener_settings true\npersistence false\nmax_queued_messages 0\nset_tcp_nodelay true\nlog_dest stderr\nlog_type all\nconnection_messages true\nuser root\nlistener {port} {listen}\nallow_anonymous true\n"
        );
        for line in &self.broker {
            let _ = writeln!(text, "{}", line.replace("{dir}", &dir.display().to_string()));
        }
        if let Some(second) = second {
            let _ = writeln!(text, "listener {second} {listen}");
            for line in &self.listener {
                let _ = writeln!(text, "{}", line.replace("{dir}", &dir.display().to_string()));
            }
        }
        text
    }

    /// The bridge's configuration.
    pub fn bridge_toml(&self, dir: &Path, host: &str, port: u16) -> String {
        let mut text = String::new();
        if let Some(portal) = &self.portal {
            let _ = writeln!(text, "portal_id = \"{portal}\"");
        }
        for line in &self.top {
            let _ = writeln!(text, "{line}");
        }
        let address = match &self.bus_addresses {
            Some(addresses) => addresses.replace("{dir}", &dir.display().to_string()),
            None => self.bus_port.map_or_else(|| bus_address(dir), tcp_address),
        };
        let _ = writeln!(text, "[dbus]\naddress = \"{address}\"");
        let _ = writeln!(text, "[mqtt]\nhost = \"{host}\"\nport = {port}");
        for line in &self.mqtt {
            let _ = writeln!(text, "{}", line.replace("{dir}", &dir.display().to_string()));
        }
        let _ = writeln!(text, "[bridge]");
        for line in &self.bridge {
            let _ = writeln!(text, "{line}");
        }
        // whoever does not care about devices must not touch this machine's own
        let _ = writeln!(text, "[devices]");
        for line in &self.devices {
            let _ = writeln!(text, "{}", line.replace("{dir}", &dir.display().to_string()));
        }
        for lines in &self.http {
            let _ = writeln!(text, "[[http]]\n{}", lines.replace("{dir}", &dir.display().to_string()));
        }
        text
    }
}

/// Where Debian keeps the library of `faketime`, a folder for each architecture.
fn libfaketime() -> Option<String> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let library = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file());
    library.map(|path| path.display().to_string())
}

/// How the fake localsettings is started.
pub fn settings_arguments(dir: &Path) -> Vec<String> {
    vec!["--dbus".into(), bus_address(dir), "--file".into(), format!("{}/settings.json", dir.display())]
}

/// The address of the bus in a rig's folder, the same for the host and for containers.
pub fn bus_address(dir: &Path) -> String {
    format!("unix:path={}/bus", dir.display())
}

fn tcp_address(port: u16) -> String {
    format!("tcp:host=127.0.0.1,port={port}")
}

/// A bus for everyone, as a session bus is, without services of its own to start. What is not said here is what a system bus has:
/// 128 calls of a connection that wait for their reply, 64 connections that are being made.
fn bus_conf(dir: &Path, connections: u32, port: Option<u16>, more: &[String]) -> String {
    let more: String =
        more.iter().map(|address| format!("<listen>{}</listen>", address.replace("{dir}", &dir.display().to_string()))).collect();
    let tcp = port
        .map_or_else(String::new, |port| format!("<listen>{}</listen>\n  <auth>ANONYMOUS</auth>\n  <allow_anonymous/>", tcp_address(port)));
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>{}</listen>{more}
  <auth>EXTERNAL</auth>
  {tcp}
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow send_type="method_call"/>
    <allow receive_sender="*" eavesdrop="true"/>
  </policy>
  <limit name="max_incoming_bytes">1000000000</limit>
  <limit name="max_outgoing_bytes">1000000000</limit>
  <limit name="max_message_size">134217728</limit>
  <limit name="reply_timeout">600000</limit>
  <limit name="max_connections_per_user">{connections}</limit>
</busconfig>
"#,
        bus_address(dir)
    )
}

fn put(lines: &mut Vec<String>, line: &str) {
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    lines.retain(|old| key(old) != key(line));
    lines.push(line.into());
}

//! The parts as containers of `integration/compose.yaml`, on a private network of their own.
//!
//! The rig's folder is mounted at the same path in every container, so the bus' socket and all files have the same names inside and
//! outside, and the scenario itself stays on the host. Everything carries the project's name, which is the folder's, and is removed
//! with the rig.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{Ended, Part, Parts, processes::free_port, replace};
use crate::Setup;

/// The parts of one rig, as containers.
pub struct Containers {
    dir: TempDir,
    project: String,
    /// of venus-mqtt, and of everything else
    images: [String; 2],
    port: u16,
    ids: BTreeMap<Part, String>,
}

impl Containers {
    pub fn new(setup: &Setup) -> Result<Self> {
        let image = |name: &str| {
            let hint = "`integration/test --containers` builds the images and names them; by hand: integration/containers.sh";
            std::env::var(name).with_context(|| format!("no {name}: {hint}"))
        };
        let images = [image("VENUS_MQTT_IMAGE")?, image("RIG_PARTS_IMAGE")?];
        if setup.has_listener() {
            bail!("scenarios with a listener of their own run as processes only");
        }
        let dir = tempfile::Builder::new().prefix("venus-rig-").tempdir()?;
        // venus-mqtt has a user of its own
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777))?;
        setup.write_files(dir.path())?;
        let project = dir.path().file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        let mut parts = Self { dir, project, images, port: free_port()?, ids: BTreeMap::new() };
        parts.configure(setup)?;
        Ok(parts)
    }

    /// Compose, in whichever of its two spellings is there.
    fn compose(&self, arguments: &[&str]) -> Result<String> {
        let plugin = Command::new("docker").args(["compose", "version"]).output().is_ok_and(|output| output.status.success());
        let mut command = if plugin { Command::new("docker") } else { Command::new("docker-compose") };
        if plugin {
            command.arg("compose");
        }
        command.args(["-f", concat!(env!("CARGO_MANIFEST_DIR"), "/compose.yaml"), "-p", &self.project]).args(arguments);
        let [image, parts] = &self.images;
        command
            .env("VENUS_MQTT_IMAGE", image)
            .env("RIG_PARTS_IMAGE", parts)
            .env("RIG_DIR", self.dir.path())
            .env("RIG_PORT", self.port.to_string());
        run(&mut command)
    }

    fn id(&self, part: Part) -> Result<&str> {
        self.ids.get(&part).map(String::as_str).with_context(|| format!("the {part} was never started"))
    }

    fn find(&self, part: Part) -> Result<String> {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let service = format!("label=com.docker.compose.service={part}");
        let id = docker(&["ps", "-aq", "--filter", &project, "--filter", &service])?;
        if id.is_empty() {
            bail!("no container of the {part} in {}", self.project);
        }
        Ok(id)
    }

    fn network(&self) -> String {
        format!("{}_rig", self.project)
    }
}

impl Parts for Containers {
    fn configure(&mut self, setup: &Setup) -> Result<()> {
        let dir = self.dir.path();
        if setup.environment(dir).next().is_some() || setup.disk.is_some() {
            bail!("scenarios with an environment or a disk of their own run as processes only");
        }
        replace(&dir.join("mosquitto.conf"), setup.mosquitto_conf(dir, "0.0.0.0", 1883, None))?;
        replace(&dir.join("venus-mqtt.toml"), setup.bridge_toml(dir, "broker", 1883))?;
        Ok(())
    }

    fn start(&mut self, part: Part) -> Result<()> {
        if let Some(id) = self.ids.get(&part) {
            docker(&["start", id])?;
        } else {
            self.compose(&["up", "-d", "--no-deps", part.name()])?;
            let id = self.find(part)?;
            self.ids.insert(part, id);
        }
        Ok(())
    }

    fn signal(&mut self, part: Part, signal: Signal) -> Result<()> {
        docker(&["kill", "-s", signal.as_str(), self.id(part)?]).map(drop)
    }

    fn pause(&mut self, part: Part) -> Result<()> {
        docker(&["pause", self.id(part)?]).map(drop)
    }

    fn resume(&mut self, part: Part) -> Result<()> {
        docker(&["unpause", self.id(part)?]).map(drop)
    }

    fn ended(&mut self, part: Part, within: Duration) -> Result<Option<Ended>> {
        let end = Instant::now() + within;
        loop {
            let state = docker(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", self.id(part)?])?;
            if let Some(("exited" | "dead", code)) = state.split_once(' ') {
                let code: i32 = code.parse().with_context(|| format!("docker says {state:?}"))?;
                // as a shell would say it
                return Ok(Some(if code > 128 { Ended::Signal(code - 128) } else { Ended::Code(code) }));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn cut_off(&mut self) -> Result<()> {
        docker(&["network", "disconnect", "-f", &self.network(), self.id(Part::Bridge)?]).map(drop)
    }

    fn reconnect(&mut self) -> Result<()> {
        docker(&["network", "connect", "--alias", Part::Bridge.name(), &self.network(), self.id(Part::Bridge)?]).map(drop)
    }

    fn host(&self) -> Result<IpAddr> {
        // of the rig's own network, which the machine is a part of
        let gateway = docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", &self.network()])?;
        gateway.parse().with_context(|| format!("docker says {gateway:?}"))
    }

    fn broker(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    fn pid(&self, part: Part) -> Result<i32> {
        let pid = docker(&["inspect", "-f", "{{.State.Pid}}", self.id(part)?])?;
        pid.parse().with_context(|| format!("docker says {pid:?}"))
    }

    fn log(&self, part: Part) -> String {
        let Ok(id) = self.id(part) else { return String::new() };
        let Ok(output) = Command::new("docker").args(["logs", id]).output() else {
            return String::new();
        };
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        // not by what we remember but by the project's name: a start that failed half-way has left something, too
        let project = format!("label=com.docker.compose.project={}", self.project);
        if let Ok(ids) = docker(&["ps", "-aq", "--filter", &project]) {
            for id in ids.lines() {
                let _ = docker(&["rm", "-f", "-v", id]);
            }
        }
        let _ = docker(&["network", "rm", &self.network()]);
    }
}

fn docker(arguments: &[&str]) -> Result<String> {
    run(Command::new("docker").args(arguments))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

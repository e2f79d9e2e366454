//! The configuration: a TOML file and the flags, brought to types that cannot hold a wrong value.
//!
//! Promises: whatever [`Source::load`] gives is complete and consistent, every file it names could be opened, and neither
//! `Debug` nor `Display` of any of it shows a secret. Refuses, all mistakes at once and each with its line and what to do:
//! unknown keys, wrong types, values out of range, options that contradict each other, files that cannot be read.
//! Called by `cli` at start and again at SIGHUP; it reads files, and nothing else of the outside.

mod given;
mod parse;
mod read;
mod resolve;
mod show;
mod url;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use crate::bridge::name::PortalId;
use crate::bridge::options::Options;
use crate::dbus_address::Addresses;
use crate::device::options::Options as DeviceOptions;
use crate::files::{read_configuration, why};
use crate::measure::options::Options as HttpOptions;

pub use given::{At, Given, GivenTarget, Place};
pub use parse::{bus_address, client_id, enabled, host, keepalive_interval, log_level, patience, portal_id, user};

/// Where the configuration is looked for, in this order, when no file is named.
pub const DEFAULT_PATHS: [&str; 2] = ["/data/conf/venus-mqtt.toml", "/etc/venus-mqtt/config.toml"];

/// Largest configuration file taken, in bytes: what is larger is some other file.
const FILE_MAX: u64 = 1 << 20;

/// Largest file of a password or an API key taken, in bytes.
const SECRET_MAX: u64 = 4096;

/// Everything that can be chosen.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// `None`: to be found out.
    pub portal_id: Option<PortalId>,
    pub log_level: LevelFilter,
    pub dbus: BusAddress,
    pub mqtt: Mqtt,
    pub bridge: Options,
    pub devices: Devices,
    /// Where measurements are posted to; none: nowhere.
    pub http: Vec<HttpTarget>,
}

/// Which bus.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BusAddress {
    /// The session bus if `DBUS_SESSION_BUS_ADDRESS` is set, else the system bus.
    Auto,
    System,
    Session,
    Address(Addresses),
}

impl fmt::Display for BusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::System => f.write_str("system"),
            Self::Session => f.write_str("session"),
            Self::Address(addresses) => addresses.fmt(f),
        }
    }
}

/// The `[mqtt]` part.
#[derive(Clone, PartialEq, Debug)]
pub struct Mqtt {
    /// A name or an address, IPv6 without brackets.
    pub host: String,
    pub port: u16,
    /// `None`: `venus-mqtt-<portal ID>`.
    pub client_id: Option<String>,
    pub user: Option<String>,
    /// Only with a user.
    pub password: Option<Secret>,
    /// What stands before every topic: empty, or ending in a slash.
    pub prefix: String,
    pub keep_alive: Duration,
    pub tls: Option<Tls>,
}

/// The `[devices]` part.
#[derive(Clone, PartialEq, Debug)]
pub struct Devices {
    pub options: DeviceOptions,
    /// Where the daemon keeps what must outlive it.
    pub state_dir: PathBuf,
    /// Where the user's own types of devices are.
    pub catalogue_dir: PathBuf,
}

/// One `[[http]]` part: a backend.
#[derive(Clone, PartialEq)]
pub struct HttpTarget {
    pub options: HttpOptions,
    /// Where measurements are posted to, whole: `http` or `https`, no user, no fragment.
    pub url: String,
    /// The value of `api_key_header`.
    pub api_key: Option<Secret>,
    pub api_key_header: String,
    /// Until the connection stands.
    pub connect_timeout: Duration,
    /// Until the answer has been read.
    pub timeout: Duration,
    /// `None`: the system's roots.
    pub ca_file: Option<PathBuf>,
    /// Whether bodies are compressed.
    pub gzip: bool,
}

/// The query of a URL may hold a secret.
impl fmt::Debug for HttpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { options, url, api_key, api_key_header, connect_timeout, timeout, ca_file, gzip } = self;
        f.debug_struct("HttpTarget")
            .field("options", options)
            .field("url", &url.split('?').next())
            .field("api_key", api_key)
            .field("api_key_header", api_key_header)
            .field("connect_timeout", connect_timeout)
            .field("timeout", timeout)
            .field("ca_file", ca_file)
            .field("gzip", gzip)
            .finish()
    }
}

/// TLS is on; the host name is always checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tls {
    /// `None`: the system's roots.
    pub ca_file: Option<PathBuf>,
    pub client: Option<ClientCertificate>,
}

/// How we show the broker who we are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientCertificate {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// A password or an API key, and the file it is from. Only [`Secret::reveal`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    text: String,
    file: PathBuf,
}

impl Secret {
    pub fn reveal(&self) -> &str {
        &self.text
    }

    pub fn file(&self) -> &Path {
        &self.file
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a configuration comes from. It can be loaded again, with the same flags.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file that was named; it must exist.
    pub file: Option<PathBuf>,
    /// Looked at in this order when none was named; they need not exist.
    pub default_files: Vec<PathBuf>,
    /// What stands on the command line, and wins.
    pub flags: Given,
}

impl Source {
    /// The named file, or the usual places.
    pub fn new(file: Option<PathBuf>, flags: Given) -> Self {
        Self { file, default_files: DEFAULT_PATHS.iter().map(PathBuf::from).collect(), flags }
    }

    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let (file, mut given) = match self.find()? {
            Some((file, text)) => {
                let given = read::read(&file, &text).map_err(ConfigError)?;
                (Some(file), given)
            }
            None => (None, Given::default()),
        };
        given.override_with(self.flags.clone());
        let flags = self.flags.places();
        let (config, warnings) = resolve::resolve(given).map_err(ConfigError)?;
        Ok(Loaded { config, file, flags, warnings })
    }

    fn find(&self) -> Result<Option<(PathBuf, String)>, ConfigError> {
        if let Some(file) = &self.file {
            let text = read_configuration(file, FILE_MAX).map_err(|error| {
                mistake(file, format!("cannot read the configuration: {}; correct the path after --config", why(&error)))
            })?;
            return Ok(Some((file.clone(), utf8(file, text)?)));
        }
        for file in &self.default_files {
            match read_configuration(file, FILE_MAX) {
                Ok(text) => return Ok(Some((file.clone(), utf8(file, text)?))),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => {
                    let text = format!("cannot read the configuration: {}; make it readable, or name another with --config", why(&error));
                    return Err(mistake(file, text));
                }
            }
        }
        Ok(None)
    }
}

/// A configuration, where it is from, and what is odd about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// `None`: no file, only defaults and flags.
    pub file: Option<PathBuf>,
    /// The flags that were given, such as `--port`.
    pub flags: Vec<&'static str>,
    pub warnings: Vec<Remark>,
}

impl Loaded {
    /// The configuration in effect as TOML that could be fed back, with where it is from; secrets are `***`.
    pub fn show(&self) -> String {
        show::show(self)
    }
}

/// One thing to tell about the configuration, and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remark {
    pub place: Place,
    pub text: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// Everything that is wrong with a configuration; never empty.
#[derive(Clone, PartialEq, Debug)]
pub struct ConfigError(pub Vec<Remark>);

impl std::error::Error for ConfigError {}

/// One line for each mistake.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

fn utf8(file: &Path, bytes: Vec<u8>) -> Result<String, ConfigError> {
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = good.filter(|&&b| b == b'\n').count() + 1;
        ConfigError(vec![Remark { place: Place::Line(file.into(), line), text: "not UTF-8; save the file as UTF-8".into() }])
    })
}

fn mistake(file: &Path, text: String) -> ConfigError {
    ConfigError(vec![Remark { place: Place::File(file.into()), text }])
}

#[cfg(test)]
mod tests;

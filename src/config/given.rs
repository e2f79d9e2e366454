//! What was said, and where: the options of one file or one command line, before they are put together.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::bridge::filter::Filter;
use crate::bridge::name::PortalId;
use crate::bridge::options::{Access, AlwaysOn, Enabled};
use crate::device::options::{Proxy, Stale, StaleAfter};
use crate::measure::options::Format;

use super::BusAddress;
use super::url::Url;

/// Where something was said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    File(PathBuf),
    /// Lines count from one.
    Line(PathBuf, usize),
    Flag(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Line(file, line) => write!(f, "{}:{line}", file.display()),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value and where it was said.
#[derive(Clone, Debug)]
pub struct At<T> {
    pub value: T,
    pub place: Place,
}

/// Every option that was given; the values are right each for itself.
#[derive(Clone, Default, Debug)]
pub struct Given {
    pub portal_id: Option<At<PortalId>>,
    pub log_level: Option<At<LevelFilter>>,
    pub address: Option<At<BusAddress>>,
    pub host: Option<At<String>>,
    pub port: Option<At<u16>>,
    pub client_id: Option<At<String>>,
    pub user: Option<At<String>>,
    pub password_file: Option<At<PathBuf>>,
    pub keep_alive: Option<At<Duration>>,
    pub prefix: Option<At<String>>,
    pub tls: Option<At<bool>>,
    pub ca_file: Option<At<PathBuf>>,
    pub cert_file: Option<At<PathBuf>>,
    pub key_file: Option<At<PathBuf>>,
    pub enabled: Option<At<Enabled>>,
    pub retain: Option<At<bool>>,
    pub keepalive_interval: Option<At<Duration>>,
    pub always_on: Option<At<AlwaysOn>>,
    pub access: Option<At<Access>>,
    pub allow: Option<At<Vec<Filter>>>,
    pub deny: Option<At<Vec<Filter>>>,
    pub devices_enabled: Option<At<bool>>,
    pub strict_client_id: Option<At<bool>>,
    pub proxy: Option<At<Proxy>>,
    pub stale_after: Option<At<StaleAfter>>,
    pub stale: Option<At<Stale>>,
    /// Inside: `None` is "not at all".
    pub restore_values: Option<At<Option<Duration>>>,
    pub device_instance_topic: Option<At<bool>>,
    pub keepalive: Option<At<bool>>,
    pub max_devices: Option<At<usize>>,
    pub max_services: Option<At<usize>>,
    pub max_services_total: Option<At<usize>>,
    pub state_dir: Option<At<PathBuf>>,
    pub catalogue_dir: Option<At<PathBuf>>,
    /// Only from a file.
    pub http: Vec<GivenTarget>,
}

/// One `[[http]]` part.
#[derive(Clone, Debug)]
pub struct GivenTarget {
    /// Where it begins.
    pub place: Place,
    pub name: Option<At<String>>,
    pub url: Option<At<Url>>,
    /// Still without its filters.
    pub format: Option<At<Format>>,
    pub filters: Option<At<Vec<Filter>>>,
    pub api_key_file: Option<At<PathBuf>>,
    pub api_key_header: Option<At<String>>,
    pub timeout: Option<At<Duration>>,
    pub connect_timeout: Option<At<Duration>>,
    pub update_interval: Option<At<Duration>>,
    pub cerbo_serial: Option<At<String>>,
    pub ca_file: Option<At<PathBuf>>,
    pub gzip: Option<At<bool>>,
    pub catch_up_rate: Option<At<f64>>,
    pub queue_records: Option<At<usize>>,
    pub queue_bytes: Option<At<u64>>,
}

/// Names every field that can be a flag once, so that none is forgotten where all are walked.
macro_rules! every_option {
    ($each:ident) => {
        $each!(
            portal_id,
            log_level,
            address,
            host,
            port,
            client_id,
            user,
            password_file,
            keep_alive,
            prefix,
            tls,
            ca_file,
            cert_file,
            key_file,
            enabled,
            retain,
            keepalive_interval,
            always_on,
            access,
            allow,
            deny,
            devices_enabled,
            strict_client_id,
            proxy,
            stale_after,
            stale,
            restore_values,
            device_instance_topic,
            keepalive,
            max_devices,
            max_services,
            max_services_total,
            state_dir,
            catalogue_dir
        )
    };
}

impl Given {
    /// What `stronger` says replaces what is said here.
    pub fn override_with(&mut self, stronger: Self) {
        macro_rules! replace {
            ($($field:ident),*) => {
                let Self { $($field,)* http } = stronger;
                $(if $field.is_some() { self.$field = $field; })*
                if !http.is_empty() { self.http = http; }
            };
        }
        every_option!(replace);
    }

    /// The flags that said something.
    pub fn places(&self) -> Vec<&'static str> {
        let mut flags = Vec::new();
        macro_rules! collect {
            ($($field:ident),*) => {
                let Self { $($field,)* http: _ } = self;
                $(if let Some(At { place: Place::Flag(flag), .. }) = $field { flags.push(*flag); })*
            };
        }
        every_option!(collect);
        flags
    }
}

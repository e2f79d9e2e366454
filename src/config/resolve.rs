//! [`Given`] to [`Config`]: defaults, what options mean for each other, and the files they name.

mod http;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use log::LevelFilter;

use crate::bridge::filter::Filter;
use crate::bridge::options::{Access, Options};
use crate::device::options::Options as DeviceOptions;
use crate::files::{self, read_bounded, why};

use super::url::is_loopback;
use super::{At, BusAddress, ClientCertificate, Config, Devices, Given, Mqtt, Place, Remark, SECRET_MAX, Secret, Tls};

/// The broker's port without and with TLS, as IANA has them.
const PORT: u16 = 1883;
const PORT_TLS: u16 = 8883;

/// Of the MQTT connection: a hung broker is found after one and a half to two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// `/data` is the part of a device that outlives the updates of its firmware.
const STATE_DIR: &str = "/data/venus-mqtt";
const CATALOGUE_DIR: &str = "/data/conf/venus-mqtt.d";

/// The configuration and its warnings, or its mistakes.
pub(super) fn resolve(given: Given) -> Result<(Config, Vec<Remark>), Vec<Remark>> {
    let mut notes = Notes::default();
    let tls = notes.tls(&given);
    let password = notes.password(&given);
    notes.exposed_password(&given, tls.is_some());
    notes.plain_on_tls_port(&given, tls.is_some());
    notes.useless_allow(&given);
    let http = notes.targets(&given.http);
    if !notes.mistakes.is_empty() {
        return Err(notes.mistakes);
    }
    let defaults = Options::default();
    let device_defaults = DeviceOptions::default();
    let config = Config {
        portal_id: value(given.portal_id),
        log_level: value(given.log_level).unwrap_or(LevelFilter::Info),
        dbus: value(given.address).unwrap_or(BusAddress::Auto),
        mqtt: Mqtt {
            host: value(given.host).unwrap_or_else(|| "127.0.0.1".into()),
            port: value(given.port).unwrap_or(if tls.is_some() { PORT_TLS } else { PORT }),
            client_id: value(given.client_id),
            user: value(given.user),
            password,
            prefix: value(given.prefix).unwrap_or_default(),
            keep_alive: value(given.keep_alive).unwrap_or(KEEP_ALIVE),
            tls,
        },
        bridge: Options {
            enabled: value(given.enabled).unwrap_or(defaults.enabled),
            retain: value(given.retain).unwrap_or(defaults.retain),
            keepalive_interval: value(given.keepalive_interval).unwrap_or(defaults.keepalive_interval),
            always_on: value(given.always_on).unwrap_or(defaults.always_on),
            access: value(given.access).unwrap_or(defaults.access),
            allow: value(given.allow).unwrap_or(defaults.allow),
            deny: value(given.deny).unwrap_or(defaults.deny),
        },
        devices: Devices {
            options: DeviceOptions {
                enabled: value(given.devices_enabled).unwrap_or(device_defaults.enabled),
                strict_client_id: value(given.strict_client_id).unwrap_or(device_defaults.strict_client_id),
                proxy: value(given.proxy).unwrap_or(device_defaults.proxy),
                stale_after: value(given.stale_after).unwrap_or(device_defaults.stale_after),
                stale: value(given.stale).unwrap_or(device_defaults.stale),
                restore_values: value(given.restore_values).unwrap_or(device_defaults.restore_values),
                device_instance_topic: value(given.device_instance_topic).unwrap_or(device_defaults.device_instance_topic),
                keepalive: value(given.keepalive).unwrap_or(device_defaults.keepalive),
                max_devices: value(given.max_devices).unwrap_or(device_defaults.max_devices),
                max_services: value(given.max_services).unwrap_or(device_defaults.max_services),
                max_services_total: value(given.max_services_total).unwrap_or(device_defaults.max_services_total),
            },
            state_dir: value(given.state_dir).unwrap_or_else(|| STATE_DIR.into()),
            catalogue_dir: value(given.catalogue_dir).unwrap_or_else(|| CATALOGUE_DIR.into()),
        },
        http,
    };
    Ok((config, notes.warnings))
}

fn value<T>(given: Option<At<T>>) -> Option<T> {
    given.map(|at| at.value)
}

#[derive(Default)]
struct Notes {
    mistakes: Vec<Remark>,
    warnings: Vec<Remark>,
}

impl Notes {
    /// A file of certificates or a key switches TLS on; `tls = false` beside one that is not from a flag is a contradiction.
    fn tls(&mut self, given: &Given) -> Option<Tls> {
        let files = [
            ("ca_file", "the CA file", &given.ca_file),
            ("cert_file", "the client certificate", &given.cert_file),
            ("key_file", "the client certificate's key", &given.key_file),
        ];
        let switch = given.tls.as_ref();
        for (key, what, file) in files {
            let Some(At { value: file, place }) = file else { continue };
            if let Some(At { value: false, place: off }) = switch
                && !matches!(place, Place::Flag(_))
            {
                self.mistake(off, format!("`tls = false` contradicts `{key}`: remove one of them"));
            } else {
                self.unreadable(what, file, place);
            }
        }
        let client = match (&given.cert_file, &given.key_file) {
            (Some(cert), Some(key)) => {
                self.readable_by_all(&key.value, &key.place);
                Some(ClientCertificate { cert_file: cert.value.clone(), key_file: key.value.clone() })
            }
            (Some(cert), None) => {
                self.mistake(&cert.place, "`cert_file` needs `key_file`, the private key of the certificate".into());
                None
            }
            (None, Some(key)) => {
                self.mistake(&key.place, "`key_file` needs `cert_file`, the certificate the key is for".into());
                None
            }
            (None, None) => None,
        };
        let on = given.ca_file.is_some() || client.is_some() || switch.is_some_and(|at| at.value);
        on.then(|| Tls { ca_file: given.ca_file.clone().map(|at| at.value), client })
    }

    fn password(&mut self, given: &Given) -> Option<Secret> {
        let At { value: file, place } = given.password_file.as_ref()?;
        if given.user.is_none() {
            self.mistake(place, "`password_file` needs `user`: MQTT has no password without a user name".into());
        }
        self.secret("password", file, place)
    }

    /// The first line of `file`, without its end.
    fn secret(&mut self, what: &str, file: &Path, place: &Place) -> Option<Secret> {
        match secret(what, file, place) {
            Ok(secret) => {
                self.readable_by_all(file, place);
                Some(secret)
            }
            Err(text) => {
                self.mistake(place, text);
                None
            }
        }
    }

    fn unreadable(&mut self, what: &str, file: &Path, place: &Place) {
        if let Err(error) = files::open(file) {
            self.mistake(place, format!("cannot read {what} {}: {}; correct the path", file.display(), why(&error)));
        }
    }

    fn readable_by_all(&mut self, file: &Path, place: &Place) {
        let open = fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o004 != 0);
        if open {
            let name = file.display();
            self.warning(place, format!("everyone on this machine can read {name}: chmod 600 {name}"));
        }
    }

    fn exposed_password(&mut self, given: &Given, tls: bool) {
        let (Some(password), Some(host)) = (&given.password_file, &given.host) else {
            return;
        };
        if !tls && !is_loopback(&host.value) {
            let text = format!("the password crosses the network to {} readable by anyone: use `tls` or `ca_file`", host.value);
            self.warning(&password.place, text);
        }
    }

    fn plain_on_tls_port(&mut self, given: &Given, tls: bool) {
        match &given.port {
            Some(At { value: PORT_TLS, place }) if !tls => {
                self.warning(place, "port 8883 usually speaks TLS, which is off: `tls = true` switches it on".into());
            }
            Some(At { value: PORT, place }) if tls => {
                self.warning(place, "port 1883 usually does not speak TLS, which is on: brokers have it on 8883".into());
            }
            _ => {}
        }
    }

    fn useless_allow(&mut self, given: &Given) {
        let Some(allow) = &given.allow else { return };
        if let Some(At { value: Access::ReadOnly, .. }) = given.access
            && !allow.value.is_empty()
        {
            self.warning(&allow.place, "`allow` has no effect, as `access` is \"read-only\"".into());
        }
        let Some(deny) = &given.deny else { return };
        for allowed in &allow.value {
            if let Some(denied) = deny.value.iter().find(|denied| covers(denied, allowed)) {
                let text = format!("\"{allowed}\" has no effect, as `deny` has \"{denied}\", and deny wins");
                self.warning(&allow.place, text);
            }
        }
    }

    fn mistake(&mut self, place: &Place, text: String) {
        // `tls = false` beside two files is still one mistake to correct
        let remark = Remark { place: place.clone(), text };
        if !self.mistakes.contains(&remark) {
            self.mistakes.push(remark);
        }
    }

    fn warning(&mut self, place: &Place, text: String) {
        self.warnings.push(Remark { place: place.clone(), text });
    }
}

fn secret(what: &str, file: &Path, place: &Place) -> Result<Secret, String> {
    let name = file.display();
    let bytes = read_bounded(file, SECRET_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename if is_one_word(file, place) => {
            format!("there is no such {what} file: write the {what} into a file of its own, and the path of that file here")
        }
        _ => format!("cannot read the {what} file {name}: {}; correct the path, or make it readable", why(&error)),
    })?;
    let text = String::from_utf8(bytes).map_err(|_| format!("the {what} file {name} is not UTF-8 text"))?;
    match text.lines().next() {
        Some(line) if line.contains('\0') => Err(format!("the {what} in {name} contains a NUL")),
        Some(line) if !line.is_empty() => Ok(Secret { text: line.into(), file: file.into() }),
        _ => Err(format!("the {what} file {name} has no {what}: its first line is empty")),
    }
}

/// Whether what a configuration names is no more than a word beside it: it may be the secret itself.
fn is_one_word(file: &Path, place: &Place) -> bool {
    let Place::Line(configuration, _) = place else { return false };
    let word = configuration.parent().and_then(|folder| file.strip_prefix(folder).ok()).and_then(Path::to_str);
    word.is_some_and(|word| !word.contains(['/', '.']))
}

/// Whether everything `narrow` takes is taken by `wide`.
fn covers(wide: &Filter, narrow: &Filter) -> bool {
    let mut narrow = narrow.as_str().split('/');
    for level in wide.as_str().split('/') {
        if level == "#" {
            return true;
        }
        match narrow.next() {
            Some(part) if part == level || (level == "+" && part != "#") => {}
            _ => return false,
        }
    }
    narrow.next().is_none()
}

//! D-Bus addresses, as the specification has them ("Server Addresses"): a list separated by `;` that is tried in order, keys and values of
//! each separated by `,`, bytes of a value escaped as `%` and two hexadecimal digits.
//!
//! Promises: what is malformed is refused with the reason; a transport that cannot be used here is part of the list with its reason, so
//! that another one may be used. Called by `config`, and by `daemon` for what the environment says; `bus` connects.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::text::escape;

/// Most addresses in a list: each may be waited for.
const LIST_MAX: usize = 8;
/// Digits of a GUID.
const GUID: usize = 32;
/// Where the specification puts the system bus.
const SYSTEM: &str = "/var/run/dbus/system_bus_socket";

/// A list of addresses, at least one of which can be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Addresses {
    list: Vec<Address>,
}

/// One server of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// As it was written.
    text: String,
    pub transport: Transport,
    /// What the server must say of itself.
    pub guid: Option<String>,
}

/// How to reach it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transport {
    /// A unix socket, by its path.
    Path(PathBuf),
    /// A unix socket in the abstract namespace.
    Abstract(OsString),
    Tcp {
        host: String,
        port: u16,
        family: Option<Family>,
        /// A file with what the server is sent first (`nonce-tcp:`).
        nonce_file: Option<Vec<u8>>,
    },
    /// Why it cannot be used here.
    Unusable(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Addresses {
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries = || text.split(';').filter(|entry| !entry.is_empty());
        if entries().count() > LIST_MAX {
            return Err(format!("more than {LIST_MAX} addresses in a list"));
        }
        let list = entries().map(Address::parse).collect::<Result<Vec<_>, _>>()?;
        if list.is_empty() {
            return Err("an empty address".into());
        }
        let reason = |address: &Address| match address.transport {
            Transport::Unusable(why) => Some(format!("\"{}\": {why}", escape(&address.text))),
            _ => None,
        };
        match list.iter().map(reason).collect::<Option<Vec<_>>>() {
            Some(reasons) => Err(reasons.join("; ")),
            None => Ok(Self { list }),
        }
    }

    /// That of the system bus.
    pub fn system() -> Result<Self, String> {
        match variable("DBUS_SYSTEM_BUS_ADDRESS") {
            Some(text) => Self::of_environment("DBUS_SYSTEM_BUS_ADDRESS", &text),
            None => Ok(Self::of_path(SYSTEM.into())),
        }
    }

    /// That of the session bus.
    pub fn session() -> Result<Self, String> {
        match variable("DBUS_SESSION_BUS_ADDRESS") {
            Some(text) => Self::of_environment("DBUS_SESSION_BUS_ADDRESS", &text),
            None => {
                let dir = runtime_dir().unwrap_or_else(|| format!("/run/user/{}", nix::unistd::geteuid()).into());
                Ok(Self::of_path(dir.join("bus")))
            }
        }
    }

    fn of_environment(name: &str, value: &OsStr) -> Result<Self, String> {
        let text = value.to_str().ok_or_else(|| format!("{name} is not UTF-8"))?;
        Self::parse(text).map_err(|why| format!("{name} is no D-Bus address: {why}"))
    }

    fn of_path(path: PathBuf) -> Self {
        let text = format!("unix:path={}", path.display());
        Self { list: vec![Address { text, transport: Transport::Path(path), guid: None }] }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Address> {
        self.list.iter()
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, address) in self.list.iter().enumerate() {
            write!(f, "{}{address}", if index == 0 { "" } else { ";" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Address {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("\"{}\": {why}", escape(text));
        let (transport, rest) = text.split_once(':').ok_or_else(|| wrong("there is no transport, such as `unix:` or `tcp:`"))?;
        let mut values: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        for pair in rest.split(',').filter(|_| !rest.is_empty()) {
            let (key, value) = pair.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| wrong("not `key=value`"))?;
            let value = unescape(value).ok_or_else(|| wrong("`%` stands before two hexadecimal digits (`%25` for itself)"))?;
            if values.insert(key, value).is_some() {
                return Err(wrong(&format!("`{}` is there twice", escape(key))));
            }
        }
        let guid = values.remove("guid").map(|guid| String::from_utf8_lossy(&guid).to_ascii_lowercase());
        if guid.as_ref().is_some_and(|guid| guid.len() != GUID || !guid.bytes().all(|digit| digit.is_ascii_hexdigit())) {
            return Err(wrong("`guid` has 32 hexadecimal digits"));
        }
        let transport = match transport {
            "unix" => unix(values),
            "tcp" | "nonce-tcp" => tcp(values, transport == "nonce-tcp"),
            "unixexec" => Ok(Transport::Unusable("programs are not started for a connection")),
            "autolaunch" | "launchd" | "systemd" => {
                Ok(Transport::Unusable("not supported here: write the bus's own address, `unix:` or `tcp:`"))
            }
            "" => Err("there is no transport, such as `unix:` or `tcp:`"),
            _ => Ok(Transport::Unusable("an unknown transport: `unix:` and `tcp:` can be used")),
        };
        Ok(Self { text: text.into(), transport: transport.map_err(wrong)?, guid })
    }
}

fn unix(mut values: BTreeMap<&str, Vec<u8>>) -> Result<Transport, &'static str> {
    const LISTEN: Transport = Transport::Unusable("`dir` and `tmpdir` are for servers, which listen there: write the socket's `path`");
    let kinds = ["path", "abstract", "runtime", "dir", "tmpdir"];
    let mut given = kinds.into_iter().filter_map(|kind| Some((kind, values.remove(kind)?)));
    let (Some((kind, value)), None) = (given.next(), given.next()) else {
        return Err("`unix:` needs one of `path`, `abstract` and `runtime`");
    };
    if value.is_empty() || value.contains(&0) {
        return Err("a socket's name cannot be empty, nor have a NUL in it");
    }
    match kind {
        "path" => Ok(Transport::Path(OsString::from_vec(value).into())),
        "abstract" => Ok(Transport::Abstract(OsString::from_vec(value))),
        "runtime" if value != b"yes" => Err("`runtime` must be `yes`"),
        "runtime" => Ok(runtime_dir().map_or(Transport::Unusable("XDG_RUNTIME_DIR is not set"), |dir| Transport::Path(dir.join("bus")))),
        _ => Ok(LISTEN),
    }
}

fn tcp(mut values: BTreeMap<&str, Vec<u8>>, needs_nonce: bool) -> Result<Transport, &'static str> {
    let mut text = |key| values.remove(key).map(|value| String::from_utf8_lossy(&value).into_owned());
    let host = text("host").filter(|host| !host.is_empty()).ok_or("`tcp:` needs a `host`")?;
    let port = text("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0).ok_or("`tcp:` needs a `port`, 1 to 65535")?;
    let family = match text("family").as_deref() {
        None => None,
        Some("ipv4") => Some(Family::V4),
        Some("ipv6") => Some(Family::V6),
        Some(_) => return Err("`family` must be `ipv4` or `ipv6`"),
    };
    let nonce_file = values.remove("noncefile");
    if needs_nonce && nonce_file.is_none() {
        return Err("`nonce-tcp:` needs a `noncefile`");
    }
    Ok(Transport::Tcp { host, port, family, nonce_file })
}

/// Bytes that ought to be escaped and are not are taken as they are.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            out.push(u8::try_from(digit()? << 4 | digit()?).ok()?);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

fn runtime_dir() -> Option<PathBuf> {
    variable("XDG_RUNTIME_DIR").map(PathBuf::from)
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.as_bytes().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Address {
        let addresses = Addresses::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!((addresses.list.len(), addresses.to_string().as_str()), (1, text));
        addresses.list.into_iter().next().unwrap()
    }

    #[test]
    fn addresses() {
        let path = |path: &str| Transport::Path(path.into());
        assert_eq!(one("unix:path=/run/dbus/system_bus_socket").transport, path("/run/dbus/system_bus_socket"));
        assert_eq!(one("unix:path=/a%20b%2Cc%3b%25").transport, path("/a b,c;%"));
        assert_eq!(one("unix:path=/tmp/a%ff").transport, Transport::Path(OsString::from_vec(b"/tmp/a\xff".into()).into()));
        // what ought to be escaped, and is understood all the same
        assert_eq!(one("unix:path=/my bus=1").transport, path("/my bus=1"));
        assert_eq!(one("unix:abstract=/tmp/dbus-x%41,later=1").transport, Transport::Abstract("/tmp/dbus-xA".into()));
        let guid = "0123456789ABCDEF0123456789abcdef";
        assert_eq!(one(&format!("unix:guid={guid},path=/x")).guid, Some(guid.to_lowercase()));
        let tcp = |family, nonce_file: Option<&str>| {
            let nonce_file = nonce_file.map(|file| file.as_bytes().to_vec());
            Transport::Tcp { host: "::1".into(), port: 78, family, nonce_file }
        };
        assert_eq!(one("tcp:host=%3a%3a1,port=78").transport, tcp(None, None));
        assert_eq!(one("tcp:host=::1,port=78,family=ipv6,bind=*").transport, tcp(Some(Family::V6), None));
        assert_eq!(one("nonce-tcp:host=::1,port=78,family=ipv4,noncefile=/a%20b").transport, tcp(Some(Family::V4), Some("/a b")));
    }

    #[test]
    fn lists() {
        let text = "autolaunch:scope=x;unixexec:path=/bin/x;new:;unix:tmpdir=/tmp;unix:path=/a;tcp:host=h,port=1";
        let addresses = Addresses::parse(text).unwrap();
        assert_eq!(addresses.to_string(), text);
        let usable = addresses.iter().filter(|address| !matches!(address.transport, Transport::Unusable(_)));
        assert_eq!(usable.map(ToString::to_string).collect::<Vec<_>>(), ["unix:path=/a", "tcp:host=h,port=1"]);
        assert_eq!(Addresses::parse(";unix:path=/a;").unwrap().to_string(), "unix:path=/a");
    }

    #[test]
    fn refused() {
        for (text, why) in [
            ("", "an empty address"),
            (";;", "an empty address"),
            ("unix", "\"unix\": there is no transport, such as `unix:` or `tcp:`"),
            (":path=/a", "\":path=/a\": there is no transport"),
            ("/run/dbus/system_bus_socket", "\"/run/dbus/system_bus_socket\": there is no transport"),
            ("unix:", "\"unix:\": `unix:` needs one of `path`, `abstract` and `runtime`"),
            ("unix:path=/a,abstract=b", "\"unix:path=/a,abstract=b\": `unix:` needs one of"),
            ("unix:path=", "\"unix:path=\": a socket's name cannot be empty"),
            ("unix:path=/a%00", "\"unix:path=/a%00\": a socket's name cannot be empty, nor have a NUL"),
            ("unix:/a", "\"unix:/a\": not `key=value`"),
            ("unix:path=/a,", "\"unix:path=/a,\": not `key=value`"),
            ("unix:path=/a,path=/b", "\"unix:path=/a,path=/b\": `path` is there twice"),
            ("unix:path=/a%2", "\"unix:path=/a%2\": `%` stands before two hexadecimal digits"),
            ("unix:path=/a%zz", "\"unix:path=/a%zz\": `%` stands before"),
            ("unix:path=/a,guid=1", "\"unix:path=/a,guid=1\": `guid` has 32"),
            ("unix:runtime=no", "\"unix:runtime=no\": `runtime` must be `yes`"),
            ("tcp:port=1", "\"tcp:port=1\": `tcp:` needs a `host`"),
            ("tcp:host=h", "\"tcp:host=h\": `tcp:` needs a `port`"),
            ("tcp:host=h,port=70000", "\"tcp:host=h,port=70000\": `tcp:` needs a `port`"),
            ("tcp:host=h,port=1,family=ipv5", "\"tcp:host=h,port=1,family=ipv5\": `family` must be"),
            ("nonce-tcp:host=h,port=1", "\"nonce-tcp:host=h,port=1\": `nonce-tcp:` needs a `noncefile`"),
            ("unix:path=/a;bad", "\"bad\": there is no transport"),
            (
                "autolaunch:;unix:dir=/tmp",
                "\"autolaunch:\": not supported here: write the bus's own address, `unix:` or `tcp:`; \"unix:dir=/tmp\": `dir`",
            ),
        ] {
            let error = Addresses::parse(text).unwrap_err();
            assert!(error.starts_with(why), "{text}: {error}");
        }
        assert!(Addresses::parse(&"unix:path=/a;".repeat(LIST_MAX)).is_ok());
        assert_eq!(Addresses::parse(&"unix:path=/a;".repeat(LIST_MAX + 1)).unwrap_err(), "more than 8 addresses in a list");
    }
}

//! Every refusal with its exact words, the order of places, and that what is shown can be fed back.

use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::*;
use crate::bridge::filter::Filter;
use crate::bridge::options::{Access, AlwaysOn, Enabled};
use crate::device::options::{Proxy, Stale, StaleAfter};
use crate::scratch::Scratch;

mod http;

fn source(file: PathBuf) -> Source {
    Source::new(Some(file), Given::default())
}

/// Loads `text`, with `{dir}` standing for the scratch folder.
fn load(dir: &Scratch, text: &str) -> Result<Loaded, ConfigError> {
    let text = text.replace("{dir}", &dir.path().display().to_string());
    source(dir.file("c.toml", text)).load()
}

/// What is wrong with `text`, with the folder's name taken out again.
fn mistakes(text: &str) -> String {
    let dir = Scratch::new();
    dir.file("password", "hunter2\n");
    dir.file("empty", "\nhunter2\n");
    dir.file("nul", "hun\0ter2\n");
    dir.file("latin1", b"h\xfcnter2\n");
    dir.file("large", "x".repeat(5000));
    dir.file("cert.pem", "");
    let error = load(&dir, text).unwrap_err().to_string();
    error.replace(&format!("{}/", dir.path().display()), "")
}

fn warnings(text: &str) -> Vec<String> {
    let dir = Scratch::new();
    dir.file("password", "hunter2\n");
    dir.file_with_mode("public", "hunter2\n", 0o644);
    dir.file("cert.pem", "");
    let loaded = load(&dir, text).unwrap();
    let folder = format!("{}/", dir.path().display());
    loaded.warnings.iter().map(|w| w.to_string().replace(&folder, "")).collect()
}

#[test]
fn defaults() {
    let dir = Scratch::new();
    let Loaded { config, warnings, flags, .. } = load(&dir, "").unwrap();
    assert_eq!(warnings, []);
    assert_eq!(flags, [""; 0]);
    assert_eq!(
        config,
        Config {
            portal_id: None,
            log_level: LevelFilter::Info,
            dbus: BusAddress::Auto,
            mqtt: Mqtt {
                host: "127.0.0.1".into(),
                port: 1883,
                client_id: None,
                user: None,
                password: None,
                prefix: String::new(),
                keep_alive: Duration::from_secs(20),
                tls: None,
            },
            bridge: Options::default(),
            devices: Devices {
                options: DeviceOptions {
                    enabled: true,
                    strict_client_id: false,
                    proxy: Proxy::Any,
                    stale_after: StaleAfter::default(),
                    stale: Stale::Disconnect,
                    restore_values: None,
                    device_instance_topic: true,
                    keepalive: false,
                    max_devices: 64,
                    max_services: 16,
                    max_services_total: 160,
                },
                state_dir: "/data/venus-mqtt".into(),
                catalogue_dir: "/data/conf/venus-mqtt.d".into(),
            },
            http: Vec::new(),
        }
    );
}

const FULL: &str = r##"
portal_id = "c0619ab1c2d3"
log_level = "debug"
[dbus]
address = "unix:path=/run/dbus/system_bus_socket"
[mqtt]
host = "broker.example"
port = 8884
client_id = "boat \"1\""
user = "ve\\nus"
password_file = "password"
keep_alive = 5
prefix = "fleet/boat1"
ca_file = "{dir}/ca.pem"
cert_file = "cert.pem"
key_file = "key.pem"
[bridge]
enabled = true
retain = false
keepalive_interval = 1.5
always_on = ["battery/+/Soc", "system/#"]
access = "read-only"
deny = ["settings/#"]
[devices]
enabled = false
strict_client_id = true
proxy = "own"
stale_after = { default = 300, grid = 10, tank = 0 }
stale = "leave"
restore_values = 60
device_instance_topic = false
keepalive = true
max_devices = 1000
max_services = 64
max_services_total = 1000
state_dir = "{dir}/state"
catalogue_dir = "types"
"##;

fn full() -> (Scratch, Loaded) {
    let dir = Scratch::new();
    dir.file("password", "hunter2\r\nsecond line\n");
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        dir.file(name, "");
    }
    let loaded = load(&dir, FULL).unwrap();
    (dir, loaded)
}

#[test]
fn every_option() {
    let (dir, Loaded { config, warnings, .. }) = full();
    let filters = |texts: &[&str]| texts.iter().map(|text| Filter::parse(text).unwrap()).collect::<Vec<_>>();
    assert_eq!(warnings, []);
    assert_eq!(config.portal_id.as_ref().unwrap().as_str(), "c0619ab1c2d3");
    assert_eq!(config.log_level, LevelFilter::Debug);
    assert_eq!(config.dbus, bus_address("unix:path=/run/dbus/system_bus_socket").unwrap());
    assert_eq!(config.mqtt.host, "broker.example");
    assert_eq!(config.mqtt.port, 8884);
    assert_eq!(config.mqtt.client_id.as_deref(), Some("boat \"1\""));
    assert_eq!(config.mqtt.user.as_deref(), Some("ve\\nus"));
    assert_eq!(config.mqtt.password.as_ref().unwrap().reveal(), "hunter2");
    assert_eq!(config.mqtt.keep_alive, Duration::from_secs(5));
    assert_eq!(config.mqtt.prefix, "fleet/boat1/");
    let tls = config.mqtt.tls.unwrap();
    assert_eq!(tls.ca_file, Some(dir.path().join("ca.pem")));
    assert_eq!(tls.client.unwrap().key_file, dir.path().join("key.pem"));
    assert_eq!(
        config.bridge,
        Options {
            enabled: Enabled::Yes,
            retain: false,
            keepalive_interval: Duration::from_millis(1500),
            always_on: AlwaysOn::Only(filters(&["battery/+/Soc", "system/#"])),
            access: Access::ReadOnly,
            allow: Vec::new(),
            deny: filters(&["settings/#"]),
        }
    );
    assert_eq!(
        config.devices,
        Devices {
            options: DeviceOptions {
                enabled: false,
                strict_client_id: true,
                proxy: Proxy::Own,
                stale_after: StaleAfter {
                    default: Some(Duration::from_secs(300)),
                    types: [("grid".into(), Some(Duration::from_secs(10))), ("tank".into(), None)].into(),
                },
                stale: Stale::Leave,
                restore_values: Some(Duration::from_secs(60)),
                device_instance_topic: false,
                keepalive: true,
                max_devices: 1000,
                max_services: 64,
                max_services_total: 1000,
            },
            state_dir: dir.path().join("state"),
            catalogue_dir: dir.path().join("types"),
        }
    );
}

#[test]
fn no_secret_is_shown() {
    let (_dir, loaded) = full();
    let password = loaded.config.mqtt.password.clone().unwrap();
    assert_eq!(format!("{password} {password:?}"), "*** ***");
    for shown in [format!("{loaded:?}"), format!("{loaded:#?}"), loaded.show()] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn what_is_shown_can_be_fed_back() {
    let (dir, first) = full();
    let second = load(&dir, &first.show()).unwrap();
    assert_eq!(second.config, first.config);
    for text in [
        "",
        "[mqtt]\ntls = true",
        "[bridge]\nalways_on = true\nenabled = false\nkeepalive_interval = 7",
        "[devices]\nstale_after = 2",
        "[devices.stale_after]\ngrid = 10",
    ] {
        let first = load(&dir, text).unwrap();
        assert_eq!(load(&dir, &first.show()).unwrap().config, first.config, "{text}");
    }
}

#[test]
fn refused_in_the_file() {
    let long = "c.toml:2: `user`: a user name has at most 255 bytes, this has 256";
    let many = format!("[bridge]\ndeny = [{}]", "\"#\",".repeat(257));
    let table: &[(&str, &str)] = &[
        // not TOML
        ("a = ", "c.toml:1: not TOML: string values must be quoted, expected literal string"),
        ("[mqtt]\nhost = \"a\"\nhost = \"b\"", "c.toml:3: not TOML: duplicate key"),
        // unknown
        ("[mqtt]\nhots = \"x\"", "c.toml:2: unknown key `hots` in [mqtt]; did you mean `host`?"),
        (
            "[mqtt]\nfrobnicate = 1",
            "c.toml:2: unknown key `frobnicate` in [mqtt]; known: host, port, client_id, user, password_file, keep_alive, prefix, tls, ca_file, cert_file, key_file",
        ),
        ("portalid = \"x\"", "c.toml:1: unknown key `portalid` at the top of the file, before any section; did you mean `portal_id`?"),
        ("host = \"x\"", "c.toml:1: `host` belongs in [mqtt]"),
        ("[bridge]\nport = 1", "c.toml:2: `port` belongs in [mqtt]"),
        ("[mqtt]\nlog_level = \"info\"", "c.toml:2: `log_level` belongs at the top of the file, before any section"),
        ("[mqqt]\nhost = \"x\"", "c.toml:1: unknown section [mqqt]; did you mean [mqtt]?"),
        ("\n[store]", "c.toml:2: unknown section [store]; there are [dbus], [mqtt], [bridge], [devices] and [[http]]"),
        ("[device]\nproxy = \"own\"", "c.toml:1: unknown section [device]; did you mean [devices]?"),
        ("enabled = true", "c.toml:1: `enabled` belongs in [bridge] or in [devices]"),
        ("[devices]\nretain = true", "c.toml:2: `retain` belongs in [bridge]"),
        ("[devices]\nstaleafter = 60", "c.toml:2: unknown key `staleafter` in [devices]; did you mean `stale_after`?"),
        ("mqtt = \"x\"", "c.toml:1: `mqtt` is a section: write [mqtt] on a line of its own, and its keys below"),
        (
            "[mqtt]\npassword = \"hunter2\"",
            "c.toml:2: a password does not belong here: write it into a file of its own and name that as `password_file`",
        ),
        ("\"a\\u001bb\" = 1", "c.toml:1: unknown key `a\\u{1b}b` at the top of the file, before any section; known: portal_id, log_level"),
        // portal ID, level, bus
        ("portal_id = 5", "c.toml:1: `portal_id`: must be the portal ID as text, not 5"),
        (
            "portal_id = \"a/b\"",
            "c.toml:1: `portal_id`: a portal ID is 1 to 64 letters and digits (usually 12 hex digits, such as c0619ab1c2d3), not \"a/b\"",
        ),
        ("log_level = \"loud\"", "c.toml:1: `log_level`: must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\", not \"loud\""),
        ("log_level = true", "c.toml:1: `log_level`: must be a level as text, such as \"info\", not true"),
        (
            "[dbus]\naddress = \"unix\"",
            "c.toml:2: `address`: must be \"auto\", \"system\", \"session\" or a D-Bus address such as \"unix:path=/run/dbus/system_bus_socket\" (of several, `;` between them, the first that answers is used); \"unix\": there is no transport, such as `unix:` or `tcp:`",
        ),
        ("[dbus]\naddress = []", "c.toml:2: `address`: must be an address as text, such as \"system\", not a list"),
        // host and port
        ("[mqtt]\nhost = \"\"", "c.toml:2: `host`: must be a host name or an IP address, not \"\""),
        ("[mqtt]\nhost = \"a b\"", "c.toml:2: `host`: must be a host name or an IP address, not \"a b\""),
        (
            "[mqtt]\nhost = \"mqtts://a.example:8883\"",
            "c.toml:2: `host`: write the name alone, without \"mqtts://\"; TLS is switched on by `tls` or `ca_file`",
        ),
        ("[mqtt]\nhost = \"a.example:1884\"", "c.toml:2: `host`: write the name alone (\"a.example\") and the port as `port` (1884)"),
        ("[mqtt]\nport = 0", "c.toml:2: `port`: must be a whole number from 1 to 65535, not 0"),
        ("[mqtt]\nport = 65536", "c.toml:2: `port`: must be a whole number from 1 to 65535, not 65536"),
        ("[mqtt]\nport = -1", "c.toml:2: `port`: must be a whole number from 1 to 65535, not -1"),
        ("[mqtt]\nport = 1883.0", "c.toml:2: `port`: must be a whole number from 1 to 65535, not 1883.0"),
        ("[mqtt]\nport = \"1883\"", "c.toml:2: `port`: must be a whole number from 1 to 65535, not \"1883\""),
        (
            "[mqtt]\nport = 99999999999999999999999999",
            "c.toml:2: `port`: must be a whole number from 1 to 65535, not 99999999999999999999999999",
        ),
        // client ID, user, prefix, keep-alive
        ("[mqtt]\nclient_id = \"a+b\"", "c.toml:2: `client_id`: must not contain `+`: it becomes part of topics and of access rules"),
        ("[mqtt]\nclient_id = \"a#\"", "c.toml:2: `client_id`: must not contain `#`: it becomes part of topics and of access rules"),
        ("[mqtt]\nclient_id = \"a/b\"", "c.toml:2: `client_id`: must not contain `/`: it becomes part of topics and of access rules"),
        ("[mqtt]\nclient_id = \"\"", "c.toml:2: `client_id`: a client ID cannot be empty: write one, or leave the key out"),
        ("[mqtt]\nuser = \"\"", "c.toml:2: `user`: a user name cannot be empty: write one, or leave the key out"),
        ("[mqtt]\nuser = \"a\\u0000b\"", "c.toml:2: `user`: a user name contains the control character \\u{0}: \"a\\u{0}b\""),
        (&format!("[mqtt]\nuser = \"{}\"", "u".repeat(256)), long),
        ("[mqtt]\nprefix = \"a/+\"", "c.toml:2: `prefix`: a prefix contains the wildcard `+`: \"a/+\""),
        ("[mqtt]\nprefix = \"#\"", "c.toml:2: `prefix`: a prefix contains the wildcard `#`: \"#\""),
        ("[mqtt]\nprefix = \"$SYS\"", "c.toml:2: `prefix`: a prefix begins with `$`: such topics belong to the broker: \"$SYS\""),
        (
            "[mqtt]\nprefix = \"W/c0619ab1c2d3\"",
            "c.toml:2: `prefix`: must not begin with W: topics below N, R, W and device have meanings of their own",
        ),
        ("[mqtt]\nprefix = \"a//b\"", "c.toml:2: `prefix`: must not have an empty level: write one slash between the levels"),
        ("[mqtt]\nprefix = \"a\\u0000\"", "c.toml:2: `prefix`: a prefix contains the control character \\u{0}: \"a\\u{0}\""),
        ("[mqtt]\nprefix = \"a\\uFFFE\"", "c.toml:2: `prefix`: a prefix contains \\u{fffe}, a noncharacter of Unicode: \"a\\u{fffe}\""),
        (&format!("[mqtt]\nprefix = \"{}\"", ["a"; 33].join("/")), "c.toml:2: `prefix`: must not have more than 32 levels"),
        (
            "[mqtt]\nclient_id = \"a\\uFDD0\"",
            "c.toml:2: `client_id`: a client ID contains \\u{fdd0}, a noncharacter of Unicode: \"a\\u{fdd0}\"",
        ),
        ("[mqtt]\nkeep_alive = 0", "c.toml:2: `keep_alive`: must be a whole number of seconds from 1 to 65535, not 0"),
        ("[mqtt]\nkeep_alive = 1.5", "c.toml:2: `keep_alive`: must be a whole number of seconds from 1 to 65535, not 1.5"),
        // password
        ("[mqtt]\npassword_file = \"password\"", "c.toml:2: `password_file` needs `user`: MQTT has no password without a user name"),
        (
            "[mqtt]\nuser = \"u\"\npassword_file = \"none\"",
            "c.toml:3: there is no such password file: write the password into a file of its own, and the path of that file here",
        ),
        (
            "[mqtt]\nuser = \"u\"\npassword_file = \".\"",
            "c.toml:3: cannot read the password file .: it is a directory; correct the path, or make it readable",
        ),
        (
            "[mqtt]\nuser = \"u\"\npassword_file = \"large\"",
            "c.toml:3: cannot read the password file large: it is larger than 4096 bytes; correct the path, or make it readable",
        ),
        ("[mqtt]\nuser = \"u\"\npassword_file = \"empty\"", "c.toml:3: the password file empty has no password: its first line is empty"),
        ("[mqtt]\nuser = \"u\"\npassword_file = \"nul\"", "c.toml:3: the password in nul contains a NUL"),
        ("[mqtt]\nuser = \"u\"\npassword_file = \"latin1\"", "c.toml:3: the password file latin1 is not UTF-8 text"),
        ("[mqtt]\nuser = \"u\"\npassword_file = \"\"", "c.toml:3: `password_file`: must be the path of a file"),
        // TLS
        ("[mqtt]\ntls = 1", "c.toml:2: `tls`: must be true or false, not 1"),
        ("[mqtt]\ntls = {}", "c.toml:2: `tls`: must be true or false, not a section"),
        ("[mqtt]\nca_file = \"none.pem\"", "c.toml:2: cannot read the CA file none.pem: no such file; correct the path"),
        (
            "[mqtt]\ncert_file = \"none.pem\"\nkey_file = \"cert.pem\"",
            "c.toml:2: cannot read the client certificate none.pem: no such file; correct the path",
        ),
        (
            "[mqtt]\ncert_file = \"cert.pem\"\nkey_file = \"none.pem\"",
            "c.toml:3: cannot read the client certificate's key none.pem: no such file; correct the path",
        ),
        ("[mqtt]\ncert_file = \"cert.pem\"", "c.toml:2: `cert_file` needs `key_file`, the private key of the certificate"),
        ("[mqtt]\nkey_file = \"cert.pem\"", "c.toml:2: `key_file` needs `cert_file`, the certificate the key is for"),
        ("[mqtt]\ntls = false\nca_file = \"cert.pem\"", "c.toml:2: `tls = false` contradicts `ca_file`: remove one of them"),
        // bridge
        ("[bridge]\nenabled = \"yes\"", "c.toml:2: `enabled`: must be \"auto\", true or false, not \"yes\""),
        ("[bridge]\nretain = \"true\"", "c.toml:2: `retain`: must be true or false, not \"true\""),
        ("[bridge]\nkeepalive_interval = 0", "c.toml:2: `keepalive_interval`: must be a number of seconds from 0.1 to 86400, not 0"),
        ("[bridge]\nkeepalive_interval = nan", "c.toml:2: `keepalive_interval`: must be a number of seconds from 0.1 to 86400, not nan"),
        ("[bridge]\nkeepalive_interval = 1e9", "c.toml:2: `keepalive_interval`: must be a number of seconds from 0.1 to 86400, not 1e9"),
        (
            "[bridge]\nkeepalive_interval = 2025-01-01",
            "c.toml:2: `keepalive_interval`: must be a number of seconds from 0.1 to 86400, not a date",
        ),
        (
            "[bridge]\nalways_on = \"all\"",
            "c.toml:2: `always_on`: must be true, false or a list of filters, such as [\"battery/+/Soc\", \"vebus/#\"], not \"all\"",
        ),
        ("[bridge]\naccess = \"none\"", "c.toml:2: `access`: must be \"full\" or \"read-only\", not \"none\""),
        ("[bridge]\nallow = \"#\"", "c.toml:2: `allow`: must be a list of filters, such as [\"battery/+/Soc\", \"vebus/#\"], not \"#\""),
        ("[bridge]\ndeny = [\n  \"vebus/#\",\n  5,\n]", "c.toml:4: `deny`: must be a list of filters as text, not 5"),
        (
            "[bridge]\ndeny = [\n  \"vebus/#\",\n  \"ve#\",\n]",
            "c.toml:4: `deny`: \"ve#\": `+` and `#` stand for whole levels: they cannot be part of a word",
        ),
        // devices
        ("[devices]\nenabled = \"auto\"", "c.toml:2: `enabled`: must be true or false, not \"auto\""),
        ("[devices]\nproxy = \"none\"", "c.toml:2: `proxy`: must be \"any\" or \"own\", not \"none\""),
        (
            "[devices]\nstale_after = 1",
            "c.toml:2: `stale_after`: must be 0 (off) or a whole number of seconds from 2 to 2592000, or a table of them by type, such as { default = 60, grid = 10 }, not 1",
        ),
        (
            "[devices]\nstale_after = 2592001",
            "c.toml:2: `stale_after`: must be 0 (off) or a whole number of seconds from 2 to 2592000, or a table of them by type, such as { default = 60, grid = 10 }, not 2592001",
        ),
        (
            "[devices]\nstale_after = false",
            "c.toml:2: `stale_after`: must be 0 (off) or a whole number of seconds from 2 to 2592000, or a table of them by type, such as { default = 60, grid = 10 }, not false",
        ),
        (
            "[devices.stale_after]\ngrid = 10\ntank = 1",
            "c.toml:3: `stale_after`: `tank` must be 0 (off) or a whole number of seconds from 2 to 2592000, not 1",
        ),
        (
            "[devices]\nstale_after = { \"grid meter\" = 10 }",
            "c.toml:2: `stale_after`: `grid meter` is no type of services: write one such as `grid`, or `default`",
        ),
        ("[devices]\nstale = \"hold\"", "c.toml:2: `stale`: must be \"disconnect\" or \"leave\", not \"hold\""),
        (
            "[devices]\nrestore_values = 86401",
            "c.toml:2: `restore_values`: must be 0 (off) or a whole number of seconds from 1 to 86400, not 86401",
        ),
        ("[devices]\nmax_services_total = 0", "c.toml:2: `max_services_total`: must be a whole number from 1 to 1000, not 0"),
        ("[devices]\nmax_devices = 0", "c.toml:2: `max_devices`: must be a whole number from 1 to 1000, not 0"),
        ("[devices]\nmax_devices = 1001", "c.toml:2: `max_devices`: must be a whole number from 1 to 1000, not 1001"),
        ("[devices]\nmax_services = 65", "c.toml:2: `max_services`: must be a whole number from 1 to 64, not 65"),
        ("[devices]\nmax_services = -1", "c.toml:2: `max_services`: must be a whole number from 1 to 64, not -1"),
        ("[devices]\nstate_dir = \"\"", "c.toml:2: `state_dir`: must be the path of a folder"),
        ("[devices]\ncatalogue_dir = 5", "c.toml:2: `catalogue_dir`: must be a path as text, not 5"),
        (&many, "c.toml:2: `deny`: has 257 filters, the most is 256: use wildcards"),
    ];
    for (text, expected) in table {
        assert_eq!(mistakes(text), *expected, "{text}");
    }
}

#[test]
fn all_mistakes_at_once() {
    assert_eq!(
        mistakes("log_level = 1\n[mqtt]\nport = 0\nhots = \"x\"\n[bridge]\nretain = 3"),
        "c.toml:1: `log_level`: must be a level as text, such as \"info\", not 1\n\
         c.toml:3: `port`: must be a whole number from 1 to 65535, not 0\n\
         c.toml:4: unknown key `hots` in [mqtt]; did you mean `host`?\n\
         c.toml:6: `retain`: must be true or false, not 3"
    );
}

#[test]
fn refused_files() {
    let dir = Scratch::new();
    let refused = |source: &Source| {
        let error = source.load().unwrap_err().to_string();
        error.replace(&format!("{}/", dir.path().display()), "")
    };
    let missing = source(dir.path().join("none.toml"));
    assert_eq!(refused(&missing), "none.toml: cannot read the configuration: no such file; correct the path after --config");
    let folder = source(dir.file("folder/x", "").parent().unwrap().into());
    assert_eq!(refused(&folder), "folder: cannot read the configuration: it is a directory; correct the path after --config");
    let large = source(dir.file("large.toml", "#".repeat((1 << 20) + 1)));
    assert_eq!(
        refused(&large),
        "large.toml: cannot read the configuration: it is larger than 1048576 bytes; correct the path after --config"
    );
    let latin1 = source(dir.file("latin1.toml", b"# a\n# \xfc\n"));
    assert_eq!(refused(&latin1), "latin1.toml:2: not UTF-8; save the file as UTF-8");
    let unreadable =
        Source { file: None, default_files: vec![dir.path().join("none.toml"), dir.path().join("folder")], flags: Given::default() };
    assert_eq!(
        refused(&unreadable),
        "folder: cannot read the configuration: it is a directory; make it readable, or name another with --config"
    );
}

#[test]
fn no_text_breaks_the_reader() {
    let deep = 400_000;
    for text in [
        format!("a = {}", "[".repeat(deep)),
        format!("a = {}", "{a=".repeat(deep / 2)),
        format!("{}a = 1", "a.".repeat(deep / 2)),
        format!("[{}a]", "a.".repeat(deep / 2)),
        format!("[mqtt]\nhost = \"{}\"", "x".repeat(deep)),
        format!("[mqtt]\nport = {}", "9".repeat(deep)),
        "\u{feff}[mqtt".into(),
    ] {
        let mistakes = mistakes(&text);
        assert!(mistakes.len() < 1000, "{}", mistakes.len());
    }
}

proptest::proptest! {
    #[test]
    fn no_line_breaks_the_reader(section in "(mqtt|bridge|dbus|devices|http|[a-z.\"]{0,8})", key in "([a-z_]{1,12}|\\PC{0,12})", value in "\\PC{0,40}") {
        let _ = read::read(Path::new("c.toml"), &format!("[{section}]\n{key} = {value}\n"));
        let _ = read::read(Path::new("c.toml"), &value);
    }
}

#[test]
fn the_usual_places() {
    let dir = Scratch::new();
    let mut source = Source::new(None, Given::default());
    assert_eq!(source.default_files, DEFAULT_PATHS.map(PathBuf::from));
    source.default_files = ["first.toml", "second.toml"].map(|name| dir.path().join(name)).into();
    assert_eq!(source.load().unwrap().file, None);
    let second = dir.file("second.toml", "log_level = \"warn\"");
    let loaded = source.load().unwrap();
    assert_eq!((loaded.file, loaded.config.log_level), (Some(second), LevelFilter::Warn));
    let first = dir.file("first.toml", "log_level = \"error\"");
    let loaded = source.load().unwrap();
    assert_eq!((loaded.file, loaded.config.log_level), (Some(first), LevelFilter::Error));
}

#[test]
fn flags_win() {
    fn flag<T>(value: T, name: &'static str) -> Option<At<T>> {
        Some(At { value, place: Place::Flag(name) })
    }
    let dir = Scratch::new();
    let ca = dir.file("ca.pem", "");
    let file = dir.file("c.toml", "[mqtt]\nhost = \"a\"\nport = 1\ntls = false\nuser = \"u\"");
    let flags = Given { port: flag(2, "--port"), ca_file: flag(ca.clone(), "--ca"), ..Given::default() };
    let loaded = Source::new(Some(file.clone()), flags).load().unwrap();
    assert_eq!(loaded.config.mqtt.host, "a");
    assert_eq!(loaded.config.mqtt.port, 2);
    assert_eq!(loaded.config.mqtt.tls.unwrap().ca_file, Some(ca));
    assert_eq!(loaded.flags, ["--port", "--ca"]);

    let flags = Given { password_file: flag("/nowhere/password".into(), "--password-file"), ..Given::default() };
    assert_eq!(
        Source::new(Some(file), flags).load().unwrap_err().to_string(),
        "--password-file: cannot read the password file /nowhere/password: no such file; correct the path, or make it readable"
    );
}

#[test]
fn normalised() {
    let dir = Scratch::new();
    for (text, expected) in [("", ""), ("boat1", "boat1/"), ("boat1/", "boat1/"), ("/a/b", "/a/b/"), ("/", "")] {
        let loaded = load(&dir, &format!("[mqtt]\nprefix = \"{text}\"")).unwrap();
        assert_eq!(loaded.config.mqtt.prefix, expected, "{text}");
    }
    for (text, expected) in [("[::1]", "::1"), ("fe80::1%eth0", "fe80::1%eth0"), ("a-b.example", "a-b.example")] {
        let loaded = load(&dir, &format!("[mqtt]\nhost = \"{text}\"")).unwrap();
        assert_eq!(loaded.config.mqtt.host, expected);
    }
    assert_eq!(load(&dir, "[mqtt]\ntls = true").unwrap().config.mqtt.port, 8883);
    assert_eq!(load(&dir, "[bridge]\nalways_on = []").unwrap().config.bridge.always_on, AlwaysOn::No);
    assert_eq!(load(&dir, "[devices]\nstale_after = 0").unwrap().config.devices.options.stale_after, StaleAfter::default());
    assert_eq!(load(&dir, "[mqtt]\nport = 0x75b").unwrap().config.mqtt.port, 1883);
}

#[test]
fn warned_about() {
    let table: &[(&str, &[&str])] = &[
        ("[mqtt]\nhost = \"localhost\"\nuser = \"u\"\npassword_file = \"password\"", &[]),
        ("[mqtt]\nhost = \"::1\"\nuser = \"u\"\npassword_file = \"password\"", &[]),
        ("[mqtt]\nhost = \"a.example\"\ntls = true\nuser = \"u\"\npassword_file = \"password\"", &[]),
        (
            "[mqtt]\nhost = \"192.168.1.2\"\nuser = \"u\"\npassword_file = \"password\"",
            &["c.toml:4: the password crosses the network to 192.168.1.2 readable by anyone: use `tls` or `ca_file`"],
        ),
        ("[mqtt]\nuser = \"u\"\npassword_file = \"public\"", &["c.toml:3: everyone on this machine can read public: chmod 600 public"]),
        ("[mqtt]\nport = 8883", &["c.toml:2: port 8883 usually speaks TLS, which is off: `tls = true` switches it on"]),
        ("[mqtt]\nport = 1883\ntls = true", &["c.toml:2: port 1883 usually does not speak TLS, which is on: brokers have it on 8883"]),
        (
            "[bridge]\nallow = [\"vebus/257/Mode\", \"battery/#\"]\ndeny = [\"vebus/+/Mode\", \"battery/1/#\"]",
            &["c.toml:2: \"vebus/257/Mode\" has no effect, as `deny` has \"vebus/+/Mode\", and deny wins"],
        ),
        ("[bridge]\nallow = [\"vebus/#\"]\ndeny = [\"#\"]", &["c.toml:2: \"vebus/#\" has no effect, as `deny` has \"#\", and deny wins"]),
        ("[bridge]\nallow = [\"vebus/#\"]\ndeny = [\"vebus/+\"]", &[]),
        ("[bridge]\naccess = \"read-only\"\nallow = [\"vebus/#\"]", &["c.toml:3: `allow` has no effect, as `access` is \"read-only\""]),
    ];
    for (text, expected) in table {
        assert_eq!(warnings(text), *expected, "{text}");
    }
}

//! The real program as a person or a supervisor meets it: what it prints, and its exit codes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A folder of its own for each test, gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("venus-mqtt-cli-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the program to its end, in a folder and an environment without surprises.
fn run(folder: &Folder, args: &[&str]) -> (i32, String, String) {
    run_in(folder, &[], args)
}

fn run_in(folder: &Folder, environment: &[(&str, &str)], args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = program(folder, args).envs(environment.iter().copied()).output().unwrap();
    let here = format!("{}/", folder.0.display());
    let text = |bytes| String::from_utf8(bytes).unwrap().replace(&here, "");
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn program(folder: &Folder, args: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_venus-mqtt"));
    program.args(args).current_dir(&folder.0).env_remove("DBUS_SESSION_BUS_ADDRESS").env_remove("JOURNAL_STREAM");
    for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
        program.env_remove(name).env_remove(name.to_lowercase());
    }
    program
}

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name);
    path.to_str().unwrap().into()
}

#[test]
fn version() {
    let (code, out, err) = run(&Folder::new(), &["--version"]);
    assert_eq!((code, out, err), (0, format!("venus-mqtt {}\n", env!("CARGO_PKG_VERSION")), String::new()));
}

#[test]
fn help_teaches() {
    let program = [
        "venus-mqtt check",
        "venus-mqtt devices",
        "R/<portal ID>/keepalive",
        "/data/conf/venus-mqtt.toml",
        "/etc/venus-mqtt/config.toml",
        "--password-file",
        "--state-dir",
        "  1   the daemon refused",
        "  64  wrong arguments",
        "  75  the bus is gone",
        "  78  wrong configuration",
        "SIGHUP",
        "SIGUSR1",
    ];
    let devices = ["device/<client ID>/Status", "  provisional  ", "  gone  ", "--json", "venus-mqtt devices forget fe001"];
    let forget = ["<CLIENT ID>", "The daemon must run"];
    for (command, expected) in [(&[][..], &program[..]), (&["devices"], &devices), (&["devices", "forget"], &forget)] {
        for flag in ["--help", "-h"] {
            let (code, out, err) = run(&Folder::new(), &[command, &[flag]].concat());
            assert_eq!((code, err.as_str()), (0, ""));
            for expected in expected {
                assert!(out.contains(expected), "{expected}");
            }
            let longest = out.lines().max_by_key(|line| line.len());
            assert!(longest.is_some_and(|line| line.len() <= 100), "{longest:?}");
        }
    }
}

#[test]
fn wrong_arguments() {
    for args in [
        &["--prt", "1"][..],
        &["serve"],
        &["--port", "0"],
        &["check", "--retain", "maybe"],
        &["--config"],
        &["devices", "forget"],
        &["devices", "--json", "forget", "x"],
    ] {
        let (code, out, err) = run(&Folder::new(), args);
        assert_eq!((code, out.as_str()), (64, ""), "{args:?}");
        assert!(err.starts_with("error: "), "{err}");
    }
}

#[test]
fn check_says_what_is_in_effect() {
    let folder = Folder::new();
    folder.file("password", "hunter2\n");
    folder
        .file("c.toml", "[mqtt]\nhost = \"localhost\"\nuser = \"boat\"\npassword_file = \"password\"\n[bridge]\ndeny = [\"settings/#\"]\n");
    let (code, out, err) = run(&folder, &["check", "--config", "c.toml", "--port", "1884", "--state-dir", "state"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        r##"# from c.toml
# and from the command line: --port, --state-dir

# portal_id is not set: it is found out at start (unique-id file, the bus, MAC address)
log_level = "info"

[dbus]
address = "auto"  # the system bus, as DBUS_SESSION_BUS_ADDRESS is not set

[mqtt]
host = "localhost"
port = 1884
# client_id is not set: it is venus-mqtt-<portal ID>
user = "boat"
password_file = "password"  # the password: ***
keep_alive = 20
prefix = ""
tls = false

[bridge]
enabled = "auto"
retain = true
keepalive_interval = 60
always_on = false
access = "full"
allow = []
deny = ["settings/#"]

[devices]
enabled = true
strict_client_id = false
proxy = "any"
stale_after = 0  # off
stale = "disconnect"
restore_values = 0  # off
device_instance_topic = true
keepalive = false
max_devices = 64
max_services = 16
max_services_total = 160
state_dir = "state"
catalogue_dir = "/data/conf/venus-mqtt.d"

# there is no [[http]]: no measurements are posted
"##
    );
}

#[test]
fn what_check_prints_can_be_fed_back() {
    let folder = Folder::new();
    let (ca, cert, key) = (fixture("ca.pem"), fixture("client.pem"), fixture("client.key"));
    folder
        .file("c.toml", &format!("[mqtt]\nca_file = \"{ca}\"\ncert_file = \"{cert}\"\nkey_file = \"{key}\"\n[bridge]\nalways_on = true\n"));
    let (code, first, _) = run(&folder, &["check", "--config", "c.toml"]);
    assert_eq!(code, 0);
    assert!(first.contains("port = 8883\n") && first.contains("tls = true\n"), "{first}");
    folder.file("c2.toml", &first);
    let (code, second, _) = run(&folder, &["check", "--config", "c2.toml"]);
    assert_eq!(code, 0);
    assert_eq!(second, first.replace("# from c.toml", "# from c2.toml"));
}

#[test]
fn check_says_where_measurements_go() {
    let folder = Folder::new();
    let ca = fixture("ca.pem");
    folder.file("api-key", "hunter2\n");
    let text = format!(
        "[[http]]\nurl = \"https://backend.example/\"\napi_key_file = \"api-key\"\nca_file = \"{ca}\"\n\
         [[http]]\nname = \"lines\"\nurl = \"http://192.168.1.2:8086/write\"\nformat = \"json-lines\"\nfilters = [\"battery/+/Soc\"]\n\
         api_key_file = \"api-key\"\napi_key_header = \"Authorization\"\nupdate_interval = 0.5\n"
    );
    folder.file("c.toml", &text);
    let (code, out, err) = run(&folder, &["check", "--config", "c.toml"]);
    let exposed = "warn: c.toml:10: the API key crosses the network to 192.168.1.2 readable by anyone: use https\n";
    assert_eq!((code, err.as_str()), (0, exposed));
    let (_, targets) = out.split_once("\n[[http]]").unwrap();
    let expected = r##"
name = "1"
url = "https://backend.example/api/victron/measurements"
format = "victron-measurements"
api_key_file = "api-key"  # the API key: ***
api_key_header = "X-API-Key"
timeout = 10
connect_timeout = 5
update_interval = 30
# cerbo_serial is not set: it is the portal ID
ca_file = "{ca}"
gzip = false
catch_up_rate = 5
queue_records = 21000
queue_bytes = 33554432

[[http]]
name = "lines"
url = "http://192.168.1.2:8086/write"
format = "json-lines"
filters = ["battery/+/Soc"]
api_key_file = "api-key"  # the API key: ***
api_key_header = "Authorization"
timeout = 10
connect_timeout = 5
update_interval = 0.5
# cerbo_serial is not set: it is the portal ID
gzip = false
catch_up_rate = 5
queue_records = 21000
queue_bytes = 33554432
"##;
    assert_eq!(targets, expected.replace("{ca}", &ca));

    folder.file("c2.toml", &out);
    let (code, again, _) = run(&folder, &["check", "--config", "c2.toml"]);
    assert_eq!((code, again), (0, out.replace("# from c.toml", "# from c2.toml")));
}

#[test]
fn a_query_is_not_shown_and_not_fed_back_without() {
    let folder = Folder::new();
    let url = "url = \"https://backend.example/write?token=hunter2\"";
    folder.file("c.toml", &format!("[http]\n{url}\nformat = \"json-lines\"\nfilters = [\"#\"]\n"));
    let (code, out, err) = run(&folder, &["check", "--config", "c.toml"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let shown = "\n# url = \"https://backend.example/write\"  # what follows `?` is hidden: write the whole URL\n";
    assert!(out.contains(shown) && !out.contains("hunter2"), "{out}");
    folder.file("c2.toml", &out);
    let (code, _, err) = run(&folder, &["check", "--config", "c2.toml"]);
    assert_eq!((code, err.lines().count()), (78, 1), "{err}");
    assert!(err.contains(": `url` is missing: "), "{err}");
}

#[test]
fn check_warns() {
    let folder = Folder::new();
    let password = folder.file("password", "hunter2\n");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    let args = ["check", "--host", "broker.example", "--user", "u", "--password-file", "password"];
    let (code, out, err) = run(&folder, &args);
    assert_eq!(code, 0);
    assert_eq!(
        err,
        "warn: --password-file: everyone on this machine can read password: chmod 600 password\n\
         warn: --password-file: the password crosses the network to broker.example readable by anyone: use `tls` or `ca_file`\n"
    );
    assert!(!out.contains("hunter2"));
}

/// What is wrong around the configuration costs measurements only.
#[test]
fn check_warns_of_what_is_in_the_way_of_measurements() {
    let folder = Folder::new();
    folder.file("key", "x\n");
    folder.file("c.toml", "[[http]]\nname = \"home\"\nurl = \"https://backend.example\"\napi_key_file = \"key\"\n");
    let none = [("SSL_CERT_FILE", "none.pem"), ("SSL_CERT_DIR", "none")];
    for (environment, expected) in [
        (&none[..], "warn: http home: the system has no trusted certificates ("),
        (
            &[("ALL_PROXY", "socks5://user:s3cret@127.0.0.1:1080")],
            "warn: http home: the environment names a SOCKS proxy, which cannot be used: ",
        ),
        (&[("https_proxy", "htps://user:s3cret@127.0.0.1")], "warn: http home: the environment names a proxy that cannot be used: "),
        (&[("HTTP_PROXY", "http://127.0.0.1:99999")], "warn: http home: the environment names a proxy that cannot be used: "),
    ] {
        let (code, out, err) = run_in(&folder, environment, &["check", "--config", "c.toml"]);
        assert!(code == 0 && out.contains("[[http]]"), "{environment:?}: {code} {err}");
        assert!(err.starts_with(expected) && err.lines().count() == 1 && !err.contains("s3cret"), "{environment:?}: {err}");
    }
    let direct = [("ALL_PROXY", "socks5://127.0.0.1"), ("NO_PROXY", ".example"), ("SSL_CERT_FILE", &fixture("ca.pem"))];
    let (code, _, err) = run_in(&folder, &direct, &["check", "--config", "c.toml"]);
    assert_eq!((code, err.as_str()), (0, ""));
}

/// `--config <(…)` of a shell is one.
#[test]
fn a_configuration_may_come_out_of_a_pipe() {
    let folder = Folder::new();
    let mut program = program(&folder, &["check", "--config", "/dev/stdin"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    program.stdin.take().unwrap().write_all(b"[mqtt]\nport = 1884\n").unwrap();
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success() && String::from_utf8(output.stdout).unwrap().contains("port = 1884"));
}

#[test]
fn bad_configurations() {
    let folder = Folder::new();
    folder.file("bad.toml", "[mqtt]\nhots = \"x\"\nport = \"1883\"\n");
    folder.file("empty.pem", "");
    let key = fixture("other.key");
    let cert = fixture("client.pem");
    folder.file(
        "http.toml",
        "[[http]]\nurl = \"backend.example\"\n[[http]]\nupdate_intervall = 5\nurl = \"https://boat:hunter2@backend.example\"\n",
    );
    let http = [
        "error: http.toml:2: `url`: has no scheme: write \"https://backend.example/…\"\n",
        "error: http.toml:4: unknown key `update_intervall` in [[http]]; did you mean `update_interval`?\n",
        "error: http.toml:5: `url`: must not contain a user or a password: write what the backend wants to see into a file of its own and \
         name that as `api_key_file`\n",
    ];
    folder.file("key.toml", &format!("[mqtt]\ncert_file = \"{cert}\"\nkey_file = \"{key}\"\n"));
    let both = [
        "error: bad.toml:2: unknown key `hots` in [mqtt]; did you mean `host`?\n",
        "error: bad.toml:3: `port`: must be a whole number from 1 to 65535, not \"1883\"\n",
    ];
    let wrong_key = format!("error: {key}: the key does not belong to the certificate in {cert}; name the key it was made with\n");
    let table = [
        (&["--config", "bad.toml"][..], both.concat()),
        (&["--config", "http.toml"], http.concat()),
        (
            &["--config", "none.toml"],
            "error: none.toml: cannot read the configuration: no such file; correct the path after --config\n".into(),
        ),
        (&["--ca", "none.pem"], "error: --ca: cannot read the CA file none.pem: no such file; correct the path\n".into()),
        (&["--ca", "empty.pem"], "error: empty.pem: there is no certificate in it; a PEM file has `-----BEGIN CERTIFICATE-----`\n".into()),
        (
            &["--user", "u", "--password-file", "empty.pem"],
            "error: --password-file: the password file empty.pem has no password: its first line is empty\n".into(),
        ),
        (&["--config", "key.toml"], wrong_key),
    ];
    for (args, expected) in table {
        for command in [&["check"][..], &["run"], &[]] {
            let args = [command, args].concat();
            assert_eq!(run(&folder, &args), (78, String::new(), expected.clone()), "{args:?}");
        }
    }
}

/// SIGHUP refuses what `check` refuses.
#[test]
fn an_address_of_the_bus_in_the_environment_that_is_none() {
    let folder = Folder::new();
    for address in ["auto", "session"] {
        folder.file("c.toml", &format!("[dbus]\naddress = \"{address}\"\n"));
        let (code, out, err) = run_in(&folder, &[("DBUS_SESSION_BUS_ADDRESS", "garbage")], &["check", "--config", "c.toml"]);
        assert_eq!((code, out.as_str()), (78, ""));
        assert!(err.contains("DBUS_SESSION_BUS_ADDRESS is no D-Bus address: \"garbage\""), "{err}");
    }
}

#[test]
fn a_bus_that_is_not_there() {
    let folder = Folder::new();
    let bus = format!("unix:path={}/bus", folder.0.display());
    let (code, out, err) = run(&folder, &["--dbus", &bus, "--portal-id", "c0619ab1c2d3"]);
    assert_eq!((code, out.as_str()), (75, ""));
    assert!(err.starts_with("error: no connection to the bus unix:path=bus: "), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

/// Stands for the daemon, once: gives what it was asked.
fn answering(folder: &Folder, answer: &'static str) -> thread::JoinHandle<String> {
    fs::create_dir_all(folder.0.join("state")).unwrap();
    let socket = folder.0.join("state/control.sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        writeln!(stream, "{answer}").unwrap();
        line
    })
}

const DEVICES: [&str; 3] = ["devices", "--state-dir", "state"];

#[test]
fn devices_of_the_daemon_that_runs() {
    let folder = Folder::new();
    let list = r#"{"ok":[{"clientId":"fe001","version":"v1.0","state":"provisional","lastHeard":null,"services":[
        {"id":"t1","type":"temperature","instance":5},{"id":"tk1","type":"tank","instance":2}]},
        {"clientId":"fe\u001b2","version":"2","state":"waiting","lastHeard":null,"services":[{"id":"g","type":"grid","instance":null}]}]}"#;
    let list: &str = list.replace('\n', "").leak();
    let daemon = answering(&folder, list);
    let expected = "\
ID         VERSION  STATE        LAST HEARD  SERVICES
fe001      v1.0     provisional  never       t1 temperature/5
                                             tk1 tank/2
fe\\u{1b}2  2        waiting      never       g grid
";
    assert_eq!(run(&folder, &DEVICES), (0, expected.into(), String::new()));
    assert_eq!(daemon.join().unwrap(), "devices\n");

    let daemon = answering(&folder, list);
    let (code, out, err) = run(&folder, &[&DEVICES[..], &["--json"]].concat());
    assert_eq!((code, err.as_str()), (0, ""));
    let expected: serde_json::Value = serde_json::from_str(list).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap(), expected["ok"]);
    daemon.join().unwrap();

    let daemon = answering(&folder, r#"{"ok":[]}"#);
    assert_eq!(run(&folder, &DEVICES), (0, "no device is registered\n".into(), String::new()));
    daemon.join().unwrap();

    let daemon = answering(&folder, r#"{"error":"the daemon is ending; try again"}"#);
    assert_eq!(run(&folder, &DEVICES), (75, String::new(), "error: the daemon is ending; try again\n".into()));
    daemon.join().unwrap();
}

#[test]
fn devices_as_of_the_last_note() {
    let folder = Folder::new();
    let none = "warn: the daemon does not run, and there is no note of an earlier one, state/devices.json\n";
    assert_eq!(run(&folder, &DEVICES), (0, "no device is registered\n".into(), none.into()));

    let note = r#"{"version":1,"devices":[{"clientId":"fe001","topicId":"fe001","version":"v1.0","connected":true,"lastHeard":86400,
        "services":[{"id":"t1","type":"temperature","instance":5,"written":[]}],"lwt":null}]}"#;
    folder.file("state/devices.json", note);
    // of a daemon that was killed
    drop(UnixListener::bind(folder.0.join("state/control.sock")).unwrap());
    let (code, out, err) = run(&folder, &DEVICES);
    assert_eq!((code, err.as_str()), (0, "warn: the daemon does not run; as of its last note, state/devices.json:\n"));
    let (head, line) = out.split_once('\n').unwrap();
    assert_eq!(head, "ID     VERSION  STATE      LAST HEARD   SERVICES");
    assert!(line.starts_with("fe001  v1.0     connected  ") && line.ends_with(" d ago  t1 temperature/5\n"), "{line}");

    folder.file("off.toml", "[devices]\nenabled = false\n");
    let (code, _, err) = run(&folder, &[&DEVICES[..], &["--config", "off.toml"]].concat());
    assert_eq!((code, err.lines().count()), (0, 2), "{err}");
    assert!(err.starts_with("warn: devices cannot register: `enabled = false` in [devices]; "), "{err}");

    folder.file("state/devices.json", "{");
    let (code, out, err) = run(&folder, &DEVICES);
    assert_eq!((code, out.as_str()), (75, ""));
    let expected = "error: cannot read the note of the registered devices, state/devices.json: not JSON: EOF while parsing an object \
                    at line 1 column 1; start the daemon, which sets it aside\n";
    assert_eq!(err, expected);
}

#[test]
fn a_device_is_forgotten_by_the_daemon() {
    let folder = Folder::new();
    let forget = ["devices", "forget", "fe\"1", "--state-dir", "state"];
    let not_running = "error: the daemon does not run: start it first, it is the one who frees a device\n";
    assert_eq!(run(&folder, &forget), (75, String::new(), not_running.into()));

    let daemon = answering(&folder, r#"{"ok":"freed temperature/5\nand 3 settings\u001b[31m"}"#);
    assert_eq!(run(&folder, &forget), (0, "freed temperature/5\nand 3 settings\\u{1b}[31m\n".into(), String::new()));
    assert_eq!(daemon.join().unwrap(), "forget \"fe\\\"1\"\n");

    let daemon = answering(&folder, r#"{"error":"there is no such device"}"#);
    assert_eq!(run(&folder, &forget), (1, String::new(), "error: there is no such device\n".into()));
    daemon.join().unwrap();

    let (code, _, err) = run(&folder, &["devices", "--config", "none.toml"]);
    assert_eq!((code, err.lines().count()), (78, 1));
}

#[test]
fn check_tells_mistakes_in_types_of_devices_and_goes_on() {
    let folder = Folder::new();
    folder.file("types/rain.yml", "rain:\n  Rainfall:\n    colour: blue\nsnow:\n  Depth:\n");
    folder.file("c.toml", "[devices]\ncatalogue_dir = \"types\"\n");
    let (code, out, err) = run(&folder, &["check", "--config", "c.toml"]);
    assert_eq!(code, 0);
    assert!(err.starts_with("warn: types/rain.yml:3: ") && err.contains("colour"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(out.contains("\ncatalogue_dir = \"types\"\n"), "{out}");
}

/// What packages bring: everything there is as a comment, with its default.
#[test]
fn the_example_is_everything_there_is() {
    let example = include_str!("../packaging/venus-mqtt.toml");
    let settings = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.split("  #").next().unwrap_or_default().to_owned());
        lines.filter(|line| line.contains(" = ") && !line.starts_with('#')).collect()
    };
    let folder = Folder::new();
    let (code, defaults, _) = run(&folder, &["--config", "/dev/null", "check"]);
    let file = folder.file("example.toml", example);
    let (same, out, err) = run(&folder, &["--config", file.to_str().unwrap(), "check"]);
    assert_eq!((code, same, err), (0, 0, String::new()));
    assert_eq!(settings(&out), settings(&defaults), "as it is, it changes nothing");

    // every comment taken away; what contradicts something else, and files that are not there, are made to fit
    let mut full: String = example.lines().fold(String::new(), |text, line| {
        let setting = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') && !rest.is_empty());
        text + setting.unwrap_or(line) + "\n"
    });
    full = full
        .replace("tls = false", "tls = true")
        .replace("port = 1883", "port = 8883")
        .replace("\"victron-measurements\"\nf", "\"json-lines\"\nf");
    full = full.replace("/data/conf/", &format!("{}/", folder.0.display()));
    for (name, of) in [("ca.pem", "ca.pem"), ("backend-ca.pem", "ca.pem"), ("client.pem", "client.pem"), ("client.key", "client.key")] {
        folder.file(name, &fs::read_to_string(fixture(of)).unwrap());
    }
    folder.file("mqtt-password", "hunter2\n");
    folder.file("backend.key", "key\n");
    let file = folder.file("full.toml", &full);
    let (code, out, err) = run(&folder, &["--config", file.to_str().unwrap(), "check"]);
    assert_eq!((code, err), (0, String::new()), "{out}");
    let here = format!("{}/", folder.0.display());
    let (mut wanted, mut shown) = (settings(&full.replace(&here, "")), settings(&out));
    wanted.sort();
    shown.sort();
    assert_eq!(shown, wanted, "nothing is missing in it, and nothing is more");
}

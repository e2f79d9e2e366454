//! `venus-mqtt devices`: what has registered itself, asked of the daemon that runs, else read from what it has noted.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{CONFIG, GONE, OK, REFUSED, print, say};
use crate::config::Source;
use crate::control::{self, AskError};
use crate::files::why;
use crate::store;
use crate::text::escape_to;

/// Most characters of a field of the table: IDs have at most 32.
const FIELD_MAX: usize = 40;

/// The version of the note that is understood.
const NOTE_VERSION: u64 = 1;

/// Prints the registered devices.
pub(super) fn list(source: &Source, json: bool) -> u8 {
    with_state_dir(source, |dir| {
        let devices = match control::ask(dir, &control::Command::List) {
            Err(AskError::NotRunning) => noted(dir)?,
            other => other?,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        print(&if json { format!("{devices:#}\n") } else { table(&devices, now) });
        Ok(())
    })
}

/// Has the daemon forget a device, for good.
pub(super) fn forget(source: &Source, id: String) -> u8 {
    with_state_dir(source, |dir| match control::ask(dir, &control::Command::Forget(id)) {
        Ok(told) => {
            for line in told.as_str().unwrap_or_default().lines() {
                print(&format!("{}\n", escape_to(line, super::MESSAGE_MAX)));
            }
            Ok(())
        }
        Err(AskError::Refused(text)) => Err(Failed { code: REFUSED, text }),
        Err(other) => Err(other.into()),
    })
}

/// What did not work, and the exit code.
struct Failed {
    code: u8,
    text: String,
}

/// The daemon cannot be asked now.
impl From<AskError> for Failed {
    fn from(error: AskError) -> Self {
        let text = match error {
            AskError::NotRunning => "the daemon does not run: start it first, it is the one who frees a device".into(),
            AskError::Refused(text) | AskError::Failed(text) => text,
        };
        Self { code: GONE, text }
    }
}

fn with_state_dir(source: &Source, act: impl FnOnce(&Path) -> Result<(), Failed>) -> u8 {
    let loaded = source.load().map_err(|error| Failed { code: CONFIG, text: error.to_string() });
    let done = loaded.and_then(|loaded| {
        let devices = &loaded.config.devices;
        if !devices.options.enabled {
            say("warn", "devices cannot register: `enabled = false` in [devices]; a daemon with this configuration answers nothing here");
        }
        act(&devices.state_dir)
    });
    match done {
        Ok(()) => OK,
        Err(failed) => {
            failed.text.lines().for_each(|line| say("error", line));
            failed.code
        }
    }
}

/// The devices as the daemon noted them last, as it would list them. Says so.
fn noted(dir: &Path) -> Result<Value, Failed> {
    let file = store::file_in(dir).display().to_string();
    let unusable = |why: &str| Failed { code: GONE, text: format!("cannot read the note of the registered devices, {file}: {why}") };
    match store::read(dir) {
        Ok(Some(text)) => {
            let devices = as_listed(&text).map_err(|error| unusable(&format!("{error}; start the daemon, which sets it aside")))?;
            say("warn", &format!("the daemon does not run; as of its last note, {file}:"));
            Ok(devices)
        }
        Ok(None) => {
            say("warn", &format!("the daemon does not run, and there is no note of an earlier one, {file}"));
            Ok(json!([]))
        }
        Err(error) => Err(unusable(&why(&error))),
    }
}

fn as_listed(text: &str) -> Result<Value, String> {
    let note: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let version = field(&note, "version");
    if version.as_u64() != Some(NOTE_VERSION) {
        return Err(format!("its version is {}, not {NOTE_VERSION}", escape_to(&version.to_string(), FIELD_MAX)));
    }
    let devices = field(&note, "devices").as_array().ok_or("it has no devices")?;
    Ok(devices.iter().map(listed).collect())
}

fn listed(device: &Value) -> Value {
    let services = field(device, "services").as_array().into_iter().flatten();
    let services: Vec<_> = services
        .map(|service| json!({"id": field(service, "id"), "type": field(service, "type"), "instance": field(service, "instance")}))
        .collect();
    json!({
        "clientId": field(device, "clientId"),
        "version": field(device, "version"),
        "state": if field(device, "connected") == &Value::Bool(true) { "connected" } else { "gone" },
        "lastHeard": field(device, "lastHeard"),
        "services": services,
    })
}

/// `null` where there is none.
fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or(&Value::Null)
}

const HEADS: [&str; 5] = ["ID", "VERSION", "STATE", "LAST HEARD", "SERVICES"];

/// One line for each service, so that a device with many stays readable.
fn table(devices: &Value, now: u64) -> String {
    let devices = devices.as_array().map(Vec::as_slice).unwrap_or_default();
    if devices.is_empty() {
        return "no device is registered\n".into();
    }
    let mut rows = vec![HEADS.map(str::to_owned)];
    for device in devices {
        let heard = field(device, "lastHeard").as_u64().map_or_else(|| "never".into(), |at| ago(now.saturating_sub(at)));
        let mut first = [shown(device, "clientId"), shown(device, "version"), shown(device, "state"), heard, String::new()];
        let services = field(device, "services").as_array().map(Vec::as_slice).unwrap_or_default();
        for service in services {
            let [.., last] = &mut first;
            *last = as_service(service);
            rows.push(std::mem::take(&mut first));
        }
        if services.is_empty() {
            rows.push(first);
        }
    }
    aligned(&rows)
}

fn as_service(service: &Value) -> String {
    let name = format!("{} {}", shown(service, "id"), shown(service, "type"));
    match field(service, "instance") {
        Value::Number(instance) => format!("{name}/{instance}"),
        // it has none yet
        _ => name,
    }
}

/// What a device has said of itself, fit for a terminal.
fn shown(value: &Value, name: &str) -> String {
    match field(value, name) {
        Value::Null => "-".into(),
        Value::String(text) => escape_to(text, FIELD_MAX).to_string(),
        other => escape_to(&other.to_string(), FIELD_MAX).to_string(),
    }
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // a String takes everything
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_service() {
        let devices = json!([
            {"clientId": "fe001", "version": "v1.0", "state": "connected", "lastHeard": 1_795_259_388, "services": [
                {"id": "t1", "type": "temperature", "instance": 5},
                {"id": "tk1", "type": "tank", "instance": null},
            ]},
            {"clientId": "ä\n\u{202e}", "version": 2.1, "state": "gone", "lastHeard": null, "services": []},
            {"clientId": "a_much_longer_one", "version": null, "state": "waiting", "lastHeard": 1_795_000_000, "services": [
                {"id": "g", "type": "grid", "instance": 40},
            ]},
        ]);
        assert_eq!(
            table(&devices, 1_795_259_400),
            "\
ID                 VERSION  STATE      LAST HEARD  SERVICES
fe001              v1.0     connected  12 s ago    t1 temperature/5
                                                   tk1 tank
ä\\n\\u{202e}        2.1      gone       never
a_much_longer_one  -        waiting    3 d ago     g grid/40
"
        );
    }

    #[test]
    fn no_devices_and_what_is_no_list() {
        for devices in [json!([]), json!(null), json!({"a": 1})] {
            assert_eq!(table(&devices, 0), "no device is registered\n");
        }
        assert_eq!(table(&json!([5]), 0).lines().nth(1).unwrap(), "-   -        -      never");
    }

    #[test]
    fn how_long_ago() {
        let texts = [0, 59, 60, 3599, 3600, 172_799, 172_800].map(ago);
        assert_eq!(texts, ["0 s ago", "59 s ago", "1 min ago", "59 min ago", "1 h ago", "47 h ago", "2 d ago"]);
    }

    #[test]
    fn a_note_reads_as_the_daemon_would_list_it() {
        let note = r#"{"version":1,"devices":[
            {"clientId":"fe001","topicId":"fe-001","version":"v1.0","connected":true,"lastHeard":1795259400,
             "services":[{"id":"t1","type":"temperature","instance":5,"written":["/Settings/X"]}],"lwt":null},
            {"clientId":"fe002","connected":false}]}"#;
        assert_eq!(
            as_listed(note).unwrap(),
            json!([
                {"clientId": "fe001", "version": "v1.0", "state": "connected", "lastHeard": 1_795_259_400,
                 "services": [{"id": "t1", "type": "temperature", "instance": 5}]},
                {"clientId": "fe002", "version": null, "state": "gone", "lastHeard": null, "services": []},
            ])
        );
    }

    #[test]
    fn notes_that_are_not_understood() {
        for (note, expected) in [
            ("", "not JSON: EOF while parsing a value at line 1 column 0"),
            ("{\"version\":2,\"devices\":[]}", "its version is 2, not 1"),
            ("[]", "its version is null, not 1"),
            ("{\"version\":1}", "it has no devices"),
        ] {
            assert_eq!(as_listed(note).unwrap_err(), expected);
        }
    }
}

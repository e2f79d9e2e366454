//! Fake localsettings: `com.victronenergy.settings`, as far as programs that store settings can tell it from the real one.
//!
//!     fake-localsettings --dbus unix:path=/tmp/rig/bus --file /tmp/rig/settings.json [--write-after MS]
//!
//! What it promises: `AddSettings` and `RemoveSettings` on `/`, `AddSetting` and `AddSilentSetting` on `/Settings`; on each setting
//! `GetValue`, `GetText`, `SetValue`, `GetMin`, `GetMax`, `GetDefault`, `GetSilent`, `GetAttributes`; `GetItems`, `GetValue` and `GetText` on
//! `/` and on groups; `Introspect` and `Ping`; calls without an interface header. The same error numbers, the same types, a
//! `<class>:<n>` for one device only, `PropertiesChanged` on the setting's own path and no other signal. It keeps everything in its file,
//! written by rename: at once, or `MS` after a change as the real one does after two seconds; on SIGTERM at once.
//!
//! The file is JSON, or the XML of the real one if it is that already when the fake starts: a test can write either while it is stopped.
//!
//! Where it is simpler: the file is not synced, and old files are not migrated; a stored value that lies outside
//! limits that came later stays; a setting cannot lie below another one (-8), and a path that is no object path is refused (-9); a limit
//! that cannot be read as the setting's type counts as 0; nothing is logged, so `silent` is only kept.
//!
//! What a test can have beside that, as `org.venusmqtt.FakeSettings` on `/`:
//!
//! | method | does |
//! |---|---|
//! | `Behave(s member, s mode)` | `*` for every member; `answer`, `error`, `never`, `hold` (what is called is done and answered at `Release`), `die` (ends, with code 1) |
//! | `Release() → u` | does and answers what was held, in order |
//! | `Calls() → a(ss)` | path and member of what was called so far, without these three |

#![forbid(unsafe_code)]

mod bus;
mod settings;
mod value;
mod xml;

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures_core::Stream;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};
use zbus::{Message, MessageStream, connection, message::Type};

use bus::Service;
use settings::Settings;

const USAGE: &str = "usage: fake-localsettings --dbus ADDRESS --file PATH [--write-after MS]";

struct Arguments {
    address: String,
    file: PathBuf,
    write_after: Duration,
}

impl Arguments {
    fn read() -> Result<Self> {
        let (mut address, mut file, mut write_after) = (None, None, Duration::ZERO);
        let mut arguments = std::env::args().skip(1);
        while let Some(flag) = arguments.next() {
            let given = arguments.next().with_context(|| format!("{flag} wants a value; {USAGE}"))?;
            match flag.as_str() {
                "--dbus" => address = Some(given),
                "--file" => file = Some(given.into()),
                "--write-after" => write_after = Duration::from_millis(given.parse().context("--write-after wants milliseconds")?),
                _ => bail!("no option {flag}; {USAGE}"),
            }
        }
        Ok(Self { address: address.context(USAGE)?, file: file.context(USAGE)?, write_after })
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::read()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(arguments))
}

async fn run(Arguments { address, file, write_after }: Arguments) -> Result<()> {
    let (settings, format) = load(&file)?;
    let connection = connection::Builder::address(address.as_str()).build().await.with_context(|| format!("connecting to {address}"))?;
    let mut messages = MessageStream::from(&connection);
    let mut service = Service::new(connection.clone(), settings);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    own(&connection).await?;
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                save(&file, format, &service.settings)?;
            }
            next = next(&mut messages) => {
                let Some(message) = next else { bail!("the bus is gone") };
                if message.message_type() == Type::MethodCall {
                    service.called(&message)?;
                    match service.has_changed() {
                        // what was answered is stored
                        true if write_after.is_zero() => save(&file, format, &service.settings)?,
                        true => due = due.or_else(|| Some(Instant::now() + write_after)),
                        false => {}
                    }
                    service.answer().await;
                }
            }
        }
    }
    save(&file, format, &service.settings)
}

async fn next(messages: &mut MessageStream) -> Option<Message> {
    std::future::poll_fn(|cx| Pin::new(&mut *messages).poll_next(cx)).await?.ok()
}

async fn own(connection: &zbus::Connection) -> Result<()> {
    let (bus, name) = ("org.freedesktop.DBus", "com.victronenergy.settings");
    // 4: no queueing
    let reply = connection.call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "RequestName", &(name, 4_u32)).await?;
    match reply.body().deserialize::<u32>()? {
        1 | 4 => Ok(()),
        code => bail!("the name {name} is not to be had: the bus says {code}"),
    }
}

#[derive(Clone, Copy)]
enum Format {
    Json,
    Xml,
}

fn load(file: &Path) -> Result<(Settings, Format)> {
    let reading = || format!("reading {}", file.display());
    match std::fs::read_to_string(file) {
        Ok(text) if text.starts_with('<') => Ok((xml::read(&text).with_context(reading)?, Format::Xml)),
        Ok(text) => Ok((serde_json::from_str(&text).with_context(reading)?, Format::Json)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((Settings::default(), Format::Json)),
        Err(error) => Err(error).with_context(reading),
    }
}

fn save(file: &Path, format: Format, settings: &Settings) -> Result<()> {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(settings)?,
        Format::Xml => xml::print(settings),
    };
    let next = file.with_extension("new");
    std::fs::write(&next, text).with_context(|| format!("writing {}", next.display()))?;
    std::fs::rename(&next, file).with_context(|| format!("renaming to {}", file.display()))
}

//! Calls and signals: who called what on which path, by member; an interface header may be missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::{Result, bail};
use serde::Serialize;
use venus_mqtt_integration::items::{Entry, Items, empty_array, owned};
use zbus::{Connection, DynamicType, Message, OwnedVariant, Variant};

use super::{
    settings::{Change, Refusal, Setting, Settings},
    value::{Kind, Value},
};

const BUS_ITEM: &str = "com.victronenergy.BusItem";
const SETTINGS: &str = "com.victronenergy.Settings";
const CONTROL: &str = "org.venusmqtt.FakeSettings";
const INTERFACES: [&str; 5] = [BUS_ITEM, SETTINGS, CONTROL, "org.freedesktop.DBus.Introspectable", "org.freedesktop.DBus.Peer"];
const INVALID_ARGS: &str = "org.freedesktop.DBus.Error.InvalidArgs";
const UNKNOWN_METHOD: &str = "org.freedesktop.DBus.Error.UnknownMethod";

/// Why a call is answered with an error: its name.
type Refused = &'static str;
type Answer = Result<Result<Message, Refused>>;

pub struct Service {
    connection: Connection,
    pub settings: Settings,
    /// what is to be sent when the file is written: signals, then the reply
    outbox: Vec<Message>,
    changed: bool,
    behaviour: BTreeMap<String, String>,
    held: Vec<Message>,
    calls: Vec<(String, String)>,
}

impl Service {
    pub fn new(connection: Connection, settings: Settings) -> Self {
        Self { connection, settings, outbox: Vec::new(), changed: false, behaviour: BTreeMap::new(), held: Vec::new(), calls: Vec::new() }
    }

    /// Does what a call says, if it is to be done now.
    pub fn called(&mut self, call: &Message) -> Result<()> {
        let header = call.header();
        let (path, member) = (path_of(call), header.member().map(|member| member.to_string()).unwrap_or_default());
        if header.interface().is_some_and(|interface| interface.as_str() == CONTROL) {
            return self.order(call, &member);
        }
        self.calls.push((path, member.clone()));
        match self.behaviour.get(&member).or_else(|| self.behaviour.get("*")).map_or("answer", String::as_str) {
            "die" => std::process::exit(1),
            "never" => {}
            "hold" => self.held.push(call.clone()),
            "error" => self.outbox.push(error(call, "com.victronenergy.Fake.Failed")?),
            _ => self.serve(call)?,
        }
        Ok(())
    }

    /// Whether what is stored has changed since this was last asked.
    pub fn has_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Sends what there is to say.
    pub async fn answer(&mut self) {
        for message in std::mem::take(&mut self.outbox) {
            // who is gone need not be told
            let _ = self.connection.send(&message).await;
        }
    }

    fn order(&mut self, call: &Message, member: &str) -> Result<()> {
        let reply = match member {
            "Behave" => {
                let (what, mode): (String, String) = call.body().deserialize()?;
                self.behaviour.insert(what, mode);
                reply(call, &())?
            }
            "Release" => {
                let held = std::mem::take(&mut self.held);
                for call in &held {
                    self.serve(call)?;
                }
                reply(call, &u32::try_from(held.len())?)?
            }
            "Calls" => reply(call, &self.calls)?,
            other => bail!("no order {other}"),
        };
        self.outbox.push(reply);
        Ok(())
    }

    fn serve(&mut self, call: &Message) -> Result<()> {
        let header = call.header();
        let path = path_of(call);
        let member = header.member().map(|member| member.to_string()).unwrap_or_default();
        let known = header.interface().is_none_or(|interface| INTERFACES.contains(&interface.as_str()));
        let answer = if !known {
            Err("org.freedesktop.DBus.Error.UnknownInterface")
        } else if member == "Ping" {
            Ok(reply(call, &())?)
        } else if self.settings.get(&path).is_some() {
            self.of_setting(call, &path, &member)?
        } else if self.settings.is_group(&path) {
            self.of_group(call, &path, &member)?
        } else {
            Err("org.freedesktop.DBus.Error.UnknownObject")
        };
        let message = match answer {
            Ok(reply) => reply,
            Err(name) => error(call, name)?,
        };
        self.outbox.push(message);
        Ok(())
    }

    fn of_setting(&mut self, call: &Message, path: &str, member: &str) -> Answer {
        let Some(setting) = self.settings.get(path) else { return Ok(Err(UNKNOWN_METHOD)) };
        Ok(Ok(match member {
            "GetValue" => reply(call, &setting.value.variant())?,
            "GetText" => reply(call, &setting.value.show())?,
            "GetDefault" => reply(call, &setting.default.variant())?,
            "GetMin" => reply(call, &setting.min.variant())?,
            "GetMax" => reply(call, &setting.max.variant())?,
            "GetSilent" => reply(call, &setting.silent)?,
            "GetAttributes" => {
                let [default, min, max] = [&setting.default, &setting.min, &setting.max].map(Value::variant);
                reply(call, &(default, min, max, i32::from(setting.silent)))?
            }
            "SetValue" => {
                let body = call.body();
                let Ok(value) = body.deserialize::<Variant<'_>>() else { return Ok(Err(INVALID_ARGS)) };
                let change = setting.default.kind().bring(&value).and_then(|value| self.settings.set(path, value));
                if change == Some(Change::Value) {
                    self.changed = true;
                    self.tell(path, Change::Value)?;
                }
                reply(call, &change.map_or(-1, |_| 0))?
            }
            "Introspect" => reply(call, &self.introspect(path))?,
            _ => return Ok(Err(UNKNOWN_METHOD)),
        }))
    }

    fn of_group(&mut self, call: &Message, path: &str, member: &str) -> Answer {
        Ok(Ok(match (path, member) {
            (_, "GetItems") => {
                let items: Items = self.settings.below(path).map(|(rest, setting)| (format!("/{rest}"), entry(setting, false))).collect();
                reply(call, &items)?
            }
            (_, "GetValue") => {
                let values: BTreeMap<&str, Variant<'_>> =
                    self.settings.below(path).map(|(rest, setting)| (rest, setting.value.variant())).collect();
                reply(call, &Variant::from(values))?
            }
            (_, "GetText") => {
                let texts: BTreeMap<&str, String> = self.settings.below(path).map(|(rest, setting)| (rest, setting.value.show())).collect();
                reply(call, &Variant::from(texts))?
            }
            ("/", "AddSettings") => {
                let Ok(asked) = call.body().deserialize::<Vec<Entry>>() else { return Ok(Err(INVALID_ARGS)) };
                let mut results = Vec::new();
                for asked in asked {
                    results.push(self.add_one(&asked)?);
                }
                reply(call, &results)?
            }
            ("/", "RemoveSettings") => {
                let Ok(paths) = call.body().deserialize::<Vec<String>>() else { return Ok(Err(INVALID_ARGS)) };
                let mut results = Vec::new();
                for path in paths {
                    let removed = self.settings.remove(&path);
                    if removed {
                        self.changed = true;
                        let entry = Entry::from([("Value".into(), owned(empty_array("i"))), ("Text".into(), owned("---"))]);
                        self.outbox.push(Message::signal(path.as_str(), BUS_ITEM, "PropertiesChanged").build(&entry)?);
                    }
                    results.push(if removed { 0 } else { -1 });
                }
                reply(call, &results)?
            }
            ("/Settings", "AddSetting" | "AddSilentSetting") => {
                type Arguments = (String, String, OwnedVariant, String, OwnedVariant, OwnedVariant);
                let Ok((group, name, default, kind, min, max)) = call.body().deserialize::<Arguments>() else {
                    return Ok(Err(INVALID_ARGS));
                };
                let path = if group.is_empty() { format!("/Settings/{name}") } else { format!("/Settings/{group}/{name}") };
                let kind = Kind::of_name(&kind);
                let code = self.define(&path, kind, &default, [Some(&min), Some(&max)], member == "AddSilentSetting")?;
                reply(call, &code)?
            }
            (_, "Introspect") => reply(call, &self.introspect(path))?,
            _ => return Ok(Err(UNKNOWN_METHOD)),
        }))
    }

    /// One setting of `AddSettings`.
    fn add_one(&mut self, asked: &Entry) -> Result<Entry> {
        let path = asked.get("path").and_then(|path| <&str>::try_from(path).ok()).unwrap_or_default();
        let default = asked.get("default");
        let code = match default {
            _ if path.is_empty() => Refusal::PathMissing as i32,
            None => Refusal::BadDefault as i32,
            Some(default) => {
                let silent = asked.get("silent").is_some_and(truthy);
                self.define(path, Kind::of_default(&variant(default)), default, [asked.get("min"), asked.get("max")], silent)?
            }
        };
        let mut result = Entry::from([("path".into(), owned(path.to_owned())), ("error".into(), owned(code))]);
        if let Some(setting) = self.settings.get(path).filter(|_| code == 0) {
            result.insert("value".into(), owned(setting.value.variant()));
        }
        Ok(result)
    }

    fn define(
        &mut self,
        path: &str,
        kind: Option<Kind>,
        default: &OwnedVariant,
        limits: [Option<&OwnedVariant>; 2],
        silent: bool,
    ) -> Result<i32> {
        let Some(kind) = kind else { return Ok(Refusal::UnsupportedType as i32) };
        let Some(default) = kind.bring(&variant(default)) else { return Ok(Refusal::BadDefault as i32) };
        let limit = |limit: Option<&OwnedVariant>| {
            let given = limit.filter(|_| kind != Kind::Text).and_then(|limit| kind.bring(&variant(limit)));
            given.unwrap_or_else(|| kind.zero())
        };
        let setting = Setting { value: default.clone(), default, min: limit(limits[0]), max: limit(limits[1]), silent };
        match self.settings.add(path, setting) {
            Ok(change) => {
                // `silent` alone is no change to tell
                self.changed = true;
                if change != Change::None {
                    self.tell(path, change)?;
                }
                Ok(0)
            }
            Err(refusal) => Ok(refusal as i32),
        }
    }

    fn tell(&mut self, path: &str, change: Change) -> Result<()> {
        let Some(setting) = self.settings.get(path) else { return Ok(()) };
        let mut entry = entry(setting, true);
        if change == Change::Value {
            entry.retain(|key, _| ["Value", "Text"].contains(&key.as_str()));
        }
        self.outbox.push(Message::signal(path, BUS_ITEM, "PropertiesChanged").build(&entry)?);
        Ok(())
    }

    fn introspect(&self, path: &str) -> String {
        let mut xml = String::from(
            "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n\"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n",
        );
        let _ = writeln!(xml, "<node name=\"{path}\">");
        let _ = writeln!(
            xml,
            "  <interface name=\"{BUS_ITEM}\">\n    <method name=\"GetValue\"><arg direction=\"out\" type=\"v\"/></method>\n    <method name=\"SetValue\"><arg direction=\"in\" type=\"v\" name=\"value\"/><arg direction=\"out\" type=\"i\"/></method>\n  </interface>"
        );
        let children: BTreeSet<&str> = self.settings.below(path).filter_map(|(rest, _)| rest.split('/').next()).collect();
        for child in children {
            let _ = writeln!(xml, "  <node name=\"{child}\"/>");
        }
        xml.push_str("</node>\n");
        xml
    }
}

/// What `GetItems` and signals say of a setting; in a signal, limits that are none are said as 0 and 0.
fn entry(setting: &Setting, signal: bool) -> Entry {
    let mut entry = Entry::from([
        ("Value".into(), owned(setting.value.variant())),
        ("Text".into(), owned(setting.value.show())),
        ("Default".into(), owned(setting.default.variant())),
    ]);
    let said = if signal && setting.default.kind() != Kind::Text { Some((&setting.min, &setting.max)) } else { setting.limits() };
    if let Some((min, max)) = said {
        entry.insert("Min".into(), owned(min.variant()));
        entry.insert("Max".into(), owned(max.variant()));
    }
    entry
}

fn variant(value: &OwnedVariant) -> Variant<'static> {
    value.try_clone().map_or_else(|_| empty_array("i"), Variant::from)
}

fn truthy(value: &OwnedVariant) -> bool {
    Kind::Float.bring(&variant(value)).is_some_and(|value| value.number() != 0.0)
}

fn path_of(call: &Message) -> String {
    call.header().path().map(|path| path.to_string()).unwrap_or_default()
}

fn reply(call: &Message, body: &(impl Serialize + DynamicType)) -> Result<Message> {
    Ok(Message::method_return(&call.header()).build(body)?)
}

fn error(call: &Message, name: &str) -> Result<Message> {
    let header = call.header();
    let text = format!("{} of {}", header.member().map_or("?", |member| member.as_str()), path_of(call));
    Ok(Message::error(&header, name).build(&(text,))?)
}

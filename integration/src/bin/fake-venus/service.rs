//! One fake service: its items, how it behaves, what was called.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::{Context, Result, bail};
use venus_mqtt_integration::items::{Entry, Items, copy, item, owned};
use zbus::{Connection, Message, OwnedVariant, Structure, Variant, wire::StructureBuilder};

const BUS_ITEM: &str = "com.victronenergy.BusItem";
const UNKNOWN_METHOD: &str = "org.freedesktop.DBus.Error.UnknownMethod";

/// A service on a connection of its own.
///
/// `Behave(what, mode)`: `what` is `GetItems`, `GetValue` (of an item), `GetTree` (`GetValue` of `/` or an inner path), `GetText`,
/// `Introspect`, `SetValue` or `*`; `mode` is
///
/// | mode | |
/// |---|---|
/// | `answer` | as it should |
/// | `unknown-method`, `unknown-object`, `error` | an error reply |
/// | `refuse:N` | SetValue answers N and changes nothing |
/// | `never` | no answer |
/// | `hold` | what was true when the call came is answered at `Release` (a SetValue is carried out then) |
/// | `die` | the connection is closed instead of an answer |
/// | `garbage` | an answer of the wrong type |
///
/// Beside these `signal` (`before`, `after` the reply of a SetValue, or `none`) and `keys` (`relative`, or `slash` for a leading slash
/// in what GetTree answers).
///
/// Styles: `normal`; `older` (no GetItems); `leaves` (neither GetItems nor GetTree); `mute` (never answers); `dies` (at GetItems);
/// `late` (GetItems is held).
pub struct Service {
    pub connection: Connection,
    pub items: Items,
    pub hidden: Items,
    behaviour: BTreeMap<String, String>,
    calls: Vec<(String, String, String, OwnedVariant)>,
    held: Vec<Held>,
}

/// A call whose answer waits for `Release`.
enum Held {
    Reply(Message),
    Set { call: Message, path: String, value: OwnedVariant },
}

impl Service {
    pub fn new(connection: Connection, style: &str, items: Items) -> Result<Self> {
        let behaviour: &[(&str, &str)] = match style {
            "normal" => &[],
            "older" => &[("GetItems", "unknown-method")],
            "leaves" => &[("GetItems", "unknown-method"), ("GetTree", "unknown-method")],
            "mute" => &[("*", "never")],
            "dies" => &[("GetItems", "die")],
            "late" => &[("GetItems", "hold")],
            other => bail!("no style {other}: normal, older, leaves, mute, dies, late"),
        };
        let behaviour = behaviour.iter().map(|(what, mode)| ((*what).into(), (*mode).into())).collect();
        Ok(Self { connection, items, hidden: Items::new(), behaviour, calls: Vec::new(), held: Vec::new() })
    }

    pub fn behave(&mut self, what: &str, mode: &str) {
        self.behaviour.insert(what.into(), mode.into());
    }

    /// What was called so far, oldest first.
    pub fn calls(&self) -> Vec<(&str, &str, &str, &OwnedVariant)> {
        self.calls.iter().map(|(path, interface, member, value)| (path.as_str(), interface.as_str(), member.as_str(), value)).collect()
    }

    pub async fn close(self) {
        // closing what is closed already is fine
        let _ = self.connection.close().await;
    }

    /// Answers a call; `None` when the service has died of it.
    pub async fn called(&mut self, call: &Message) -> Result<Option<()>> {
        let header = call.header();
        let path = header.path().map(|path| path.to_string()).unwrap_or_default();
        let interface = header.interface().map(|interface| interface.to_string()).unwrap_or_default();
        let member = header.member().map(|member| member.to_string()).unwrap_or_default();
        let value: Option<OwnedVariant> = if member == "SetValue" { call.body().deserialize().ok() } else { None };
        let logged = value.as_ref().and_then(|value| value.try_clone().ok()).unwrap_or_else(|| owned(""));
        self.calls.push((path.clone(), interface, member.clone(), logged));

        let known = self.find(&path).is_some();
        let what = if member == "GetValue" && !known { "GetTree" } else { &member };
        let mode = self.mode(what).to_owned();
        if mode == "die" {
            let _ = self.connection.clone().close().await;
            return Ok(None);
        }
        if mode == "never" {
            return Ok(Some(()));
        }
        if member == "SetValue" && known {
            self.set_value(call, path, value, &mode).await?;
            return Ok(Some(()));
        }
        let reply = match mode.as_str() {
            "unknown-method" => error(call, UNKNOWN_METHOD)?,
            "unknown-object" => error(call, "org.freedesktop.DBus.Error.UnknownObject")?,
            "error" => error(call, "com.victronenergy.Fake.Failed")?,
            "garbage" => Message::method_return(&header).build(&("garbage", 1_u32))?,
            _ => self.answer(call, &path, &member)?,
        };
        if mode == "hold" {
            self.held.push(Held::Reply(reply));
        } else {
            send(&self.connection, &reply).await;
        }
        Ok(Some(()))
    }

    /// Answers what was held; says how many.
    pub async fn release(&mut self) -> Result<u32> {
        let held = std::mem::take(&mut self.held);
        let count = u32::try_from(held.len())?;
        for held in held {
            match held {
                Held::Reply(reply) => send(&self.connection, &reply).await,
                Held::Set { call, path, value } => self.set_value(&call, path, Some(value), "answer").await?,
            }
        }
        Ok(count)
    }

    /// Changes items and says so, or not.
    pub async fn change(&mut self, how: &str, entries: Items) -> Result<()> {
        if how != "signal" {
            for (path, entry) in &entries {
                self.items.entry(path.clone()).or_default().extend(copy(entry));
            }
        }
        match how {
            "store" => {}
            "items" | "signal" => self.signal("/", "ItemsChanged", &entries).await?,
            "properties" => {
                for (path, entry) in &entries {
                    self.signal(path, "PropertiesChanged", entry).await?;
                }
            }
            other => bail!("no way {other} to tell a change: items, properties, store, signal"),
        }
        Ok(())
    }

    /// One ItemsChanged in which each of the paths is one more than before.
    pub async fn count_up(&mut self, paths: &[String]) -> Result<()> {
        let mut entries = Items::new();
        for path in paths {
            let before = self.items.get(path).and_then(|entry| entry.get("Value")).and_then(|value| f64::try_from(value).ok());
            entries.insert(path.clone(), item(before.unwrap_or_default() + 1.0).0);
        }
        self.change("items", entries).await
    }

    /// Any signal: a struct is the arguments, anything else the only one.
    pub async fn raw(&self, path: &str, member: &str, value: OwnedVariant) -> Result<()> {
        let arguments = match Variant::from(value) {
            Variant::Structure(structure) => structure,
            single => StructureBuilder::new().append_field(single).build()?,
        };
        let arguments: Structure<'_> = arguments;
        send(&self.connection, &Message::signal(path, BUS_ITEM, member).build(&arguments)?).await;
        Ok(())
    }

    async fn signal(&self, path: &str, member: &str, body: &(impl serde::Serialize + zbus::DynamicType)) -> Result<()> {
        send(&self.connection, &Message::signal(path, BUS_ITEM, member).build(body)?).await;
        Ok(())
    }

    async fn set_value(&mut self, call: &Message, path: String, value: Option<OwnedVariant>, mode: &str) -> Result<()> {
        let Some(value) = value else {
            send(&self.connection, &error(call, "org.freedesktop.DBus.Error.InvalidArgs")?).await;
            return Ok(());
        };
        let code = match mode.split_once(':') {
            Some(("refuse", code)) => code.parse().context("refuse:N wants a number")?,
            _ => 0,
        };
        match mode {
            "hold" => {
                self.held.push(Held::Set { call: call.clone(), path, value });
                return Ok(());
            }
            "unknown-method" | "error" => {
                let name = if mode == "error" { "com.victronenergy.Fake.Failed" } else { UNKNOWN_METHOD };
                send(&self.connection, &error(call, name)?).await;
                return Ok(());
            }
            _ => {}
        }
        let reply = Message::method_return(&call.header()).build(&(code,))?;
        let order = self.behaviour.get("signal").map_or("before", String::as_str).to_owned();
        let before = self.find(&path).and_then(|entry| entry.get("Value")) == Some(&value);
        // velib gives 0 and sends no signal when the value is the same already
        let tell = code == 0 && !before;
        if order == "after" {
            send(&self.connection, &reply).await;
        }
        if tell {
            let entries = Items::from([(path, item(Variant::from(value)).0)]);
            self.change(if order == "none" { "store" } else { "properties" }, entries).await?;
        }
        if order != "after" {
            send(&self.connection, &reply).await;
        }
        Ok(())
    }

    fn mode(&self, what: &str) -> &str {
        self.behaviour.get(what).or_else(|| self.behaviour.get("*")).map_or("answer", String::as_str)
    }

    fn find(&self, path: &str) -> Option<&Entry> {
        self.items.get(path).or_else(|| self.hidden.get(path))
    }

    fn answer(&self, call: &Message, path: &str, member: &str) -> Result<Message> {
        let reply = Message::method_return(&call.header());
        if member == "Introspect" {
            return Ok(reply.build(&(self.introspect(path),))?);
        }
        if let Some(entry) = self.find(path) {
            let property = |name: &str| entry.get(name).map_or_else(|| Ok(owned(Vec::<i32>::new())), OwnedVariant::try_clone);
            return Ok(match member {
                "GetValue" => reply.build(&property("Value")?)?,
                "GetText" => reply.build(&(String::try_from(property("Text")?).unwrap_or_default(),))?,
                "GetMin" => reply.build(&property("Min")?)?,
                "GetMax" => reply.build(&property("Max")?)?,
                "GetDefault" => reply.build(&property("Default")?)?,
                _ => error(call, UNKNOWN_METHOD)?,
            });
        }
        match member {
            "GetItems" if path == "/" => Ok(reply.build(&self.items)?),
            "GetValue" if path == "/" || !self.below(path).is_empty() => Ok(reply.build(&Variant::from(self.tree(path)?))?),
            // the object is not there; velib's bindings say so by this name
            _ if path != "/" && self.below(path).is_empty() => error(call, "org.freedesktop.DBus.Error.UnknownObject"),
            _ => error(call, UNKNOWN_METHOD),
        }
    }

    /// Values of everything below an inner path.
    fn tree(&self, path: &str) -> Result<BTreeMap<String, Variant<'static>>> {
        let slash = if self.behaviour.get("keys").is_some_and(|keys| keys == "slash") { "/" } else { "" };
        let mut values = BTreeMap::new();
        for (relative, entry) in self.below(path) {
            let value = entry.get("Value").map_or_else(|| Ok(owned(Vec::<i32>::new())), OwnedVariant::try_clone)?;
            values.insert(format!("{slash}{relative}"), Variant::from(value));
        }
        Ok(values)
    }

    /// Items below an inner path, by what remains of their own.
    fn below<'a>(&'a self, path: &str) -> Vec<(&'a str, &'a Entry)> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        self.items.iter().filter_map(|(path, entry)| Some((path.strip_prefix(&prefix)?, entry))).collect()
    }

    fn introspect(&self, path: &str) -> String {
        let mut xml = String::from(
            "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n\"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n",
        );
        let _ = writeln!(xml, "<node name=\"{path}\">");
        if self.items.contains_key(path) {
            let _ = writeln!(
                xml,
                "  <interface name=\"{BUS_ITEM}\">\n    <method name=\"GetValue\"><arg direction=\"out\" type=\"v\"/></method>\n    <method name=\"SetValue\"><arg direction=\"in\" type=\"v\" name=\"newvalue\"/><arg direction=\"out\" type=\"i\"/></method>\n  </interface>"
            );
        }
        let children: BTreeSet<&str> = self.below(path).iter().filter_map(|(relative, _)| relative.split('/').next()).collect();
        for child in children {
            let _ = writeln!(xml, "  <node name=\"{child}\"/>");
        }
        xml.push_str("</node>\n");
        xml
    }
}

/// Sends; a connection that is gone has nobody to tell.
pub async fn send(connection: &Connection, message: &Message) {
    let _ = connection.send(message).await;
}

fn error(call: &Message, name: &str) -> Result<Message> {
    let header = call.header();
    let text = format!("{} of {}", header.member().map_or("?", |member| member.as_str()), header.path().map_or("?", |path| path.as_str()));
    Ok(Message::error(&header, name).build(&(text,))?)
}

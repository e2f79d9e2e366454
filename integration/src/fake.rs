//! The scenario's side of `fake-venus`: orders over the bus, and the scenario's own view of the bus.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Serialize, de::DeserializeOwned};
use tokio::runtime::Runtime;
use zbus::{Connection, DynamicType, OwnedVariant, Type, Variant, connection};

use crate::{DEADLINE, eventually, items::Items};

const NAME: &str = "org.venusmqtt.Fake";
/// localsettings, and who gives the fake one its orders.
pub const SETTINGS: &str = "com.victronenergy.settings";
const SETTINGS_ORDERS: &str = "org.venusmqtt.FakeSettings";
const BUS: &str = "org.freedesktop.DBus";

/// Gives orders to the fake services of one rig. An order that fails ends the test with the reason.
pub struct Fake {
    runtime: Runtime,
    connection: Connection,
}

/// A call a fake service received.
#[derive(Debug)]
pub struct Call {
    pub path: String,
    /// empty when the call had no interface header
    pub interface: String,
    pub member: String,
    /// of a SetValue: the value, with the type it had on the wire
    pub value: OwnedVariant,
}

impl Call {
    /// `SetValue /Mode i 3`: the value's type on the wire, then the value as JSON.
    pub fn show(&self) -> String {
        if self.member == "SetValue" {
            format!("SetValue {} {}", self.path, show_value(&self.value))
        } else {
            format!("{} {}", self.member, self.path)
        }
    }
}

impl Fake {
    /// Connects to the bus, and waits for the fakes to be there.
    pub fn connect(address: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let connection = runtime
            .block_on(async { connection::Builder::address(address).method_timeout(DEADLINE).build().await })
            .with_context(|| format!("connecting to the bus at {address}"))?;
        let fake = Self { runtime, connection };
        eventually("the fake services' own name on the bus", DEADLINE, || fake.names().contains(&NAME.to_owned()).then_some(()));
        Ok(fake)
    }

    /// A service of the style `normal`: it answers everything.
    pub fn add(&self, handle: &str, items: Items) {
        self.add_styled(handle, "normal", items);
    }

    /// Styles: `normal`, `older`, `leaves`, `mute`, `dies`, `late`.
    pub fn add_styled(&self, handle: &str, style: &str, items: Items) {
        self.order::<()>("AddService", &(handle, style, items));
    }

    /// Items only `GetValue` knows.
    pub fn add_hidden(&self, handle: &str, items: Items) {
        self.order::<()>("AddHidden", &(handle, items));
    }

    pub fn remove(&self, handle: &str) {
        self.order::<()>("RemoveService", &handle);
    }

    /// Takes one more name on the service's connection.
    pub fn take_name(&self, handle: &str, name: &str) {
        self.order::<()>("Rename", &(handle, name, true));
    }

    pub fn drop_name(&self, handle: &str, name: &str) {
        self.order::<()>("Rename", &(handle, name, false));
    }

    /// One ItemsChanged with these entries, exactly as they are.
    pub fn items_changed(&self, handle: &str, entries: Items) {
        self.order::<()>("Change", &(handle, "items", entries));
    }

    /// One PropertiesChanged for each entry, exactly as it is.
    pub fn properties_changed(&self, handle: &str, entries: Items) {
        self.order::<()>("Change", &(handle, "properties", entries));
    }

    /// A change without a signal.
    pub fn store(&self, handle: &str, entries: Items) {
        self.order::<()>("Change", &(handle, "store", entries));
    }

    /// A signal without a change.
    pub fn signal_only(&self, handle: &str, entries: Items) {
        self.order::<()>("Change", &(handle, "signal", entries));
    }

    /// Any signal of the item interface, with any argument (a struct: several).
    pub fn raw_signal(&self, handle: &str, path: &str, member: &str, body: impl Into<Variant<'static>>) {
        self.order::<()>("Raw", &(handle, path, member, body.into()));
    }

    /// `signals` ItemsChanged, one each `every`, in which every path counts up by one. Does not wait for them.
    pub fn flood(&self, handle: &str, paths: &[String], signals: u32, every: Duration) {
        let every = u32::try_from(every.as_micros()).expect("less than an hour");
        self.order::<()>("Flood", &(handle, paths, signals, every));
    }

    /// What a service does when it is called: see `fake-venus/service.rs`.
    pub fn behave(&self, handle: &str, what: &str, mode: &str) {
        self.order::<()>("Behave", &(handle, what, mode));
    }

    /// Answers what was held; says how many calls that were.
    pub fn release(&self, handle: &str) -> u32 {
        self.order("Release", &handle)
    }

    pub fn calls(&self, handle: &str) -> Vec<Call> {
        let calls: Vec<(String, String, String, OwnedVariant)> = self.order("Calls", &handle);
        calls.into_iter().map(|(path, interface, member, value)| Call { path, interface, member, value }).collect()
    }

    /// The calls of one kind, as text: `SetValue /Mode i 3`.
    pub fn calls_of(&self, handle: &str, member: &str) -> Vec<String> {
        self.calls(handle).iter().filter(|call| call.member == member).map(Call::show).collect()
    }

    /// Waits until a call is logged that shows as `wanted`.
    pub fn await_call(&self, handle: &str, wanted: &str) {
        eventually(&format!("the call {wanted} to {handle}"), DEADLINE, || {
            self.calls(handle).iter().any(|call| call.show() == wanted).then_some(())
        });
    }

    /// The unique name of a service's connection.
    pub fn owner(&self, handle: &str) -> String {
        self.order("Owner", &handle)
    }

    /// The names on the bus.
    pub fn names(&self) -> Vec<String> {
        self.call(BUS, "/org/freedesktop/DBus", BUS, "ListNames", &()).unwrap_or_default()
    }

    /// `GetValue` of an item, as any other program on the bus would call it.
    pub fn value(&self, service: &str, path: &str) -> Result<OwnedVariant> {
        self.call(service, path, "com.victronenergy.BusItem", "GetValue", &())
    }

    /// `SetValue` of an item, as any other program on the bus would call it.
    pub fn set_value(&self, service: &str, path: &str, value: impl Into<Variant<'static>>) -> Result<i32> {
        self.call(service, path, "com.victronenergy.BusItem", "SetValue", &value.into())
    }

    /// How many connections the bus has, ours included.
    pub fn connections(&self) -> usize {
        self.names().iter().filter(|name| name.starts_with(':')).count()
    }

    /// Any call of any service.
    pub fn call<T>(&self, service: &str, path: &str, interface: &str, member: &str, body: &(impl Serialize + DynamicType)) -> Result<T>
    where
        T: DeserializeOwned + Type,
    {
        let reply = self.runtime.block_on(self.connection.call_method(Some(service), path, Some(interface), member, body));
        let reply = reply.with_context(|| format!("{member} of {service} {path}"))?;
        Ok(reply.body().deserialize()?)
    }

    /// A call without an interface header.
    pub fn call_without_interface<T>(&self, service: &str, path: &str, member: &str, body: &(impl Serialize + DynamicType)) -> Result<T>
    where
        T: DeserializeOwned + Type,
    {
        let reply = self.runtime.block_on(self.connection.call_method(Some(service), path, None::<&str>, member, body));
        let reply = reply.with_context(|| format!("{member} of {service} {path}"))?;
        Ok(reply.body().deserialize()?)
    }

    /// `GetValue`, shown with its type on the wire: `i 5`; or why not.
    pub fn shown(&self, service: &str, path: &str) -> String {
        self.value(service, path).map_or_else(|error| format!("{error:#}"), |value| show_value(&value))
    }

    /// Waits until `GetValue` shows as `wanted`.
    pub fn await_shown(&self, service: &str, path: &str, wanted: &str) {
        let mut last = String::new();
        let end = std::time::Instant::now() + DEADLINE;
        while last != wanted {
            assert!(std::time::Instant::now() < end, "{service} {path} should be {wanted}, but is {last}");
            last = self.shown(service, path);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The unique name of who has this name.
    pub fn owner_of(&self, name: &str) -> Option<String> {
        self.call(BUS, "/org/freedesktop/DBus", BUS, "GetNameOwner", &name).ok()
    }

    /// Waits until somebody has this name; who.
    pub fn await_name(&self, name: &str) -> String {
        eventually(&format!("{name} on the bus"), DEADLINE, || self.owner_of(name))
    }

    /// Waits until nobody has this name.
    pub fn await_no_name(&self, name: &str) {
        eventually(&format!("{name} gone from the bus"), DEADLINE, || self.owner_of(name).is_none().then_some(()));
    }

    /// What the fake localsettings does when it is called: see `fake-localsettings/main.rs`.
    pub fn settings_behave(&self, member: &str, mode: &str) {
        let done: Result<()> = self.call(SETTINGS, "/", SETTINGS_ORDERS, "Behave", &(member, mode));
        done.expect("the fake localsettings takes orders");
    }

    /// Does and answers what localsettings held; says how many calls that were.
    pub fn settings_release(&self) -> u32 {
        self.call(SETTINGS, "/", SETTINGS_ORDERS, "Release", &()).expect("the fake localsettings takes orders")
    }

    /// What localsettings was called for: member and path.
    pub fn settings_calls(&self) -> Vec<String> {
        let calls: Vec<(String, String)> =
            self.call(SETTINGS, "/", SETTINGS_ORDERS, "Calls", &()).expect("the fake localsettings takes orders");
        calls.into_iter().map(|(path, member)| format!("{member} {path}")).collect()
    }

    /// Everything localsettings has, by path: value with its type.
    pub fn settings(&self) -> std::collections::BTreeMap<String, String> {
        let items: Items = self.call(SETTINGS, "/", "com.victronenergy.BusItem", "GetItems", &()).expect("localsettings answers");
        items.into_iter().map(|(path, entry)| (path, entry.get("Value").map(show_value).unwrap_or_default())).collect()
    }

    fn order<T: DeserializeOwned + Type>(&self, member: &str, body: &(impl Serialize + DynamicType)) -> T {
        match self.call(NAME, "/", NAME, member, body) {
            Ok(answer) => answer,
            Err(error) => panic!("the fake services refuse {member}: {error:#}"),
        }
    }
}

/// A value with its type on the wire: `i 5`.
pub fn show_value(value: &OwnedVariant) -> String {
    let value = Variant::from(value.try_clone().expect("no file descriptors"));
    format!("{} {}", value.value_signature(), json(&value))
}

/// What a value looks like, whatever the width of its numbers.
fn json(value: &Variant<'_>) -> String {
    let join = |parts: Vec<String>| parts.join(",");
    match value {
        Variant::U8(n) => n.to_string(),
        Variant::I16(n) => n.to_string(),
        Variant::U16(n) => n.to_string(),
        Variant::I32(n) => n.to_string(),
        Variant::U32(n) => n.to_string(),
        Variant::I64(n) => n.to_string(),
        Variant::U64(n) => n.to_string(),
        Variant::F64(n) => format!("{n:?}"),
        Variant::Bool(b) => b.to_string(),
        Variant::Str(text) => format!("{:?}", text.as_str()),
        Variant::Variant(inner) => json(inner),
        Variant::Array(array) => format!("[{}]", join(array.inner().iter().map(json).collect())),
        Variant::Dict(dict) => format!("{{{}}}", join(dict.iter().map(|(key, value)| format!("{}:{}", json(key), json(value))).collect())),
        other => other.to_string(),
    }
}

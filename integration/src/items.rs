//! Items as they travel between a scenario, the fakes and the bus: what `GetItems` answers, `a{sa{sv}}`.
//!
//! One form for everything: a value keeps its D-Bus type from the scenario to the wire, and an entry may be as partial as real
//! services make them (only `Min`, only `Text`).

use std::collections::BTreeMap;

use zbus::{Array, OwnedVariant, Signature, Variant};

/// The properties of one item: `Value`, `Text`, and `Min`, `Max`, `Default` where they exist.
pub type Entry = BTreeMap<String, OwnedVariant>;
/// Items by path.
pub type Items = BTreeMap<String, Entry>;

/// An item with a value, and the text a service would show for it.
pub fn item(value: impl Into<Variant<'static>>) -> Item {
    let value = value.into();
    let text = text_of(&value);
    Item::bare().with("Value", value).with("Text", text)
}

/// An item that exists but has no value: an empty array of integers.
pub fn invalid() -> Item {
    item(empty_array("i")).with("Text", "---")
}

/// An empty array whose elements have the signature `element`: "no value", whatever the element.
pub fn empty_array(element: &str) -> Variant<'static> {
    let element = Signature::try_from(element).expect("a signature of one type");
    Variant::Array(Array::new(&element))
}

/// Items by path, for a service or a signal.
pub fn items<const N: usize>(list: [(&str, Item); N]) -> Items {
    list.into_iter().map(|(path, item)| (path.to_owned(), item.0)).collect()
}

/// One item being put together.
pub struct Item(pub Entry);

impl Item {
    /// Nothing at all: for entries that only carry limits or a text.
    pub fn bare() -> Self {
        Self(Entry::new())
    }

    pub fn with(mut self, key: &str, value: impl Into<Variant<'static>>) -> Self {
        self.0.insert(key.to_owned(), owned(value));
        self
    }

    pub fn limits(self, min: impl Into<Variant<'static>>, max: impl Into<Variant<'static>>) -> Self {
        self.with("Min", min).with("Max", max)
    }

    pub fn default(self, value: impl Into<Variant<'static>>) -> Self {
        self.with("Default", value)
    }
}

/// A value that owns what it holds (a file descriptor would be the only thing that cannot be copied).
pub fn owned(value: impl Into<Variant<'static>>) -> OwnedVariant {
    OwnedVariant::try_from(value.into()).expect("no file descriptors in items")
}

/// A copy of an entry.
pub fn copy(entry: &Entry) -> Entry {
    entry.iter().map(|(key, value)| (key.clone(), value.try_clone().expect("no file descriptors in items"))).collect()
}

/// What `GetText` would say.
fn text_of(value: &Variant<'_>) -> String {
    match value {
        Variant::Array(array) if array.is_empty() => "---".into(),
        Variant::Str(text) => text.to_string(),
        Variant::F64(number) => format!("{number:.2}"),
        other => other.to_string(),
    }
}

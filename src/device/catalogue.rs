//! The types of services that devices can have, with all their items: what ships with the daemon, and what users add in files of
//! their own. Pure.
//!
//! What ships is `catalogue.yml`, whose head says what may be written; users' files are the same, and so is a `services.yml` of
//! dbus-mqtt-devices. A type that ships is parsed when it is first asked for. A mistake in a file is told with its line and what to
//! do, and costs its type only: one that ships stays as it is. No text, however wrong, does more than that.

mod pattern;
mod read;
mod service_type;
mod spec;
mod yaml;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use service_type::ServiceType;
pub use spec::{ItemSpec, Kind};

use crate::text::{escape, escape_to};

use pattern::PATHS_MAX;
use read::Items;
use yaml::{Chunk, Key, Node, What};

const SHIPPED: &str = include_str!("catalogue.yml");
/// Groups whose items every type has.
const COMMON: [&str; 2] = ["_common", "_switch"];
/// Names of types that Venus OS has a meaning of its own for.
const TAKEN: [&str; 4] = ["platform", "settings", "system", "vecan"];

/// Longest name of a type, in bytes.
const NAME_MAX: usize = 32;
/// Most types, and groups, in one file.
const TYPES_MAX: usize = 64;
/// Most mistakes told of one file: whoever corrects these sees the rest.
const MISTAKES_MAX: usize = 50;
/// Longest mistake, in characters.
const MISTAKE_MAX: usize = 400;

/// All types of services.
pub struct Catalogue {
    /// What ships, by name; groups begin with `_`.
    shipped: BTreeMap<&'static str, Chunk<'static>>,
    groups: BTreeMap<&'static str, OnceCell<Arc<Items>>>,
    types: BTreeMap<Box<str>, Entry>,
}

/// A type that ships, one that a user has added, or both.
#[derive(Default)]
struct Entry {
    /// What users have added, in the order of their files.
    added: Vec<Items>,
    built: OnceCell<Arc<ServiceType>>,
}

impl Catalogue {
    /// What ships with the daemon. Cheap: a type is parsed when it is first asked for.
    pub fn shipped() -> Self {
        let shipped: BTreeMap<_, _> = yaml::chunks(SHIPPED).into_iter().map(|chunk| (chunk.name(), chunk)).collect();
        let (groups, types): (Vec<_>, Vec<_>) = shipped.keys().copied().partition(|name| is_group(name));
        Self {
            shipped,
            groups: groups.into_iter().map(|name| (name, OnceCell::new())).collect(),
            types: types.into_iter().map(|name| (name.into(), Entry::default())).collect(),
        }
    }

    /// Adds what a user's own file has: types, and items of types that exist (an item given again replaces the one before). Each
    /// mistake costs its type only; what is taken, but not as it is written, costs nothing.
    pub fn add_file(&mut self, file: &str, text: &str) -> Vec<Mistake> {
        let mut wrong = Vec::new();
        let (groups, types): (Vec<_>, Vec<_>) = top_level(text, &mut wrong).into_iter().partition(|(key, _)| is_group(&key.text));
        let mut remarks = Vec::new();
        let groups = self.read_groups(&groups, &mut wrong, &mut remarks);
        for (key, node) in &types {
            let mut found = Vec::new();
            let find_group = |name: &str| groups.get(name).cloned().or_else(|| self.group(name));
            let items = read::items(&key.text, node, &find_group, &mut found, &mut remarks);
            if found.is_empty() {
                found.extend(self.add_type(key, items).err());
            }
            wrong.append(&mut found);
        }
        remarks.truncate(MISTAKES_MAX);
        wrong.append(&mut remarks);
        mistakes(file, wrong)
    }

    /// The names of all types, sorted.
    pub fn types(&self) -> Vec<&str> {
        self.types.keys().map(|name| &**name).collect()
    }

    /// The type of this name. It is parsed once and then shared.
    pub fn service_type(&self, name: &str) -> Option<Arc<ServiceType>> {
        let entry = self.types.get(name)?;
        Some(entry.built.get_or_init(|| Arc::new(ServiceType::new(self.items_of(name)))).clone())
    }

    fn read_groups(&self, groups: &[(Key, Node)], wrong: &mut Vec<Wrong>, remarks: &mut Vec<Wrong>) -> BTreeMap<Box<str>, Arc<Items>> {
        let mut read = BTreeMap::new();
        for (Key { line, text: name }, node) in groups {
            let mut found = Vec::new();
            let items = read::items(name, node, &|_| None, &mut found, remarks);
            if self.groups.contains_key(&**name) {
                found.push(Wrong { line: *line, text: format!("{name}: there is such a group already; choose another name") });
            }
            if found.is_empty() {
                read.insert(name.clone(), Arc::new(items));
            }
            wrong.append(&mut found);
        }
        read
    }

    fn add_type(&mut self, key: &Key, items: Items) -> Result<(), Wrong> {
        let name = &*key.text;
        let mut all = self.items_of(name);
        all.extend(items.iter().map(|(path, spec)| (path.clone(), spec.clone())));
        check(&all).map_err(|text| Wrong { line: key.line, text: format!("{name}: {text}") })?;
        let entry = self.types.entry(name.into()).or_default();
        entry.added.push(items);
        entry.built = OnceCell::new();
        Ok(())
    }

    /// All items of a type; of one that is not there, those that every type has.
    fn items_of(&self, name: &str) -> Items {
        let mut all = Items::new();
        let mut add = |items: &Items| all.extend(items.iter().map(|(path, spec)| (path.clone(), spec.clone())));
        COMMON.iter().filter_map(|group| self.group(group)).for_each(|group| add(&group));
        add(&self.read_shipped(name, &mut Vec::new()));
        self.types.get(name).iter().flat_map(|entry| &entry.added).for_each(add);
        all
    }

    fn group(&self, name: &str) -> Option<Arc<Items>> {
        let cell = self.groups.get(name)?;
        Some(cell.get_or_init(|| Arc::new(self.read_shipped(name, &mut Vec::new()))).clone())
    }

    fn read_shipped(&self, name: &str, wrong: &mut Vec<Wrong>) -> Items {
        let Some(chunk) = self.shipped.get(name) else { return Items::new() };
        match chunk.parse() {
            Ok(Node { what: What::Map(entries), .. }) => {
                let mut remarks = Vec::new();
                let read = |(_, node): &(Key, Node)| read::items(name, node, &|group| self.group(group), wrong, &mut remarks);
                let items = entries.iter().flat_map(read).collect();
                wrong.append(&mut remarks);
                items
            }
            Ok(Node { line, .. }) => {
                wrong.push(Wrong { line, text: "must be a mapping".into() });
                Items::new()
            }
            Err(error) => {
                wrong.push(error);
                Items::new()
            }
        }
    }
}

/// Something wrong in a file: `file:line: what; what to do`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake {
    pub file: Box<str>,
    pub line: usize,
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", escape(&self.file), self.line, escape_to(&self.text, MISTAKE_MAX))
    }
}

/// A mistake, before anybody knows in which file.
#[derive(Debug)]
struct Wrong {
    line: usize,
    text: String,
}

fn mistakes(file: &str, mut wrong: Vec<Wrong>) -> Vec<Mistake> {
    wrong.sort_by_key(|wrong| wrong.line);
    if wrong.len() > MISTAKES_MAX {
        wrong.truncate(MISTAKES_MAX);
        let line = wrong.last().map_or(1, |wrong| wrong.line);
        wrong.push(Wrong { line, text: "there are more mistakes below; correct these first".into() });
    }
    wrong.into_iter().map(|Wrong { line, text }| Mistake { file: file.into(), line, text }).collect()
}

/// The types and groups of a file, those with a name that cannot be left out.
fn top_level(text: &str, wrong: &mut Vec<Wrong>) -> Vec<(Key, Node)> {
    let mut all: Vec<(Key, Node)> = Vec::new();
    for chunk in yaml::chunks(text) {
        let entries = match chunk.parse() {
            Ok(Node { what: What::Map(entries), .. }) => entries,
            Ok(Node { line, .. }) => {
                let text = format!("{}: must be a type with a colon, and its items below it", escape(chunk.name()));
                wrong.push(Wrong { line, text });
                continue;
            }
            Err(Wrong { line, text }) => {
                wrong.push(Wrong { line, text: format!("{}: {text}", escape(chunk.name())) });
                continue;
            }
        };
        for (key, node) in entries {
            let first = all.iter().find(|(known, _)| known.text == key.text).map(|(known, _)| known.line);
            let error = match first {
                _ if wrong.len() > MISTAKES_MAX => return all,
                _ if all.len() >= TYPES_MAX => {
                    wrong.push(Wrong { line: key.line, text: format!("more than {TYPES_MAX} types in a file; write a second file") });
                    return all;
                }
                Some(first) => Err(format!("is there already, in line {first}, which counts; write the items of both below one of them")),
                None => check_name(&key.text),
            };
            match error {
                Ok(()) => all.push((key, node)),
                Err(text) => wrong.push(Wrong { line: key.line, text: format!("{}: {text}", escape(&key.text)) }),
            }
        }
    }
    all
}

fn is_group(name: &str) -> bool {
    name.starts_with('_')
}

fn check_name(name: &str) -> Result<(), String> {
    let bare = name.strip_prefix('_').unwrap_or(name);
    let is_word = bare.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !is_word || !bare.starts_with(|c: char| c.is_ascii_alphabetic()) || name.len() > NAME_MAX {
        return Err(format!("not the name of a type; use at most {NAME_MAX} letters, digits and _, a letter first"));
    }
    if TAKEN.contains(&name) {
        return Err("Venus OS itself has services of this type; choose another name".into());
    }
    Ok(())
}

/// What can only be seen of all items together.
fn check(items: &Items) -> Result<(), String> {
    if items.len() > PATHS_MAX {
        return Err(format!("it has more than {PATHS_MAX} items, with those it has without saying so; write fewer"));
    }
    let kept = || items.iter().filter(|(_, spec)| spec.kept).map(|(path, _)| path);
    for path in kept() {
        let is_below = |other: &str| other.strip_prefix(&**path).is_some_and(|rest| rest.starts_with('/'));
        if let Some(below) = kept().find(|other| is_below(other)) {
            return Err(format!("{path} and {below} cannot both be kept as settings; remove `persist` from one"));
        }
    }
    Ok(())
}

/// The word that was probably meant.
fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // a long one is none of ours, and costs its length
    let words = words.filter(|_| word.len() <= NAME_MAX);
    let known = words.map(|known| (strsim::damerau_levenshtein(word, known), known)).min();
    known.filter(|(distance, known)| *distance <= known.len().div_ceil(3)).map(|(_, known)| known)
}

#[cfg(test)]
mod tests;

//! A type with all its items: those that every service of it has, and families that come into being when they are written.

use std::sync::Arc;

use crate::bridge::value::Value;

use super::ItemSpec;
use super::pattern;
use super::read::Items;

/// The default that stands for the label of a family's member.
const LABEL: &str = "{x}";

/// What a service of one type is made of.
#[derive(Debug)]
pub struct ServiceType {
    /// The items that every service of the type has, by their path (`/Ac/Power`).
    pub items: Vec<(Box<str>, Arc<ItemSpec>)>,
    families: Vec<Family>,
}

/// Items that belong together: a day's yields, all that an output has.
#[derive(Debug)]
struct Family {
    /// To the last placeholder: `/History/Daily/{0..30}`.
    prefix: Box<str>,
    /// What follows, such as `/Yield`.
    members: Vec<(Box<str>, Arc<ItemSpec>)>,
}

impl ServiceType {
    pub(super) fn new(all: Items) -> Self {
        let mut items = Vec::new();
        let mut families: Vec<Family> = Vec::new();
        for (path, spec) in all {
            let Some((prefix, suffix)) = path.rfind('}').and_then(|at| path.split_at_checked(at + 1)) else {
                items.push((path, spec));
                continue;
            };
            match families.iter_mut().find(|family| &*family.prefix == prefix) {
                Some(family) => family.members.push((suffix.into(), spec)),
                None => families.push(Family { prefix: prefix.into(), members: vec![(suffix.into(), spec)] }),
            }
        }
        Self { items, families }
    }

    /// The items that come into being together when `path`, which the service does not have, is written; empty when it belongs to
    /// no family.
    pub fn family_of(&self, path: &str) -> Vec<(Box<str>, Arc<ItemSpec>)> {
        let Some((family, prefix)) = self.families.iter().find_map(|family| Some((family, family.prefix_of(path)?))) else {
            return Vec::new();
        };
        let is_new = |path: &str| self.items.iter().all(|(known, _)| &**known != path);
        let members = family.members.iter().map(|(suffix, spec)| (format!("{prefix}{suffix}").into(), labelled(spec, prefix)));
        members.filter(|(path, _): &(Box<str>, _)| is_new(path)).collect()
    }
}

impl Family {
    /// The part of `path` that the prefix stands for, if a member follows it.
    fn prefix_of<'a>(&self, path: &'a str) -> Option<&'a str> {
        let mut rest = path;
        for segment in pattern::segments(&self.prefix) {
            let below = rest.strip_prefix('/')?;
            let (text, _) = below.split_once('/').unwrap_or((below, ""));
            if !segment?.matches(text) {
                return None;
            }
            rest = below.strip_prefix(text)?;
        }
        self.members.iter().any(|(suffix, _)| &**suffix == rest).then(|| path.strip_suffix(rest))?
    }
}

fn labelled(spec: &Arc<ItemSpec>, prefix: &str) -> Arc<ItemSpec> {
    match &spec.default {
        Value::Str(text) if &**text == LABEL => {
            let label = prefix.rsplit('/').next().unwrap_or_default();
            Arc::new(ItemSpec { default: Value::Str(label.into()), ..(**spec).clone() })
        }
        _ => spec.clone(),
    }
}

//! The IDs that devices give themselves and their services. Whatever passes can be one level of a topic.

use std::fmt;

use crate::bridge::limits;
use crate::bridge::topic::is_level;
use crate::text::escape;

/// A client ID, or the ID of a service: 1 to 32 characters, as the device wrote it and as the bus can bear it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Id {
    raw: Box<str>,
    name: Box<str>,
}

impl Id {
    pub fn parse(raw: &str) -> Result<Self, String> {
        match raw.chars().count() {
            0 => Err("is empty; take 1 to 32 letters and digits".into()),
            count if count > limits::ID => Err(format!("has {count} characters; take 1 to {}", limits::ID)),
            // no level of a topic, or a path in disguise
            _ if !is_level(raw) || raw.contains("..") => {
                Err(format!("\"{}\" holds what no ID can hold; take letters and digits", escape(raw)))
            }
            _ => Ok(Self { raw: raw.into(), name: raw.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect() }),
        }
    }

    /// What the device calls it.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// What stands in names on the bus and in settings.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(&self.raw).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (raw, name) in [("fe001", "fe001"), ("a-b.c d", "a_b_c_d"), ("é", "_"), ("$x", "_x")] {
            let id = Id::parse(raw).unwrap();
            assert_eq!((id.raw(), id.name()), (raw, name));
        }
        assert!(Id::parse(&"é".repeat(32)).is_ok());
        for bad in ["", "a/b", "..", "../x", "a\nb", "a+", "#", "\u{7f}", "a\u{fffe}", "\u{10ffff}", "\0", &"é".repeat(33)] {
            assert!(Id::parse(bad).is_err(), "{bad:?}");
        }
    }
}

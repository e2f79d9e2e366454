//! The IDs that devices give themselves and their services.

use std::fmt;

use crate::bridge::limits;

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

    /// Whether it can be one level of a topic that is published.
    pub fn fits_topic(&self) -> bool {
        !self.raw.chars().any(|c| c.is_control() || matches!(c, '/' | '+' | '#'))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::text::escape(&self.raw).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (raw, name, fits) in [
            ("fe001", "fe001", true),
            ("a-b.c d", "a_b_c_d", true),
            ("é", "_", true),
            ("../x", "___x", false),
            ("a\nb", "a_b", false),
            ("a+", "a_", false),
        ] {
            let id = Id::parse(raw).unwrap();
            assert_eq!((id.raw(), id.name(), id.fits_topic()), (raw, name, fits));
        }
        assert!(Id::parse("").is_err() && Id::parse(&"é".repeat(33)).is_err() && Id::parse(&"é".repeat(32)).is_ok());
    }
}

//! Filters over `type/instance/path`, as keep-alives, `always_on` and the access rules use them: `+` is one level,
//! `#` at the end is the rest (also nothing).

use std::fmt;

/// Longest filter taken, in bytes: a service type, an instance and the longest item path fit twice.
pub const FILTER_MAX: usize = 512;

/// A filter that has been checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    text: Box<str>,
}

impl Filter {
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.is_empty() {
            return Err(FilterError::Empty);
        }
        if text.len() > FILTER_MAX {
            return Err(FilterError::TooLong);
        }
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            match level {
                "" => return Err(FilterError::EmptyLevel),
                "#" if levels.peek().is_some() => return Err(FilterError::HashNotLast),
                "#" | "+" => {}
                word if word.contains(['+', '#', '\0']) => return Err(FilterError::Wildcard),
                _ => {}
            }
        }
        Ok(Self { text: text.into() })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the filter takes `type/instance` followed by `path` (which begins with a slash).
    pub fn matches(&self, service_type: &str, instance: &str, path: &str) -> bool {
        let mut topic = [service_type, instance].into_iter().chain(path.split('/').skip(1));
        for level in self.text.split('/') {
            if level == "#" {
                return true;
            }
            match topic.next() {
                Some(part) if level == "+" || level == part => {}
                _ => return false,
            }
        }
        topic.next().is_none()
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilterError {
    Empty,
    TooLong,
    EmptyLevel,
    HashNotLast,
    Wildcard,
}

impl std::error::Error for FilterError {}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the filter is empty: write type/instance/path, such as battery/+/Soc, or # for everything",
            Self::TooLong => "the filter is longer than 512 bytes",
            Self::EmptyLevel => "the filter has an empty level: write it without a leading, trailing or double slash",
            Self::HashNotLast => "`#` stands for the rest: it can only be the last level",
            Self::Wildcard => "`+` and `#` stand for whole levels: they cannot be part of a word",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_filters_take() {
        let table = [
            ("#", "vebus", "257", "/Mode", true),
            ("vebus/#", "vebus", "257", "/Ac/Out/L1/P", true),
            ("vebus/#", "vebusx", "257", "/Mode", false),
            ("solarcharger/+/Dc/0/Voltage", "solarcharger", "279", "/Dc/0/Voltage", true),
            ("solarcharger/+/Dc/0/Voltage", "solarcharger", "279", "/Dc/0/Current", false),
            ("solarcharger/+/Dc/0", "solarcharger", "279", "/Dc/0/Voltage", false),
            ("battery/512/Soc/#", "battery", "512", "/Soc", true),
            ("+/+/Soc", "battery", "512", "/Soc", true),
            ("+/+", "battery", "512", "/Soc", false),
            ("battery", "battery", "512", "/Soc", false),
        ];
        for (filter, service_type, instance, path, expected) in table {
            assert_eq!(
                Filter::parse(filter).unwrap().matches(service_type, instance, path),
                expected,
                "{filter} {service_type}/{instance}{path}"
            );
        }
    }

    #[test]
    fn refused() {
        for (text, error) in [
            ("", FilterError::Empty),
            ("/vebus/#", FilterError::EmptyLevel),
            ("vebus//Mode", FilterError::EmptyLevel),
            ("vebus/", FilterError::EmptyLevel),
            ("#/vebus", FilterError::HashNotLast),
            ("ve#", FilterError::Wildcard),
            ("vebus/2+", FilterError::Wildcard),
        ] {
            assert_eq!(Filter::parse(text), Err(error), "{text}");
        }
        assert_eq!(Filter::parse(&"a".repeat(FILTER_MAX + 1)), Err(FilterError::TooLong));
    }
}

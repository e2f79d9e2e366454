//! Filters over `type/instance/path`, as keep-alives, `always_on` and the access rules use them: `+` is one level,
//! `#` at the end is the rest (also nothing).

use std::collections::BTreeMap;
use std::fmt;

use super::time::Time;
use super::topic::{TopicError, check_filter};

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
        if text.split('/').any(str::is_empty) {
            return Err(FilterError::EmptyLevel);
        }
        check_filter(text).map_err(FilterError::Topic)?;
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

/// Filters, each with the time until which it holds, matched all at once: the cost of a match grows with the levels of the topic and the
/// filters that take them, not with the number of filters.
#[derive(Debug)]
pub struct FilterIndex {
    filters: Vec<(Filter, Time)>,
    /// Bytes of their texts.
    bytes: usize,
    /// The first is the root; filters with the same beginning share their nodes.
    nodes: Vec<Node>,
}

/// The end of the levels that lead to it.
#[derive(Debug, Default)]
struct Node {
    words: BTreeMap<Box<str>, usize>,
    /// The node behind `+`.
    plus: Option<usize>,
    /// The filter that ends here.
    ends: Option<usize>,
    /// The filter that has `#` behind this level.
    rest: Option<usize>,
}

/// What the filters of a [`FilterIndex`] say of one service: made once, asked for each of its items.
#[derive(Clone, Debug)]
pub struct ServiceFilters<'a> {
    index: &'a FilterIndex,
    /// The nodes behind type and instance: each level was taken by its word or by `+`.
    nodes: [Option<usize>; 4],
    /// Of the filters that take the whole service.
    rest: Option<Time>,
}

impl Default for FilterIndex {
    fn default() -> Self {
        Self { filters: Vec::new(), bytes: 0, nodes: vec![Node::default()] }
    }
}

impl FilterIndex {
    /// Adds a filter, or extends its time: the later one counts. False when a new filter would make more than `most` filters, or more
    /// than `most_bytes` bytes of their texts.
    pub fn insert(&mut self, filter: Filter, until: Time, most: usize, most_bytes: usize) -> bool {
        if let Some((_, known)) = self.find(&filter) {
            *known = until.max(*known);
            return true;
        }
        let room = self.filters.len() < most && self.bytes + filter.text.len() <= most_bytes;
        if room {
            self.add(filter, until);
        }
        room
    }

    fn add(&mut self, filter: Filter, until: Time) {
        let number = Some(self.filters.len());
        let mut at = 0;
        for level in filter.text.split('/') {
            let next = self.nodes.len();
            let Some(node) = self.nodes.get_mut(at) else { return };
            at = match level {
                "#" => {
                    node.rest = number;
                    break;
                }
                "+" => *node.plus.get_or_insert(next),
                word => *node.words.entry(word.into()).or_insert(next),
            };
            if at == next {
                self.nodes.push(Node::default());
            }
        }
        if !filter.text.ends_with('#')
            && let Some(node) = self.nodes.get_mut(at)
        {
            node.ends = number;
        }
        self.bytes += filter.text.len();
        self.filters.push((filter, until));
    }

    fn find(&mut self, filter: &Filter) -> Option<&mut (Filter, Time)> {
        let mut at = 0;
        for level in filter.text.split('/') {
            let node = self.nodes.get(at)?;
            at = match level {
                "#" => return self.filters.get_mut(node.rest?),
                "+" => node.plus?,
                word => *node.words.get(word)?,
            };
        }
        self.filters.get_mut(self.nodes.get(at)?.ends?)
    }

    /// Removes the filters whose time has come; true when there were any.
    pub fn expire(&mut self, now: Time) -> bool {
        if self.filters.iter().all(|(_, until)| *until > now) {
            return false;
        }
        let before = std::mem::take(self);
        before.filters.into_iter().filter(|(_, until)| *until > now).for_each(|(filter, until)| self.add(filter, until));
        true
    }

    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// The times of all filters.
    pub fn times(&self) -> impl Iterator<Item = Time> {
        self.filters.iter().map(|(_, until)| *until)
    }

    pub fn of_service(&self, service_type: &str, instance: &str) -> ServiceFilters<'_> {
        let root = self.nodes.first();
        let mut rest = self.time(root.and_then(|root| root.rest));
        let mut nodes = [None; 4];
        let mut places = nodes.iter_mut();
        for behind_type in root.into_iter().flat_map(|root| [root.words.get(service_type).copied(), root.plus]).flatten() {
            let Some(node) = self.nodes.get(behind_type) else { continue };
            rest = rest.max(self.time(node.rest));
            for behind_instance in [node.words.get(instance).copied(), node.plus].into_iter().flatten() {
                rest = rest.max(self.time(self.nodes.get(behind_instance).and_then(|node| node.rest)));
                if let Some(place) = places.next() {
                    *place = Some(behind_instance);
                }
            }
        }
        ServiceFilters { index: self, nodes, rest }
    }

    /// The latest time of the filters that take `path`, which begins with a slash or is empty, behind this node.
    fn latest(&self, at: usize, path: &str) -> Option<Time> {
        let node = self.nodes.get(at)?;
        let rest = self.time(node.rest);
        let Some(levels) = path.strip_prefix('/') else { return rest.max(self.time(node.ends)) };
        let (level, behind) = levels.find('/').map_or((levels, ""), |slash| levels.split_at(slash));
        let next = [node.words.get(level).copied(), node.plus].into_iter().flatten();
        next.filter_map(|next| self.latest(next, behind)).max().max(rest)
    }

    fn time(&self, filter: Option<usize>) -> Option<Time> {
        self.filters.get(filter?).map(|(_, until)| *until)
    }
}

impl ServiceFilters<'_> {
    /// The latest time of the filters that take this item of the service; `None` when no filter does.
    pub fn until(&self, path: &str) -> Option<Time> {
        let each = self.nodes.iter().flatten().map(|node| self.index.latest(*node, path));
        each.fold(self.rest, Option::max)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilterError {
    Empty,
    TooLong,
    EmptyLevel,
    /// What no broker takes either.
    Topic(TopicError),
}

impl std::error::Error for FilterError {}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Topic(TopicError::HashNotLast) => "`#` stands for the rest: it can only be the last level",
            Self::Topic(TopicError::PartOfWord) => "`+` and `#` stand for whole levels: they cannot be part of a word",
            Self::Topic(error) => return write!(f, "the filter {error}"),
            Self::Empty => "the filter is empty: write type/instance/path, such as battery/+/Soc, or # for everything",
            Self::TooLong => "the filter is longer than 512 bytes",
            Self::EmptyLevel => "the filter has an empty level: write it without a leading, trailing or double slash",
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

    proptest::proptest! {
        /// The index says what the filters say one by one.
        #[test]
        fn the_index_agrees_with_its_filters(
            filters in proptest::collection::vec(("([ab+]/){0,5}[ab+#]", 1..100_u64), 0..20),
            service_type in "[abc]", instance in "[abc]", path in "(/[abc]){1,5}",
        ) {
            let at = |micros: u64| Time::since_start(std::time::Duration::from_micros(micros));
            let filters: Vec<_> = filters.iter().map(|(text, until)| (Filter::parse(text).unwrap(), at(*until))).collect();
            let mut index = FilterIndex::default();
            filters.iter().for_each(|(filter, until)| assert!(index.insert(filter.clone(), *until, 20, 1000)));
            let matching = filters.iter().filter(|(filter, _)| filter.matches(&service_type, &instance, &path));
            let expected = matching.map(|(_, until)| *until).max();
            proptest::prop_assert_eq!(index.of_service(&service_type, &instance).until(&path), expected);
        }
    }

    #[test]
    fn an_index_is_bounded() {
        let mut index = FilterIndex::default();
        let mut insert = |text: &str, most, bytes| index.insert(Filter::parse(text).unwrap(), Time::MAX, most, bytes);
        assert!(insert("a/#", 2, 6) && insert("b/#", 2, 6));
        assert!(!insert("c/#", 2, 100), "too many");
        assert!(!insert("c/#", 100, 6), "too long together");
        assert!(insert("a/#", 2, 6), "a filter that is there takes no more room");
        assert!(!index.expire(Time::default()) && index.expire(Time::MAX) && index.is_empty());
    }

    #[test]
    fn refused() {
        for (text, error) in [
            ("", FilterError::Empty),
            ("/vebus/#", FilterError::EmptyLevel),
            ("vebus//Mode", FilterError::EmptyLevel),
            ("vebus/", FilterError::EmptyLevel),
            ("#/vebus", FilterError::Topic(TopicError::HashNotLast)),
            ("ve#", FilterError::Topic(TopicError::PartOfWord)),
            ("vebus/2+", FilterError::Topic(TopicError::PartOfWord)),
            ("vebus/\u{fffe}", FilterError::Topic(TopicError::Character('\u{fffe}'))),
            (&vec!["a"; 200].join("/"), FilterError::Topic(TopicError::TooDeep)),
        ] {
            assert_eq!(Filter::parse(text), Err(error), "{text}");
        }
        assert_eq!(Filter::parse(&"a".repeat(FILTER_MAX + 1)), Err(FilterError::TooLong));
    }
}

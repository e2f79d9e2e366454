//! One item of a service: its value, its limits, and how what messages bring of them is applied.

use super::time::Time;
use super::value::{LIMIT_JSON_MAX, VALUE_JSON_MAX, Value};

/// A change of one item, as a signal or a snapshot brings it. What is `None` was not mentioned.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Change {
    pub value: Option<Value>,
    pub min: Option<Value>,
    pub max: Option<Value>,
    pub default: Option<Value>,
}

impl Change {
    pub fn of(value: Value) -> Self {
        Self { value: Some(value), ..Self::default() }
    }

    /// Of a setting that is removed: nothing of it stays.
    pub fn removal() -> Self {
        let nothing = || Some(Value::Invalid);
        Self { value: nothing(), min: nothing(), max: nothing(), default: nothing() }
    }

    /// Bytes on the heap.
    pub fn heap(&self) -> usize {
        let values = [&self.value, &self.min, &self.max, &self.default];
        values.into_iter().flatten().map(Value::heap).sum()
    }

    /// Removes what is larger than is kept, wherever it came from. True if there was any.
    pub fn cut(&mut self) -> bool {
        let cut = self.value.as_mut().is_some_and(|value| value.cut(VALUE_JSON_MAX));
        let limits = [&mut self.min, &mut self.max, &mut self.default];
        limits.into_iter().flatten().fold(cut, |cut, limit| limit.cut(LIMIT_JSON_MAX) | cut)
    }

    /// What takes no bytes beside itself; the rest is [`Value::Invalid`].
    pub fn without_weight(mut self) -> Self {
        let values = [&mut self.value, &mut self.min, &mut self.max, &mut self.default];
        values.into_iter().flatten().filter(|value| value.heap() > 0).for_each(|value| *value = Value::Invalid);
        self
    }

    pub fn has_limits(&self) -> bool {
        self.min.is_some() || self.max.is_some() || self.default.is_some()
    }
}

/// What signals have brought of an item since the scan of its service began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Touched {
    pub value: bool,
    pub min: bool,
    pub max: bool,
    pub default: bool,
}

impl Touched {
    pub fn add(&mut self, change: &Change) {
        self.value |= change.value.is_some();
        self.min |= change.min.is_some();
        self.max |= change.max.is_some();
        self.default |= change.default.is_some();
    }
}

/// [`Value::Invalid`] where there is none.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Limits {
    pub min: Value,
    pub max: Value,
    pub default: Value,
}

impl Limits {
    fn heap(&self) -> usize {
        [&self.min, &self.max, &self.default].into_iter().map(Value::heap).sum()
    }
}

#[derive(Debug, Default)]
pub struct Item {
    pub value: Value,
    pub limits: Option<Box<Limits>>,
    /// Until when filters of keep-alives want it.
    pub until: Time,
    /// In the outbox.
    pub queued: bool,
    /// In the lane of answers.
    pub answering: bool,
    /// An earlier service has published the topic: an empty payload goes out before the value.
    pub clear_first: bool,
    /// A subscriber may believe the value: it was published and not taken back since.
    pub published: bool,
    pub touched: Touched,
    /// The sweep waits for it to be replayed.
    pub expected: bool,
    /// Removed from its service; kept until its topic has been cleared and nothing that is queued refers to it. A setting of which only
    /// limits are known is not there yet either. Its secrecy is [`Secrecy::Blocked`].
    pub gone: bool,
    pub secrecy: Secrecy,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Secrecy {
    #[default]
    Open,
    Masked,
    /// Never published; also what a special topic stands for.
    Blocked,
}

impl Item {
    /// True when there is something to tell: a change of the text alone is nothing.
    pub fn apply(&mut self, change: Change) -> bool {
        let has_limits = change.has_limits();
        if has_limits {
            let limits = self.limits.get_or_insert_default();
            let Change { min, max, default, .. } = change;
            for (kept, new) in [(&mut limits.min, min), (&mut limits.max, max), (&mut limits.default, default)] {
                if let Some(new) = new {
                    *kept = new;
                }
            }
            if **limits == Limits::default() {
                self.limits = None;
            }
        }
        let has_value = change.value.is_some();
        if let Some(value) = change.value {
            self.value = value;
        }
        has_value || has_limits
    }

    /// Marks the item as queued if it has something to publish, or to take back, and is not queued yet. `awake`: its topic is kept awake.
    pub fn wants_turn(&mut self, awake: bool) -> bool {
        let wants = !self.queued && (self.published || self.clear_first || (awake && self.secrecy != Secrecy::Blocked));
        self.queued |= wants;
        wants
    }

    /// Bytes of its value and limits, beside those that every item takes.
    pub fn heap(&self) -> usize {
        self.value.heap() + self.limits.as_ref().map_or(0, |limits| size_of::<Limits>() + limits.heap())
    }

    /// A snapshot: what a signal has brought meanwhile is newer.
    pub fn apply_snapshot(&mut self, change: Change) {
        let Touched { value, min, max, default } = self.touched;
        let untouched = |part: Option<Value>, touched: bool| part.filter(|_| !touched);
        self.apply(Change {
            value: untouched(change.value, value),
            min: untouched(change.min, min),
            max: untouched(change.max, max),
            default: untouched(change.default, default),
        });
    }

    /// Appends the payload of the notification. `is_setting`: a `min` of 0 with a `max` of 0 means that there are no limits, so neither
    /// is written. Both are stored, because one of them may change alone.
    pub fn write_payload(&self, is_setting: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"value\":");
        if self.secrecy == Secrecy::Masked {
            out.push(b'"');
            out.extend_from_slice(super::access::MASK.as_bytes());
            out.extend_from_slice(b"\"}");
            return;
        }
        self.value.write_json(out);
        if let Some(limits) = &self.limits {
            let is_zero = |value: &Value| matches!(value, Value::Int(0)) || *value == Value::Double(0.0);
            let unlimited = is_setting && is_zero(&limits.min) && is_zero(&limits.max);
            let is_there = |value: &Value| match value {
                Value::Invalid => false,
                Value::Double(number) => number.is_finite(),
                _ => true,
            };
            for (key, value) in [("min", &limits.min), ("max", &limits.max), ("default", &limits.default)] {
                if is_there(value) && !(unlimited && key != "default") {
                    out.extend_from_slice(b",\"");
                    out.extend_from_slice(key.as_bytes());
                    out.extend_from_slice(b"\":");
                    value.write_json(out);
                }
            }
        }
        out.push(b'}');
    }
}

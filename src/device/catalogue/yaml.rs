//! YAML as a tree with the line of everything in it, cut at its top-level keys first: a mistake costs its part only, and what
//! nobody asks for is never parsed.
//!
//! Refused: anchors, aliases, tags, control characters, and nesting deeper than a catalogue's. A plain scalar means what it means to
//! Python's YAML (`yes` is true, `0xA163` and `017` are numbers, `1e3` is a text).

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use crate::bridge::value::Value;

use super::Wrong;

/// The file, a type, an item, a list, and one to spare.
const DEPTH_MAX: usize = 5;

/// A top-level key with all that belongs to it, not yet parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk<'a> {
    pub text: &'a str,
    /// Its first line in the file.
    pub line: usize,
}

impl<'a> Chunk<'a> {
    /// The key, as far as it can be told without parsing.
    pub fn name(&self) -> &'a str {
        let key = self.text.split([':', '\n']).next().unwrap_or_default();
        key.trim().trim_matches(['"', '\''])
    }

    pub fn parse(&self) -> Result<Node, Wrong> {
        // a \r alone would be a line to YAML and to nobody else
        let is_control = |c: char| c.is_control() && !"\n\t".contains(c);
        if let Some(line) = self.text.lines().position(|line| line.contains(is_control)) {
            return Err(Wrong { line: self.line + line, text: "a control character; remove it".into() });
        }
        // what is missing at the end shows below it
        let last = self.line + self.text.trim_end().matches('\n').count();
        let line_of = |mark: &Marker| (self.line + mark.line()).saturating_sub(1).min(last);
        let mut parser = Parser::new_from_str(self.text);
        let mut tree = Tree::default();
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| Wrong {
                line: line_of(error.marker()),
                text: format!("not YAML: {}; correct this line or the one before it", error.info()),
            })?;
            let line = line_of(&span.start);
            tree.take(event, line).map_err(|text| Wrong { line, text })?;
        }
        tree.root.ok_or_else(|| Wrong { line: self.line, text: "nothing is written here; remove it".into() })
    }
}

/// Cuts a file at its top-level keys.
pub fn chunks(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut open, mut at) = (None, 0);
    let mut cut = |open: &mut Option<(usize, usize)>, end: usize| {
        if let Some((start, line)) = open.take() {
            chunks.push(Chunk { text: text.get(start..end).unwrap_or_default(), line });
        }
    };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let here = at;
        at += line.len();
        let content = line.strip_prefix('\u{feff}').unwrap_or(line);
        let trimmed = content.trim();
        let here = here + (line.len() - content.len());
        if trimmed == "---" || trimmed == "..." || trimmed.starts_with("--- #") || content.starts_with('%') {
            cut(&mut open, here);
        } else if trimmed.is_empty() || trimmed.starts_with('#') {
            // belongs to whatever is open
        } else if open.is_none() || !content.starts_with([' ', '\t', '-', '}', ']', ',']) {
            cut(&mut open, here);
            open = Some((here, number + 1));
        }
    }
    cut(&mut open, text.len());
    chunks
}

/// Something in a file, and where it begins.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    pub line: usize,
    pub what: What,
}

#[derive(Clone, PartialEq, Debug)]
pub enum What {
    Scalar { text: Box<str>, plain: bool },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Key {
    pub line: usize,
    pub text: Box<str>,
}

impl Node {
    /// The text of a scalar as it is written; `None` for nothing.
    pub fn text(&self) -> Option<&str> {
        match &self.what {
            What::Scalar { text, plain } if !(*plain && is_null(text)) => Some(text),
            _ => None,
        }
    }

    pub fn is_nothing(&self) -> bool {
        matches!(&self.what, What::Scalar { .. }) && self.text().is_none()
    }

    /// What a scalar, or a list of them, means.
    pub fn value(&self) -> Result<Value, Wrong> {
        match &self.what {
            What::Scalar { .. } if self.is_nothing() => Ok(Value::Invalid),
            What::Scalar { text, plain: true } => Ok(plain(text)),
            What::Scalar { text, .. } => Ok(Value::Str(text.clone())),
            What::List(nodes) => nodes.iter().map(Self::value).collect::<Result<_, _>>().map(Value::Array),
            What::Map(_) => Err(Wrong { line: self.line, text: "must be a value, not a mapping".into() }),
        }
    }

    pub fn truth(&self) -> Option<bool> {
        match self.value() {
            Ok(Value::Bool(truth)) => Some(truth),
            Ok(Value::Int(n @ 0..=1)) => Some(n == 1),
            _ => None,
        }
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn plain(text: &str) -> Value {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Value::Bool(false),
        _ => number(text).unwrap_or_else(|| Value::Str(text.into())),
    }
}

/// The number that a scalar is to PyYAML: as in YAML 1.1 (octal with a leading zero, binary, base 60), but an exponent needs a point before
/// it and a sign, and a number that begins with its point has no sign.
fn number(text: &str) -> Option<Value> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (is_signed, negative) = (unsigned.len() < text.len(), text.starts_with('-'));
    if let Some(n) = integer(unsigned) {
        return Some(Value::Int(if negative { -n } else { n }));
    }
    let double = match unsigned {
        ".inf" | ".Inf" | ".INF" => f64::INFINITY,
        ".nan" | ".NaN" | ".NAN" if !is_signed => f64::NAN,
        _ if is_signed && unsigned.starts_with('.') => return None,
        _ => double(unsigned)?,
    };
    Some(Value::Double(if negative { -double } else { double }))
}

fn integer(text: &str) -> Option<i64> {
    if text.contains(':') {
        return base_60(text).filter(|_| !text.starts_with('0'));
    }
    let (digits, radix) = match (text.strip_prefix("0b"), text.strip_prefix("0x"), text.strip_prefix('0')) {
        (Some(digits), ..) => (digits, 2),
        (_, Some(digits), _) => (digits, 16),
        (.., Some("")) => return Some(0),
        (.., Some(digits)) => (digits, 8),
        _ if text.starts_with('_') => return None,
        _ => (text, 10),
    };
    let digits = digits.chars().filter(|c| *c != '_');
    let digits: String = digits.map(|c| c.is_digit(radix).then_some(c)).collect::<Option<_>>()?;
    // a zero and `_` alone
    if digits.is_empty() && radix == 8 { Some(0) } else { i64::from_str_radix(&digits, radix).ok() }
}

/// `1:30`: minutes and seconds, or more.
fn base_60(text: &str) -> Option<i64> {
    let mut parts = text.split(':');
    let first = parts.next().filter(|first| first.starts_with(|c: char| c.is_ascii_digit()) && is_digits(first))?;
    let mut sum: i64 = first.replace('_', "").parse().ok()?;
    for part in parts {
        let is_part = (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        let part: i64 = part.parse().ok().filter(|part| is_part && *part < 60)?;
        sum = sum.checked_mul(60)?.checked_add(part)?;
    }
    Some(sum)
}

fn double(text: &str) -> Option<f64> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(mantissa, exponent)| (mantissa, Some(exponent)));
    let (whole, fraction) = mantissa.split_once('.').filter(|(_, fraction)| is_digits(fraction))?;
    if whole.contains(':') {
        let fraction: f64 = format!("0.{}", fraction.replace('_', "")).parse().ok()?;
        return base_60(whole).filter(|_| exponent.is_none()).map(|whole| whole as f64 + fraction);
    }
    let begins = if whole.is_empty() { fraction } else { whole };
    let is_exponent = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
    });
    let is_number = begins.starts_with(|c: char| c.is_ascii_digit()) && is_digits(whole) && is_exponent;
    if is_number { text.replace('_', "").parse().ok() } else { None }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'_')
}

/// The tree so far: what is finished, and what is still open around it.
#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    root: Option<Node>,
}

struct Open {
    node: Node,
    /// Of a mapping: waits for its value.
    key: Option<Key>,
}

impl Tree {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_marks(anchor, tag.is_some())?;
                if text.contains('\0') {
                    return Err("the text holds a NUL, which D-Bus cannot carry; remove it".into());
                }
                self.put(Node { line, what: What::Scalar { text: text.into(), plain: style == ScalarStyle::Plain } })
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_marks(anchor, tag.is_some())?;
                self.begin(Node { line, what: What::List(Vec::new()) })
            }
            Event::MappingStart(anchor, tag) => {
                refuse_marks(anchor, tag.is_some())?;
                self.begin(Node { line, what: What::Map(Vec::new()) })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.put(open.node),
                None => Ok(()),
            },
            Event::Alias(_) => Err(NO_ALIAS.into()),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => Ok(()),
        }
    }

    fn begin(&mut self, node: Node) -> Result<(), String> {
        if self.open.len() >= DEPTH_MAX {
            return Err("nested too deep; a type has items, an item has keys, a key has a value or a list".into());
        }
        self.open.push(Open { node, key: None });
        Ok(())
    }

    fn put(&mut self, node: Node) -> Result<(), String> {
        let Some(Open { node: outer, key }) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut outer.what, key.take()) {
            (What::List(nodes), _) => nodes.push(node),
            (What::Map(entries), Some(key)) => {
                // nothing has no place of its own
                let line = if node.is_nothing() { key.line } else { node.line };
                entries.push((key, Node { line, ..node }));
            }
            (What::Map(_), None) => match node.what {
                What::Scalar { text, .. } => *key = Some(Key { line: node.line, text }),
                _ => return Err("a key must be a text, not a list or a mapping".into()),
            },
            (What::Scalar { .. }, _) => {}
        }
        Ok(())
    }
}

const NO_ALIAS: &str = "anchors, aliases and tags (&, *, !) are not understood; write the text out";

fn refuse_marks(anchor: usize, has_tag: bool) -> Result<(), String> {
    if anchor != 0 || has_tag { Err(NO_ALIAS.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<(usize, &str)> {
        chunks(text).iter().map(|chunk| (chunk.line, chunk.text)).collect()
    }

    #[test]
    fn cuts_at_top_level_keys() {
        assert_eq!(
            cut("\u{feff}# about\n\na:\n  x:\n# more\n\n'b': {\n  y: 1\n}\nc:\n- 1\n"),
            [(3, "a:\n  x:\n# more\n\n"), (7, "'b': {\n  y: 1\n}\n"), (10, "c:\n- 1\n"),]
        );
        assert_eq!(cut("%YAML 1.1\n--- # first\na:\n...\n---\r\nb:"), [(3, "a:\n"), (6, "b:")]);
        assert_eq!(cut("  a:\n    x:\n  b:\n"), [(1, "  a:\n    x:\n  b:\n")]);
        assert_eq!(cut("\u{feff}a: 1"), [(1, "a: 1")]);
        assert!(cut("# nothing\n\n---\n").is_empty());
    }

    #[test]
    fn names() {
        for (text, name) in [("a:\n b:", "a"), ("\"a b\" : {}", "a b"), ("- x", "- x"), ("a", "a")] {
            assert_eq!(Chunk { text, line: 1 }.name(), name);
        }
    }

    #[test]
    fn lines() {
        let chunk = Chunk { text: "a:\n  b:\n\n  c: [1,\n    x]\n  d: \"e\n    f\"\n", line: 10 };
        let What::Map(top) = chunk.parse().unwrap().what else { panic!() };
        let What::Map(entries) = &top[0].1.what else { panic!() };
        let found: Vec<_> = entries.iter().map(|(key, node)| (key.line, &*key.text, node.line, node.value().unwrap())).collect();
        assert_eq!(
            found,
            [
                (11, "b", 11, Value::Invalid),
                (13, "c", 13, Value::Array([Value::Int(1), Value::Str("x".into())].into())),
                (15, "d", 15, Value::Str("e f".into())),
            ]
        );
    }

    #[test]
    fn plain_scalars() {
        for (text, value) in [
            ("yes", Value::Bool(true)),
            ("OFF", Value::Bool(false)),
            ("~", Value::Invalid),
            ("5", Value::Int(5)),
            ("-5", Value::Int(-5)),
            ("+1_000", Value::Int(1000)),
            ("0xA163", Value::Int(0xa163)),
            ("0", Value::Int(0)),
            ("0.1", Value::Double(0.1)),
            // as PyYAML 6 has them
            (".5", Value::Double(0.5)),
            ("-.5", Value::Str("-.5".into())),
            ("._5", Value::Str("._5".into())),
            ("5.", Value::Double(5.0)),
            ("0.1_2", Value::Double(0.12)),
            ("1e3", Value::Str("1e3".into())),
            ("1.5e3", Value::Str("1.5e3".into())),
            ("1.5e+3", Value::Double(1500.0)),
            ("1.E-1", Value::Double(0.1)),
            (".5e+1", Value::Double(5.0)),
            ("1e999", Value::Str("1e999".into())),
            ("1.0e+999", Value::Double(f64::INFINITY)),
            ("017", Value::Int(15)),
            ("-017", Value::Int(-15)),
            ("0_", Value::Int(0)),
            ("-0", Value::Int(0)),
            ("08", Value::Str("08".into())),
            ("0o17", Value::Str("0o17".into())),
            ("0b101", Value::Int(5)),
            ("0b-1", Value::Str("0b-1".into())),
            ("0x", Value::Str("0x".into())),
            ("_1", Value::Str("_1".into())),
            ("1__0", Value::Int(10)),
            ("1:30", Value::Int(90)),
            ("-1:30", Value::Int(-90)),
            ("1:2:3", Value::Int(3723)),
            ("01:30", Value::Str("01:30".into())),
            ("1:90", Value::Str("1:90".into())),
            ("1:+3", Value::Str("1:+3".into())),
            ("01:30.5", Value::Double(90.5)),
            (".inf", Value::Double(f64::INFINITY)),
            ("-.INF", Value::Double(f64::NEG_INFINITY)),
            ("-.nan", Value::Str("-.nan".into())),
            ("yEs", Value::Str("yEs".into())),
            ("y", Value::Str("y".into())),
            ("'5'", Value::Str("5".into())),
            ("\"yes\"", Value::Str("yes".into())),
        ] {
            assert_eq!(Chunk { text, line: 1 }.parse().unwrap().value().unwrap(), value, "{text}");
        }
        assert!(matches!(number(".nan"), Some(Value::Double(nan)) if nan.is_nan()));
    }
}

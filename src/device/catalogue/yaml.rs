//! YAML as a tree with the line of everything in it, cut at its top-level keys first: a mistake costs its part only, and what
//! nobody asks for is never parsed.
//!
//! Refused: anchors, aliases, tags, control characters, and nesting deeper than a catalogue's. A plain scalar means what it means to
//! Python's YAML (`yes` is true, `0xA163` a number).

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
    let is = |words: [&str; 3]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is(["true", "yes", "on"]) {
        return Value::Bool(true);
    }
    if is(["false", "no", "off"]) {
        return Value::Bool(false);
    }
    number(text).unwrap_or_else(|| Value::Str(text.into()))
}

fn number(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let digits = digits.replace('_', "");
    if let Some(hex) = digits.strip_prefix("0x") {
        let n = i64::from_str_radix(hex, 16).ok()?;
        return Some(Value::Int(if negative { -n } else { n }));
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        // 017 is octal to some and not to others: it stays a text
        let n: i64 = digits.parse().ok().filter(|_| digits.len() == 1 || !digits.starts_with('0'))?;
        return Some(Value::Int(if negative { -n } else { n }));
    }
    let double: f64 = digits.parse().ok()?;
    double.is_finite().then_some(Value::Double(if negative { -double } else { double }))
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
            ("-.5", Value::Double(-0.5)),
            ("1e3", Value::Double(1000.0)),
            ("017", Value::Str("017".into())),
            ("12:30", Value::Str("12:30".into())),
            (".inf", Value::Str(".inf".into())),
            ("1e999", Value::Str("1e999".into())),
            ("y", Value::Str("y".into())),
            ("'5'", Value::Str("5".into())),
            ("\"yes\"", Value::Str("yes".into())),
        ] {
            assert_eq!(Chunk { text, line: 1 }.parse().unwrap().value().unwrap(), value, "{text}");
        }
    }
}

//! How the text of a value is made: a part of Python's format strings, the part that catalogues use. Pure.
//!
//! Literal text around one `{}`, `{:.2f}`, `{:d}`, `{:X}` or `{:x}`; `{{` and `}}` are the braces themselves. What else Python knows of
//! one value (`{:5.1f}`, `{:g}`) is taken as `{}`. Everything else is refused when the catalogue is read, so that a text can always be made. An integer can have names instead (0 = "off").

use std::fmt::Write;

use crate::bridge::value::Value;

/// What an invalid value looks like.
const INVALID: &str = "---";
/// Longest format, in bytes: it holds a unit.
const FORMAT_MAX: usize = 100;
/// Digits after the point where none are given.
const PYTHON_DIGITS: usize = 6;
/// Most digits after the point: a double has no more.
const DIGITS_MAX: usize = 17;

/// What stands around a value, and how the value itself is written.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Format {
    before: Box<str>,
    after: Box<str>,
    style: Style,
    names: Box<[(i64, Box<str>)]>,
}

/// How the value itself is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Style {
    /// `{}`: numbers as Python shows them, texts as they are.
    #[default]
    Plain,
    /// `{:.2f}`
    Fixed(usize),
    /// `{:d}`
    Digits,
    /// `{:X}`
    UpperHex,
    /// `{:x}`
    LowerHex,
}

impl Format {
    /// Reads a format; the error says what is wrong and what to write. A value for which Python has more to say than we do is shown plainly:
    /// the remark says so.
    pub fn parse(text: &str) -> Result<(Self, Option<String>), String> {
        const KNOWN: &str = "write {}, {:.2f}, {:d} or {:X}";
        if text.len() > FORMAT_MAX {
            return Err(format!("it is longer than {FORMAT_MAX} bytes; shorten it"));
        }
        let (mut parts, mut style, mut remark) = ([String::new(), String::new()], None, None);
        let [before, after] = &mut parts;
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (literal, from) = rest.split_at(at);
            let side = if style.is_none() { &mut *before } else { &mut *after };
            side.push_str(literal);
            rest = if let Some(rest) = from.strip_prefix("{{") {
                side.push('{');
                rest
            } else if let Some(rest) = from.strip_prefix("}}") {
                side.push('}');
                rest
            } else if let Some((inner, rest)) = from.strip_prefix('{').and_then(|from| from.split_once('}')) {
                let found = match Style::parse(inner) {
                    Some(style) => style,
                    None if is_python(inner) => {
                        remark = Some(format!("{{{inner}}} is shown as {{}}; {KNOWN}"));
                        Style::Plain
                    }
                    None => return Err(format!("{{{inner}}} is not known; {KNOWN}")),
                };
                if style.replace(found).is_some() {
                    return Err("it has more than one {}; keep one".into());
                }
                rest
            } else {
                return Err("a brace stands alone; write {{ or }} for the brace itself".into());
            };
        }
        if style.is_none() { &mut *before } else { &mut *after }.push_str(rest);
        let style = style.ok_or_else(|| format!("it has no {{}}, where the value goes; {KNOWN}"))?;
        let [before, after] = parts;
        Ok((Self { before: before.into(), after: after.into(), style, names: [].into() }, remark))
    }

    /// `0x` and digits: what a product ID looks like.
    pub fn hex() -> Self {
        Self { before: "0x".into(), style: Style::UpperHex, ..Self::default() }
    }

    /// As it is, but these integers have names.
    pub fn with_names(self, names: Box<[(i64, Box<str>)]>) -> Self {
        Self { names, ..self }
    }

    pub fn style(&self) -> Style {
        self.style
    }

    /// Whether there is text beside the value, such as a unit.
    pub fn has_unit(&self) -> bool {
        !self.before.trim().is_empty() || !self.after.trim().is_empty()
    }

    /// The text of a value.
    pub fn text(&self, value: &Value) -> String {
        let name = |n: &i64| self.names.iter().find(|(named, _)| named == n).map(|(_, name)| String::from(&**name));
        match value {
            Value::Invalid => INVALID.into(),
            Value::Int(n) => name(n).unwrap_or_else(|| self.around(value)),
            _ => self.around(value),
        }
    }

    fn around(&self, value: &Value) -> String {
        let mut out = String::from(&*self.before);
        // writing to a string cannot fail
        let _ = match (self.style, value) {
            (Style::UpperHex, Value::Int(n)) => write!(out, "{}{:X}", sign(*n), n.unsigned_abs()),
            (Style::LowerHex, Value::Int(n)) => write!(out, "{}{:x}", sign(*n), n.unsigned_abs()),
            (Style::Fixed(digits), Value::Double(d)) => write!(out, "{d:.digits$}"),
            (Style::Fixed(digits), Value::Int(n)) => write!(out, "{:.digits$}", *n as f64),
            (_, Value::Double(d)) => write!(out, "{d:?}"),
            (_, Value::Str(text)) => out.write_str(text),
            _ => {
                let mut json = Vec::new();
                value.write_json(&mut json);
                out.write_str(&String::from_utf8_lossy(&json))
            }
        };
        out.push_str(&self.after);
        out
    }
}

/// Whether Python takes this as the format of one value: `[[fill]align][sign][z][#][0][width][grouping][.precision][type]`.
fn is_python(inner: &str) -> bool {
    let Some(rest) = inner.strip_prefix('0').unwrap_or(inner).strip_prefix(':') else { return false };
    let is_align = |c: char| "<>=^".contains(c);
    let mut letters = rest.chars();
    let (first, second) = (letters.next(), letters.next());
    let rest = match (first, second) {
        (Some(_), Some(second)) if is_align(second) => letters.as_str(),
        (Some(first), _) if is_align(first) => rest.get(1..).unwrap_or_default(),
        _ => rest,
    };
    let rest = rest.strip_prefix(['+', '-', ' ']).unwrap_or(rest);
    let rest = rest.strip_prefix('z').unwrap_or(rest);
    let rest = rest.strip_prefix('#').unwrap_or(rest);
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = rest.strip_prefix([',', '_']).unwrap_or(rest);
    let rest = match rest.strip_prefix('.') {
        Some(precision) => match precision.trim_start_matches(|c: char| c.is_ascii_digit()) {
            after if after.len() == precision.len() => return false,
            after => after,
        },
        None => rest,
    };
    rest.strip_prefix(['b', 'c', 'd', 'e', 'E', 'f', 'F', 'g', 'G', 'n', 'o', 's', 'x', 'X', '%']).unwrap_or(rest).is_empty()
}

fn sign(n: i64) -> &'static str {
    if n < 0 { "-" } else { "" }
}

impl Style {
    fn parse(inner: &str) -> Option<Self> {
        match inner {
            "" | ":" | "0" | "0:" => Some(Self::Plain),
            _ => match inner.strip_prefix('0').unwrap_or(inner) {
                ":d" => Some(Self::Digits),
                ":X" => Some(Self::UpperHex),
                ":x" => Some(Self::LowerHex),
                ":s" => Some(Self::Plain),
                ":f" => Some(Self::Fixed(PYTHON_DIGITS)),
                fixed => {
                    let digits = fixed.strip_prefix(":.")?.strip_suffix('f')?;
                    let digits = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
                    (digits <= DIGITS_MAX).then_some(Self::Fixed(digits))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let text = |s: &str| Value::Str(s.into());
        for (format, value, expected) in [
            ("{}", Value::Double(23.0), "23.0"),
            ("{}", Value::Double(0.1), "0.1"),
            ("{}", Value::Double(-0.0), "-0.0"),
            ("{}", Value::Int(-7), "-7"),
            ("{}", text("a \"b\""), "a \"b\""),
            ("{}", Value::Array([text("grid"), text("genset")].into()), "[\"grid\",\"genset\"]"),
            ("{}", Value::Array([Value::Double(1.0), Value::Double(2.5)].into()), "[1.0,2.5]"),
            ("{} W", Value::Invalid, "---"),
            ("{} W", Value::Double(5.5), "5.5 W"),
            ("{0} W", Value::Int(5), "5 W"),
            ("{:.0f} W", Value::Double(2.5), "2 W"),
            ("{:.0f} W", Value::Double(3.5), "4 W"),
            ("{:.2f} kWh", Value::Double(1.005), "1.00 kWh"),
            ("{0:.1f}", Value::Int(3), "3.0"),
            ("{:d} s", Value::Int(90), "90 s"),
            ("0x{:X}", Value::Int(0xa163), "0xA163"),
            ("{:x}", Value::Int(-0xbc), "-bc"),
            ("{:f} V", Value::Double(1.5), "1.500000 V"),
            ("{:s}!", text("x"), "x!"),
            ("{{{}}} °C", Value::Int(1), "{1} °C"),
        ] {
            assert_eq!(Format::parse(format).unwrap().0.text(&value), expected, "{format}");
        }
        assert_eq!(Format::hex().text(&Value::Int(0)), "0x0");
    }

    /// What only Python knows costs the look of the value, and is said.
    #[test]
    fn plain_where_python_knows_more() {
        for spec in [
            ":g",
            ":5.1f",
            ":+.1f",
            ":,.0f",
            ":.1%",
            ":02X",
            ":,",
            "0:g",
            ":.18f",
            ":.99999999999999999999f",
            ":*>8",
            ":<",
            ":#x",
            ": d",
            ":_d",
        ] {
            let (format, remark) = Format::parse(&format!("{{{spec}}} W")).unwrap();
            assert_eq!(format.text(&Value::Double(23.25)), "23.25 W", "{spec}");
            assert_eq!(remark, Some(format!("{{{spec}}} is shown as {{}}; write {{}}, {{:.2f}}, {{:d}} or {{:X}}")));
        }
        assert_eq!(Format::parse("{:.2f}").unwrap().1, None);
    }

    #[test]
    fn names() {
        let format = Format::parse("{} ?").unwrap().0.with_names([(6, "open".into()), (7, "closed".into())].into());
        for (value, expected) in [(Value::Int(7), "closed"), (Value::Int(8), "8 ?"), (Value::Invalid, "---")] {
            assert_eq!(format.text(&value), expected);
        }
    }

    #[test]
    fn units() {
        for (format, unit) in [("{}", false), (" {:.2f} ", false), ("{} W", true), ("£{}", true)] {
            assert_eq!(Format::parse(format).unwrap().0.has_unit(), unit, "{format}");
        }
    }

    #[test]
    fn refuses() {
        for (format, why) in [
            ("", "it has no {}, where the value goes; write {}, {:.2f}, {:d} or {:X}"),
            ("W", "it has no {}, where the value goes; write {}, {:.2f}, {:d} or {:X}"),
            ("{{}}", "it has no {}, where the value goes; write {}, {:.2f}, {:d} or {:X}"),
            ("{} {}", "it has more than one {}; keep one"),
            ("{} }", "a brace stands alone; write {{ or }} for the brace itself"),
            ("{", "a brace stands alone; write {{ or }} for the brace itself"),
            ("{:q}", "{:q} is not known; write {}, {:.2f}, {:d} or {:X}"),
            ("{:5.1f.}", "{:5.1f.} is not known; write {}, {:.2f}, {:d} or {:X}"),
            ("{1}", "{1} is not known; write {}, {:.2f}, {:d} or {:X}"),
            ("{:.f}", "{:.f} is not known; write {}, {:.2f}, {:d} or {:X}"),
            (&"x".repeat(101), "it is longer than 100 bytes; shorten it"),
        ] {
            assert_eq!(Format::parse(format), Err(why.into()), "{format}");
        }
    }
}

//! One item: its type on the bus, and how what is written to it is brought to that type.
//!
//! Devices send `"23.4"` where a number is meant, and `23` where a double is: both are taken. What stands for no value in the programs
//! that send it (`"unknown"`, `"nan"`) is none for a number. What does not fit is refused, with the reason in words for the person at the
//! device.

use crate::bridge::value::{Value, read_word};
use crate::device::format::Format;
use crate::text::escape_to;

/// Longest text of an item, in bytes.
const TEXT_MAX: usize = 1024;
/// Most elements of a list.
const ELEMENTS_MAX: usize = 64;
/// Longest piece of a refused value in a message, in characters.
const SHOWN_MAX: usize = 60;

/// The type of an item on the bus. It never changes, except where it is said to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `i`
    Int,
    /// `d`
    Double,
    /// `i` for a whole number of 32 bits, else `d`: an item whose only hint is a whole default.
    Number,
    /// `s`
    Text,
    /// The one or the other.
    TextOrNumber,
    /// `as`
    Texts,
    /// `ad`
    Doubles,
}

/// What is fixed about an item.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemSpec {
    pub kind: Kind,
    /// Of the item's kind, or invalid.
    pub default: Value,
    pub description: Box<str>,
    pub format: Format,
    /// Of the item's kind; invalid: no limit.
    pub min: Value,
    pub max: Value,
    /// A setting: it survives a restart.
    pub kept: bool,
    /// Others write it to steer the device. (So they do with settings.)
    pub command: bool,
    /// Whether others may write it at all.
    pub writable: bool,
}

impl ItemSpec {
    /// Brings a written value to the item's type; [`Value::Invalid`] for null. The error says why not.
    pub fn bring(&self, value: Value) -> Result<Value, String> {
        let value = match self.kind {
            Kind::Texts => elements(value, Kind::Text)?,
            Kind::Doubles => elements(value, Kind::Double)?,
            kind => scalar(value, kind)?,
        };
        if value == Value::Invalid {
            if self.kept && self.default != Value::Invalid {
                return Err("it is a setting, which cannot be without a value".into());
            }
            return Ok(value);
        }
        self.within(&value)?;
        Ok(value)
    }

    /// What GetText gives.
    pub fn text(&self, value: &Value) -> String {
        self.format.text(value)
    }

    fn within(&self, value: &Value) -> Result<(), String> {
        let Some(number) = numeric(value) else { return Ok(()) };
        let short = |number: f64| if number.abs() < 1e15 { format!("{number}") } else { format!("{number:e}") };
        match (numeric(&self.min), numeric(&self.max)) {
            (Some(min), Some(max)) if number < min || number > max => {
                Err(format!("{} is outside {}..{}", short(number), short(min), short(max)))
            }
            (Some(min), None) if number < min => Err(format!("{} is below {}", short(number), short(min))),
            (None, Some(max)) if number > max => Err(format!("{} is above {}", short(number), short(max))),
            _ => Ok(()),
        }
    }
}

/// An item's limit or value as a number. Integers of items are 32 bits wide, which a double holds.
pub(super) fn numeric(value: &Value) -> Option<f64> {
    match value {
        Value::Int(n) => Some(*n as f64),
        Value::Double(d) => Some(*d),
        _ => None,
    }
}

fn scalar(value: Value, kind: Kind) -> Result<Value, String> {
    match (kind, value) {
        (_, Value::Invalid) => Ok(Value::Invalid),
        (Kind::Text | Kind::TextOrNumber, Value::Double(d)) if !d.is_finite() => Ok(Value::Invalid),
        (Kind::Text, value) => text(value),
        (Kind::TextOrNumber, Value::Str(text)) => printed_number(&text).map_or_else(|| self::text(Value::Str(text)), Ok),
        (_, Value::Str(text)) => match written(&text) {
            Some(number) => scalar(number, kind),
            None => Err(format!("{} is not a number", shown(&Value::Str(text)))),
        },
        (Kind::Int, value) => integer(value),
        (Kind::Number, value) => number(value),
        (Kind::TextOrNumber, value @ (Value::Int(_) | Value::UInt(_) | Value::Double(_))) => number(value),
        (Kind::TextOrNumber, value) => Err(format!("{} is not a text or a number", shown(&value))),
        (_, value) => double(value),
    }
}

/// An integer where that is exact.
fn number(value: Value) -> Result<Value, String> {
    integer(value.clone()).or_else(|_| double(value))
}

/// A number that is written as we print it: localsettings may have had it as a text.
fn printed_number(text: &str) -> Option<Value> {
    written(text).and_then(|number| self::number(number).ok()).filter(|number| json(number) == text)
}

fn text(value: Value) -> Result<Value, String> {
    let text = match value {
        Value::Str(text) => text,
        Value::Int(_) | Value::UInt(_) | Value::Double(_) => json(&value).into(),
        _ => return Err(format!("{} is not a text", shown(&value))),
    };
    if text.len() > TEXT_MAX {
        return Err(format!("the text is longer than {TEXT_MAX} bytes"));
    }
    if text.contains('\0') {
        return Err("the text holds a NUL, which D-Bus cannot carry".into());
    }
    Ok(Value::Str(text))
}

fn integer(value: Value) -> Result<Value, String> {
    match value {
        Value::Bool(yes) => Ok(Value::Int(yes.into())),
        Value::Int(n) if i32::try_from(n).is_ok() => Ok(Value::Int(n)),
        Value::Double(d) if !d.is_finite() => Ok(Value::Invalid),
        Value::Double(d) if d.fract() != 0.0 => Err(format!("{d} is not a whole number")),
        // exact: without a fraction, and within 32 bits
        Value::Double(d) if (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&d) => Ok(Value::Int(d as i64)),
        Value::Int(_) | Value::UInt(_) | Value::Double(_) => Err(format!("{} does not fit into 32 bits", shown(&value))),
        _ => Err(format!("{} is not a number", shown(&value))),
    }
}

fn double(value: Value) -> Result<Value, String> {
    match value {
        Value::Double(d) if !d.is_finite() => Ok(Value::Invalid),
        Value::Double(_) => Ok(value),
        Value::Int(n) => Ok(Value::Double(n as f64)),
        Value::UInt(n) => Ok(Value::Double(n as f64)),
        _ => Err(format!("{} is not a number", shown(&value))),
    }
}

fn elements(value: Value, kind: Kind) -> Result<Value, String> {
    let values = match value {
        Value::Invalid => return Ok(Value::Invalid),
        Value::Array(values) => values,
        _ => return Err(format!("{} is not a list", shown(&value))),
    };
    if values.len() > ELEMENTS_MAX {
        return Err(format!("the list has more than {ELEMENTS_MAX} elements"));
    }
    let mut brought = Vec::with_capacity(values.len());
    for (n, value) in values.into_iter().enumerate() {
        match scalar(value, kind) {
            Ok(Value::Invalid) => return Err(format!("element {} of the list has no value", n + 1)),
            Ok(value) => brought.push(value),
            Err(error) => return Err(format!("element {} of the list: {error}", n + 1)),
        }
    }
    Ok(if brought.is_empty() { Value::Invalid } else { Value::Array(brought.into()) })
}

/// A text that reads as a number, or as the absence of one, as a bare word does.
fn written(text: &str) -> Option<Value> {
    read_word(text).map(|value| if value.has_missing() { Value::Invalid } else { value })
}

fn json(value: &Value) -> String {
    let mut json = Vec::new();
    value.write_json(&mut json);
    String::from_utf8_lossy(&json).into_owned()
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        Value::Dict(_) => "an object".into(),
        _ => escape_to(&json(value), SHOWN_MAX).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: Kind) -> ItemSpec {
        ItemSpec {
            kind,
            default: Value::Invalid,
            description: "".into(),
            format: Format::default(),
            min: Value::Invalid,
            max: Value::Invalid,
            kept: false,
            command: false,
            writable: true,
        }
    }

    fn text(text: &str) -> Value {
        Value::Str(text.into())
    }

    fn list(values: &[Value]) -> Value {
        Value::Array(values.into())
    }

    #[test]
    fn taken() {
        use Value::{Bool, Double, Int, Invalid, UInt};
        for (kind, written, expected) in [
            (Kind::Int, Int(-5), Int(-5)),
            (Kind::Int, Int(i32::MAX.into()), Int(2_147_483_647)),
            (Kind::Int, Double(-2_147_483_648.0), Int(-2_147_483_648)),
            (Kind::Int, Bool(true), Int(1)),
            (Kind::Int, Bool(false), Int(0)),
            (Kind::Int, text(" 5\n"), Int(5)),
            (Kind::Int, text("5.0"), Int(5)),
            (Kind::Int, text("-1.2e1"), Int(-12)),
            (Kind::Int, text("Null"), Invalid),
            (Kind::Int, Double(f64::NAN), Invalid),
            (Kind::Int, Invalid, Invalid),
            (Kind::Double, Int(23), Double(23.0)),
            (Kind::Double, UInt(u64::MAX), Double(18_446_744_073_709_551_615.0)),
            (Kind::Double, Double(23.4), Double(23.4)),
            (Kind::Double, text("23.4"), Double(23.4)),
            (Kind::Double, text("+.5E-1 "), Double(0.05)),
            (Kind::Double, text("NaN"), Invalid),
            (Kind::Double, text("INFINITY"), Invalid),
            (Kind::Double, text("-Infinity"), Invalid),
            (Kind::Double, text("null"), Invalid),
            (Kind::Double, Double(f64::NEG_INFINITY), Invalid),
            (Kind::Text, text("null"), text("null")),
            (Kind::Text, text(""), text("")),
            (Kind::Text, text("unknown"), text("unknown")),
            (Kind::Text, Double(f64::NAN), Invalid),
            (Kind::Number, Int(3), Int(3)),
            (Kind::Number, Double(3.0), Int(3)),
            (Kind::Number, Double(-0.0), Int(0)),
            (Kind::Number, Double(3.5), Double(3.5)),
            (Kind::Number, Int(3_000_000_000), Double(3_000_000_000.0)),
            (Kind::Number, text("3"), Int(3)),
            (Kind::Number, text("3.50"), Double(3.5)),
            (Kind::Number, text("unavailable"), Invalid),
            (Kind::Number, Double(f64::NAN), Invalid),
            (Kind::Number, Bool(true), Int(1)),
            (Kind::TextOrNumber, text("grid"), text("grid")),
            (Kind::TextOrNumber, text("unknown"), text("unknown")),
            (Kind::TextOrNumber, text(""), text("")),
            (Kind::TextOrNumber, text("71"), Int(71)),
            (Kind::TextOrNumber, text("2.5"), Double(2.5)),
            (Kind::TextOrNumber, text("007"), text("007")),
            (Kind::TextOrNumber, text(" 71"), text(" 71")),
            (Kind::TextOrNumber, text("1e3"), text("1e3")),
            (Kind::TextOrNumber, Int(71), Int(71)),
            (Kind::TextOrNumber, Double(71.0), Int(71)),
            (Kind::TextOrNumber, Double(f64::NAN), Invalid),
            (Kind::Text, text(&"x".repeat(1024)), text(&"x".repeat(1024))),
            (Kind::Text, Int(5), text("5")),
            (Kind::Text, Double(5.0), text("5.0")),
            (Kind::Texts, list(&[text("a"), Int(1)]), list(&[text("a"), text("1")])),
            (Kind::Texts, list(&[]), Invalid),
            (Kind::Texts, Invalid, Invalid),
            (Kind::Doubles, list(&[text("1.5"), Int(2)]), list(&[Double(1.5), Double(2.0)])),
        ] {
            assert_eq!(spec(kind).bring(written.clone()), Ok(expected), "{kind:?} {written:?}");
        }
    }

    /// In every item of a number, however it is written.
    #[test]
    fn no_value() {
        let words = ["", "  ", "null", "None", "NaN", "nan", "-nan", "inf", "-inf", "+Inf", "Infinity", "-INFINITY", "undefined"];
        for word in words.into_iter().chain(["ovf", "unknown", "Unavailable", " none\n"]) {
            for kind in [Kind::Int, Kind::Double, Kind::Number] {
                assert_eq!(spec(kind).bring(text(word)), Ok(Value::Invalid), "{kind:?} {word:?}");
            }
            assert_eq!(spec(Kind::Text).bring(text(word)), Ok(text(word)));
        }
    }

    /// As C, JavaScript, Python and templates print them.
    #[test]
    fn numbers_as_texts() {
        for (word, double) in [
            ("-0", 0.0),
            ("+5", 5.0),
            (" 5 ", 5.0),
            ("5.", 5.0),
            (".5", 0.5),
            ("-.5", -0.5),
            ("1e3", 1000.0),
            ("1E3", 1000.0),
            ("1e+3", 1000.0),
            ("5.0e-1", 0.5),
            ("1e-0", 1.0),
            ("007", 7.0),
            ("023.4", 23.4),
            ("-05.5", -5.5),
        ] {
            assert_eq!(spec(Kind::Double).bring(text(word)), Ok(Value::Double(double)), "{word}");
            let whole = double == f64::trunc(double);
            assert_eq!(spec(Kind::Int).bring(text(word)).is_ok(), whole, "{word}");
        }
    }

    #[test]
    fn refused() {
        use Value::{Bool, Dict, Double, Int, Invalid, UInt};
        for (kind, written, why) in [
            (Kind::Int, Double(5.5), "5.5 is not a whole number"),
            (Kind::Int, text("5.5"), "5.5 is not a whole number"),
            (Kind::Int, Int(2_147_483_648), "2147483648 does not fit into 32 bits"),
            (Kind::Int, UInt(u64::MAX), "18446744073709551615 does not fit into 32 bits"),
            (Kind::Int, Double(1e300), "1e+300 does not fit into 32 bits"),
            (Kind::Int, text("0x10"), "\"0x10\" is not a number"),
            (Kind::Int, text("on"), "\"on\" is not a number"),
            (Kind::Int, list(&[Int(1)]), "a list is not a number"),
            (Kind::Double, text("23,4"), "\"23,4\" is not a number"),
            (Kind::Double, text("infinite"), "\"infinite\" is not a number"),
            (Kind::Double, text("-unknown"), "\"-unknown\" is not a number"),
            (Kind::Double, text("++5"), "\"++5\" is not a number"),
            (Kind::Number, text("grid"), "\"grid\" is not a number"),
            (Kind::Number, list(&[Int(1)]), "a list is not a number"),
            (Kind::TextOrNumber, Bool(true), "true is not a text or a number"),
            (Kind::Double, text("1e999"), "\"1e999\" is not a number"),
            (Kind::Double, text("e"), "\"e\" is not a number"),
            (Kind::Double, Bool(true), "true is not a number"),
            (Kind::Double, Dict([].into()), "an object is not a number"),
            (Kind::Text, Bool(true), "true is not a text"),
            (Kind::Text, list(&[text("a")]), "a list is not a text"),
            (Kind::Text, text(&"x".repeat(1025)), "the text is longer than 1024 bytes"),
            (Kind::Text, text("a\0"), "the text holds a NUL, which D-Bus cannot carry"),
            (Kind::Texts, text("[\"a\"]"), "\"[\\\"a\\\"]\" is not a list"),
            (Kind::Texts, list(&[text("a"), Invalid]), "element 2 of the list has no value"),
            (Kind::Doubles, list(&[text("a")]), "element 1 of the list: \"a\" is not a number"),
            (Kind::Doubles, list(&[Double(f64::NAN)]), "element 1 of the list has no value"),
            (Kind::Doubles, list(&vec![Double(1.0); 65]), "the list has more than 64 elements"),
        ] {
            assert_eq!(spec(kind).bring(written.clone()), Err(why.into()), "{kind:?} {written:?}");
        }
    }

    #[test]
    fn limits() {
        use Value::{Double, Int, Invalid};
        let int = |min, max| ItemSpec { min, max, ..spec(Kind::Int) };
        let double = |min, max| ItemSpec { min, max, ..spec(Kind::Double) };
        for (spec, written, expected) in [
            (int(Int(0), Int(2)), Int(2), Ok(Int(2))),
            (int(Int(0), Int(2)), Int(5), Err("5 is outside 0..2")),
            (int(Int(-8), Int(-1)), text("0"), Err("0 is outside -8..-1")),
            (int(Int(0), Invalid), Int(i32::MAX.into()), Ok(Int(i32::MAX.into()))),
            (int(Int(0), Invalid), Int(-1), Err("-1 is below 0")),
            (int(Int(0), Int(2)), Invalid, Ok(Invalid)),
            (double(Double(0.1), Double(10.0)), Int(10), Ok(Double(10.0))),
            (double(Double(0.1), Double(10.0)), text("0.05"), Err("0.05 is outside 0.1..10")),
            (double(Invalid, Double(1.0)), Double(1e20), Err("1e20 is above 1")),
            (double(Invalid, Double(1.0)), Double(f64::INFINITY), Ok(Invalid)),
        ] {
            assert_eq!(spec.bring(written.clone()), expected.map_err(String::from), "{written:?}");
        }
    }

    #[test]
    fn a_setting_has_a_value() {
        let kept = ItemSpec { kept: true, default: Value::Int(2), ..spec(Kind::Int) };
        for nothing in [Value::Invalid, text("null"), Value::Double(f64::NAN)] {
            assert_eq!(kept.bring(nothing), Err("it is a setting, which cannot be without a value".into()));
        }
        let unset = ItemSpec { default: Value::Invalid, ..kept };
        assert_eq!(unset.bring(Value::Invalid), Ok(Value::Invalid));
    }
}

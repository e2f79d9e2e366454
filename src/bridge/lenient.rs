//! What is not JSON and can only mean one thing: numbers and constants as C, Python and templates print them into a payload
//! (`printf("%+d")`, an f-string, `{{ value }}`), and a byte order mark in front.
//!
//! Rewrites what stands in the place of a value, and nothing else: what is wrong beside it stays wrong. Called when a strict parser has
//! refused the text; takes time and memory in proportion to it.

use std::borrow::Cow;

use super::value::Value;

/// Stands before a bare word that is no JSON, in the JSON text that takes its place. No client can write it: texts with a NUL are refused.
const MARK: char = '\0';

/// Words of numbers that are none, with a sign or without it.
const NOT_FINITE: [&str; 3] = ["nan", "inf", "infinity"];
/// Words for no value: of JavaScript and Python, the states of Home Assistant, what Arduino prints for a number with too many digits, and
/// what a template prints for a variable that is not there.
const NOTHING: [&str; 7] = ["", "null", "none", "undefined", "unknown", "unavailable", "ovf"];

/// The text as JSON, in which each bare word is a text that [`read_marked`] reads; `None` when there is nothing that can be rewritten.
pub fn to_json(text: &[u8]) -> Option<Vec<u8>> {
    let (text, mut changed) = text.strip_prefix("\u{feff}".as_bytes()).map_or((text, false), |rest| (rest, true));
    let mut json = Vec::with_capacity(text.len());
    let (mut pieces, mut before) = (pieces(text).peekable(), b' ');
    while let Some(piece) = pieces.next() {
        let word = piece.trim_ascii();
        let Some(first) = word.first() else {
            json.extend_from_slice(piece);
            continue;
        };
        let mut ends_place = || matches!(pieces.peek(), Some([b',' | b']' | b'}', ..]));
        if is_sign(*first) {
            if before == b':' && matches!(first, b',' | b'}') {
                json.extend_from_slice(marked("")?.as_bytes());
                changed = true;
            }
        } else if *first == b'"' {
            // also one that is not kept: what a client writes is never taken for a word
            if piece.windows(6).any(|escape| escape == b"\\u0000") {
                return None;
            }
        } else if matches!(before, b':' | b'[' | b',')
            && ends_place()
            && let Some(value) = std::str::from_utf8(word).ok().and_then(rewrite)
        {
            json.extend_from_slice(value.as_bytes());
            (changed, before) = (true, *first);
            continue;
        }
        json.extend_from_slice(piece);
        before = *first;
    }
    changed.then_some(json)
}

/// The text in pieces that make it up: strings with their quotes, the signs of JSON, and what stands between them, with the white space
/// around it. Whatever is a number in valid JSON is such a piece of its own.
pub fn pieces(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = match rest.first()? {
            b'"' => string_length(rest),
            byte if is_sign(*byte) => 1,
            _ => rest.iter().position(|byte| is_sign(*byte) || *byte == b'"').unwrap_or(rest.len()),
        };
        let (piece, next) = rest.split_at_checked(length)?;
        rest = next;
        Some(piece)
    })
}

fn is_sign(byte: u8) -> bool {
    b"[]{},:".contains(&byte)
}

/// The bytes of a string that begins here, with its quotes.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = true;
    let end = text.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 1)
}

/// The JSON that stands for a word, if it is none that can be carried.
fn rewrite(word: &str) -> Option<Cow<'static, str>> {
    match word {
        "true" | "false" | "null" => None,
        "True" => Some("true".into()),
        "False" => Some("false".into()),
        _ if serde_json::from_str::<f64>(word).is_ok() && !is_beyond_64_bits(word) => None,
        _ => marked(word).map(Cow::Owned),
    }
}

fn marked(word: &str) -> Option<String> {
    serde_json::to_string(&format!("{MARK}{word}")).ok()
}

/// The value of a text in JSON of [`to_json`], if it stands for a bare word. No value is a double that is not finite, so that it can be
/// told from `null`; what is not for every item is [`Value::Word`].
pub fn read_marked(text: &str) -> Option<Value> {
    let word = text.strip_prefix(MARK)?;
    Some(read_word(word).filter(|_| !is_beyond_64_bits(word)).unwrap_or_else(|| Value::Word(word.into())))
}

/// A word, bare or in a text, that reads as a number, or as the absence of one: a double that is not finite. Numbers are decimal, with or
/// without digits before and behind the point; so are those with zeros in front, which `printf("%05.1f")` prints and nobody means as
/// octal. An integer beyond 64 bits is the nearest double.
pub fn read_word(word: &str) -> Option<Value> {
    let word = word.trim();
    let is_one_of = |words: &[&str], word: &str| words.iter().any(|known| known.eq_ignore_ascii_case(word));
    if is_one_of(&NOTHING, word) || is_one_of(&NOT_FINITE, word.strip_prefix(['+', '-']).unwrap_or(word)) {
        return Some(Value::Double(f64::NAN));
    }
    // the standard library takes more words than these
    if !word.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) {
        return None;
    }
    let double: f64 = word.parse().ok()?;
    let integer = || word.parse().map(Value::Int).or_else(|_| word.parse().map(Value::UInt));
    Some(integer().unwrap_or(Value::Double(double))).filter(|_| double.is_finite())
}

/// Whether the word is an integer that neither `i64` nor `u64` holds.
pub fn is_beyond_64_bits(word: &str) -> bool {
    let word = word.trim();
    let digits = word.strip_prefix(['+', '-']).unwrap_or(word);
    let is_integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_integer && word.parse::<i64>().is_err() && word.parse::<u64>().is_err()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> Option<String> {
        to_json(text.as_bytes()).map(|json| String::from_utf8(json).unwrap())
    }

    #[test]
    fn words() {
        for (word, expected) in [
            ("True", "true"),
            ("False", "false"),
            ("+5", "\"\\u0000+5\""),
            ("+1e-0", "\"\\u0000+1e-0\""),
            ("1e400", "\"\\u00001e400\""),
            ("18446744073709551616", "\"\\u000018446744073709551616\""),
            ("nan(ind) \\", "\"\\u0000nan(ind) \\\\\""),
            ("", "\"\\u0000\""),
        ] {
            assert_eq!(json(&format!("{{\"value\":{word}}}")), Some(format!("{{\"value\":{expected}}}")), "{word}");
        }
        assert_eq!(json("{\"a\": , \"b\": }").as_deref(), Some("{\"a\": \"\\u0000\", \"b\": \"\\u0000\"}"));
    }

    #[test]
    fn read_as_numbers() {
        use Value::{Double, Int, UInt};
        for (word, value) in [
            ("+5", Int(5)),
            ("+0", Int(0)),
            ("-00", Int(0)),
            ("007", Int(7)),
            ("-007", Int(-7)),
            ("023.4", Double(23.4)),
            ("-05.5", Double(-5.5)),
            ("00.5e1", Double(5.0)),
            (".5", Double(0.5)),
            ("-.5", Double(-0.5)),
            ("+.5E-1", Double(0.05)),
            ("5.", Double(5.0)),
            ("5.e3", Double(5000.0)),
            ("+1e-0", Double(1.0)),
            ("\u{a0}5", Int(5)),
            ("+18446744073709551615", UInt(u64::MAX)),
            ("-9223372036854775808", Int(i64::MIN)),
        ] {
            assert_eq!((read_word(word), read_marked(&format!("\0{word}"))), (Some(value.clone()), Some(value)), "{word}");
        }
        for word in ["18446744073709551616", "-9223372036854775809", "123456789012345678901234567890"] {
            assert_eq!(read_word(word), word.parse().ok().map(Double), "{word}");
            assert_eq!(read_marked(&format!("\0{word}")), Some(Value::Word(word.into())));
        }
        for word in ["1e400", "1e", ".", "+-5", "0x10", "1_000", "1.2.3", "e5", "- 5", "TRUE", "on", "-none", "nan nan", "1e400"] {
            assert_eq!(read_word(word), None, "{word}");
            assert_eq!(read_marked(&format!("\0{word}")), Some(Value::Word(word.into())));
        }
        let words = ["nan", "NaN", "-nan", "+NAN", "inf", "-Infinity", "None", "NULL", "undefined", "unknown", "Unavailable", "ovf", ""];
        for word in words {
            assert!(read_word(word).is_some_and(|value| value.has_missing()), "{word}");
        }
    }

    #[test]
    fn what_is_left_alone() {
        for text in [
            "",
            "5",
            "nan",
            "{\"value\": 5}",
            "{\"value\": -0}",
            "{\"value\": 1e3}",
            "{\"value\": null}",
            "{\"value\": \"nan\"}",
            "{\"a\\\\\": \"\\\": nan, \"}",
            "{nan: 5}",
            "{\"a\": 1, nan: 5}",
            "{\"value\": nan",
            "{\"value\" }",
            "{\"value\": ]",
            "{\"value\":",
            "[]",
            "[1,]",
            "[,1]",
            "[ ]",
            "{,}",
            "{\"value\": 5,}",
            "{\"value\": 1e-0}",
            "{\"value\": -0e1000}",
            "[+5, \"\\u0000\"]",
            "[nan, \"\\u0000nan\"]",
            "{'value': 5}",
        ] {
            assert_eq!(json(text), None, "{text}");
        }
        assert_eq!(json("\u{feff}{\"value\":5}").as_deref(), Some("{\"value\":5}"));
    }

    proptest! {
        /// Nothing but words changes, and what is rewritten needs no further rewriting.
        #[test]
        fn no_text_does_harm(text in "[\\[\\]{},:\"\\\\ nafi+.e05-]{0,60}") {
            if let Some(json) = json(&text) {
                prop_assert!(json.len() <= 8 * text.len());
                prop_assert_eq!(to_json(json.as_bytes()), None);
                let marks = |text: &str| text.bytes().filter(|byte| b"[]{},:".contains(byte)).collect::<Vec<_>>();
                prop_assert_eq!(marks(&json), marks(&text));
            }
        }
    }
}

//! What is not JSON and can only mean one thing: numbers and constants as C, Python and templates print them into a payload
//! (`printf("%+d")`, an f-string, `{{ value }}`), and a byte order mark in front.
//!
//! Rewrites bare words in the place of a value, and nothing else: what is wrong beside them stays wrong. Called when a strict parser has
//! refused the text; takes time and memory in proportion to it.

use std::borrow::Cow;

/// The JSON that stands for a bare word without a value, such as `nan`; read back it is [`MISSING`], which no client can write, because
/// texts with a NUL are refused.
const MISSING_JSON: &str = "\"\\u0000-\"";
pub const MISSING: &str = "\0-";

/// Words of numbers that are none, with a sign or without it.
const NOT_FINITE: [&str; 3] = ["nan", "inf", "infinity"];
/// Words for no value: of JavaScript and Python, and the states of Home Assistant.
const NOTHING: [&str; 5] = ["null", "none", "undefined", "unknown", "unavailable"];

/// The text as JSON; `None` when there is nothing that can be rewritten.
pub fn to_json(text: &[u8]) -> Option<Vec<u8>> {
    let (text, mut changed) = text.strip_prefix("\u{feff}".as_bytes()).map_or((text, false), |rest| (rest, true));
    let mut json = Vec::with_capacity(text.len());
    let (mut rest, mut before) = (text, b' ');
    while let Some(byte) = rest.first() {
        let length = match byte {
            b'"' => string_length(rest),
            byte if is_word(*byte) => rest.iter().take_while(|byte| is_word(**byte)).count(),
            _ => 1,
        };
        let Some((piece, next)) = rest.split_at_checked(length) else { break };
        let follows = || next.iter().find(|byte| !byte.is_ascii_whitespace());
        let is_value = is_word(*byte) && matches!(before, b':' | b'[' | b',') && matches!(follows(), Some(b',' | b']' | b'}'));
        match std::str::from_utf8(piece).ok().filter(|_| is_value).and_then(rewrite) {
            Some(word) => {
                json.extend_from_slice(word.as_bytes());
                changed = true;
            }
            None => json.extend_from_slice(piece),
        }
        if !byte.is_ascii_whitespace() {
            before = *byte;
        }
        rest = next;
    }
    changed.then_some(json)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-._".contains(&byte)
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

/// What a word means, if it is no JSON.
fn rewrite(word: &str) -> Option<Cow<'static, str>> {
    let is_one_of = |words: &[&str], word: &str| words.iter().any(|known| known.eq_ignore_ascii_case(word));
    let (sign, bare) = match word.split_at_checked(1) {
        Some((sign @ ("+" | "-"), bare)) => (sign, bare),
        _ => ("", word),
    };
    match word {
        "true" | "false" | "null" => None,
        "True" => Some("true".into()),
        "False" => Some("false".into()),
        _ if is_one_of(&NOT_FINITE, bare) || is_one_of(&NOTHING, word) => Some(MISSING_JSON.into()),
        _ => number(if sign == "-" { "-" } else { "" }, bare).filter(|json| json != word).map(Cow::Owned),
    }
}

/// A number with or without digits before and behind its point. One with needless zeros in front may be meant as octal.
fn number(sign: &str, bare: &str) -> Option<String> {
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = match bare.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (bare, None),
    };
    let digits = exponent.map_or("0", |exponent| exponent.strip_prefix(['+', '-']).unwrap_or(exponent));
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let some = fraction.unwrap_or_default();
    if whole.len() + some.len() == 0 || digits.is_empty() || ![whole, some, digits].into_iter().all(is_digits) {
        return None;
    }
    if whole.len() > 1 && whole.starts_with('0') {
        return None;
    }
    let or_zero = |digits: &str| if digits.is_empty() { "0".to_owned() } else { digits.to_owned() };
    let fraction = fraction.map_or_else(String::new, |fraction| format!(".{}", or_zero(fraction)));
    let exponent = exponent.map_or_else(String::new, |exponent| format!("e{exponent}"));
    Some(format!("{sign}{}{fraction}{exponent}", or_zero(whole)))
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
            ("+5", "5"),
            ("+0", "0"),
            (".5", "0.5"),
            ("-.5", "-0.5"),
            ("+.5E-1", "0.5e-1"),
            ("5.", "5.0"),
            ("-5.", "-5.0"),
            ("5.e3", "5.0e3"),
            ("+1e3", "1e3"),
            ("+1e+3", "1e+3"),
            ("True", "true"),
            ("False", "false"),
        ] {
            assert_eq!(json(&format!("{{\"value\": {word} }}")), Some(format!("{{\"value\": {expected} }}")), "{word}");
        }
        for word in ["nan", "NaN", "-nan", "+NAN", "inf", "-Infinity", "None", "NULL", "undefined", "unknown", "Unavailable"] {
            assert_eq!(json(&format!("[{word},\"{word}\"]")), Some(format!("[{MISSING_JSON},\"{word}\"]")), "{word}");
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
            "{\"value\": nan nan}",
            "{\"value\": - nan}",
            "{\"value\": 007}",
            "{\"value\": +-5}",
            "{\"value\": .}",
            "{\"value\": 1e}",
            "{\"value\": .e3}",
            "{\"value\": 0x10}",
            "{\"value\": 1_000}",
            "{\"value\": 1.2.3}",
            "{\"value\": TRUE}",
            "{\"value\": -none}",
            "{\"value\": on}",
            "{\"value\": }",
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
                prop_assert!(json.len() <= 4 * text.len());
                prop_assert_eq!(to_json(json.as_bytes()), None);
                let marks = |text: &str| text.bytes().filter(|byte| b"[]{},:".contains(byte)).collect::<Vec<_>>();
                prop_assert_eq!(marks(&json), marks(&text));
            }
        }
    }
}

//! Text that came from someone else, made fit for a log line: one line, no control characters, not endless. Pure.
//!
//! Escaping twice changes nothing, so a room that quotes a peer does not care what the logger does later. The cut counts
//! what is shown, escapes included.

use std::fmt::{self, Write};

/// Most characters of a peer's text shown in one message.
pub const QUOTE_MAX: usize = 200;

/// Shows at most 200 characters of `text`, with control characters and invisible ones written as escapes.
pub fn escape(text: &str) -> Escaped<'_> {
    escape_to(text, QUOTE_MAX)
}

/// As [`escape`], for bytes that should be text: what is not UTF-8 is shown as `\xNN`.
pub fn escape_bytes(bytes: &[u8]) -> EscapedBytes<'_> {
    EscapedBytes { bytes, max: QUOTE_MAX }
}

/// As [`escape`], cut at `max` characters.
pub fn escape_to(text: &str, max: usize) -> Escaped<'_> {
    Escaped { text, max }
}

/// What [`escape`] gives: to be displayed.
#[derive(Clone, Copy)]
pub struct Escaped<'a> {
    text: &'a str,
    max: usize,
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Cut { f, left: self.max };
        match self.text.chars().try_for_each(|c| out.put(c)) {
            Err(Stop::Full) => out.end(),
            Err(Stop::Failed) => Err(fmt::Error),
            Ok(()) => Ok(()),
        }
    }
}

/// What [`escape_bytes`] gives: to be displayed.
#[derive(Clone, Copy)]
pub struct EscapedBytes<'a> {
    bytes: &'a [u8],
    max: usize,
}

impl fmt::Display for EscapedBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Cut { f, left: self.max };
        for chunk in self.bytes.utf8_chunks() {
            let mut shown = chunk.valid().chars().try_for_each(|c| out.put(c));
            for byte in chunk.invalid() {
                shown = shown.and_then(|()| out.put_escape(4, format_args!("\\x{byte:02x}")));
            }
            match shown {
                Err(Stop::Full) => return out.end(),
                Err(Stop::Failed) => return Err(fmt::Error),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

/// A formatter that takes so many characters.
struct Cut<'a, 'f> {
    f: &'a mut fmt::Formatter<'f>,
    left: usize,
}

enum Stop {
    Full,
    Failed,
}

impl Cut<'_, '_> {
    fn put(&mut self, c: char) -> Result<(), Stop> {
        match c {
            '\n' => self.put_escape(2, format_args!("\\n")),
            '\r' => self.put_escape(2, format_args!("\\r")),
            '\t' => self.put_escape(2, format_args!("\\t")),
            c if c.is_control() || is_invisible(c) || is_noncharacter(c) => {
                let escape = c.escape_unicode();
                self.put_escape(escape.len(), format_args!("{escape}"))
            }
            c => {
                self.take(1)?;
                self.f.write_char(c).map_err(|_| Stop::Failed)
            }
        }
    }

    fn put_escape(&mut self, width: usize, escape: fmt::Arguments<'_>) -> Result<(), Stop> {
        self.take(width)?;
        self.f.write_fmt(escape).map_err(|_| Stop::Failed)
    }

    fn take(&mut self, width: usize) -> Result<(), Stop> {
        self.left = self.left.checked_sub(width).ok_or(Stop::Full)?;
        Ok(())
    }

    fn end(&mut self) -> fmt::Result {
        self.f.write_char('…')
    }
}

/// Line separators, and marks that turn the direction of text or take no room: a terminal could be made to show another text.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Unicode, section 23.7: for internal use, never to be exchanged.
pub(crate) fn is_noncharacter(c: char) -> bool {
    matches!(u32::from(c), 0xfdd0..=0xfdef) || u32::from(c) & 0xfffe == 0xfffe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let table = [
            ("", ""),
            ("plain text, ä, 太阳", "plain text, ä, 太阳"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\0\x1b[31m\x7f\u{9b}", "\\u{0}\\u{1b}[31m\\u{7f}\\u{9b}"),
            ("a\u{202e}b\u{2028}c\u{feff}", "a\\u{202e}b\\u{2028}c\\u{feff}"),
            ("\u{fdd0}\u{ffff}\u{1fffe}\u{fffd}", "\\u{fdd0}\\u{ffff}\\u{1fffe}\u{fffd}"),
            ("back\\slash \"quoted\"", "back\\slash \"quoted\""),
        ];
        for (text, shown) in table {
            assert_eq!(escape(text).to_string(), shown);
            assert_eq!(escape(shown).to_string(), shown, "escaping twice changes nothing");
            assert_eq!(escape_bytes(text.as_bytes()).to_string(), shown);
        }
    }

    #[test]
    fn bytes_that_are_no_text() {
        assert_eq!(escape_bytes(b"ab\xff\xc3(\xe2\x82").to_string(), "ab\\xff\\xc3(\\xe2\\x82");
    }

    #[test]
    fn cut() {
        assert_eq!(escape(&"x".repeat(200)).to_string(), "x".repeat(200));
        assert_eq!(escape(&"x".repeat(201)).to_string(), "x".repeat(200) + "…");
        assert_eq!(escape(&"ä".repeat(201)).to_string(), "ä".repeat(200) + "…");
        assert_eq!(escape_bytes(&[0xff; 300]).to_string(), "\\xff".repeat(50) + "…");
        assert_eq!(escape_to("a\nb\nc", 4).to_string(), "a\\nb…");
        let noise = escape(&"\u{1b}\n".repeat(200)).to_string();
        assert_eq!(escape(&noise).to_string(), noise);
    }
}

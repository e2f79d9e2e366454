//! Just enough D-Bus to play services fast: little-endian marshalling, message headers, and a reader of what dbus-daemon sends.
//!
//! The fakes patch prepared signals in place and write them straight to their socket; a D-Bus library in between would cost more than what is
//! measured. Messages are read with bounds checks; big-endian ones, which no peer of the benchmark sends, are refused.

use std::fmt;

/// Kinds of messages, as in the header.
pub const CALL: u8 = 1;
pub const REPLY: u8 = 2;
pub const ERROR: u8 = 3;
pub const SIGNAL: u8 = 4;

/// Where the serial stands in every message.
pub const SERIAL_AT: usize = 8;

/// The specification's limit of one message.
const MAX_MESSAGE: usize = 128 << 20;

/// Marshals values; offsets count from the start of the body, which is always aligned to 8 in a message.
#[derive(Default)]
pub struct Writer {
    pub bytes: Vec<u8>,
}

/// An open array: where its length goes, and where its elements begin.
pub struct OpenArray {
    length_at: usize,
    start: usize,
}

impl Writer {
    pub fn align(&mut self, to: usize) {
        while !self.bytes.len().is_multiple_of(to) {
            self.bytes.push(0);
        }
    }

    pub fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub fn u16(&mut self, value: u16) {
        self.align(2);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub fn i32(&mut self, value: i32) {
        self.align(4);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Returns where the double stands, so that it can be patched.
    pub fn double(&mut self, value: f64) -> usize {
        self.align(8);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&value.to_le_bytes());
        at
    }

    /// A string or an object path.
    pub fn string(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    pub fn signature(&mut self, text: &str) {
        self.bytes.push(text.len() as u8);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    pub fn open_array(&mut self, element_alignment: usize) -> OpenArray {
        self.u32(0);
        let length_at = self.bytes.len() - 4;
        self.align(element_alignment);
        OpenArray { length_at, start: self.bytes.len() }
    }

    pub fn close_array(&mut self, array: OpenArray) {
        let length = (self.bytes.len() - array.start) as u32;
        if let Some(place) = self.bytes.get_mut(array.length_at..array.length_at + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }
}

/// The header fields of a message to send.
#[derive(Default, Clone, Copy)]
pub struct Head<'a> {
    pub kind: u8,
    pub path: Option<&'a str>,
    pub interface: Option<&'a str>,
    pub member: Option<&'a str>,
    pub error: Option<&'a str>,
    pub reply_to: Option<u32>,
    pub destination: Option<&'a str>,
    pub signature: &'a str,
}

/// The bytes of a message, and where its body begins.
pub fn message(head: Head<'_>, serial: u32, body: &[u8]) -> (Vec<u8>, usize) {
    let mut out = Writer::default();
    out.byte(b'l');
    out.byte(head.kind);
    out.byte(0);
    out.byte(1);
    out.u32(body.len() as u32);
    out.u32(serial);
    let fields = out.open_array(8);
    let texts = [(1, "o", head.path), (2, "s", head.interface), (3, "s", head.member), (4, "s", head.error), (6, "s", head.destination)];
    for (code, signature, text) in texts {
        let Some(text) = text else { continue };
        out.align(8);
        out.byte(code);
        out.signature(signature);
        out.string(text);
    }
    if let Some(serial) = head.reply_to {
        out.align(8);
        out.byte(5);
        out.signature("u");
        out.u32(serial);
    }
    if !head.signature.is_empty() {
        out.align(8);
        out.byte(8);
        out.signature("g");
        out.signature(head.signature);
    }
    out.close_array(fields);
    out.align(8);
    let start = out.bytes.len();
    out.bytes.extend_from_slice(body);
    (out.bytes, start)
}

/// What is wrong with bytes that should be a message.
#[derive(Debug, PartialEq, Eq)]
pub enum WireError {
    Truncated,
    NotLittleEndian,
    TooLong,
    NotUtf8,
    UnknownField,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "D-Bus message ends too early",
            Self::NotLittleEndian => "D-Bus message is not little-endian",
            Self::TooLong => "D-Bus message is longer than 128 MiB",
            Self::NotUtf8 => "D-Bus message has a string that is not UTF-8",
            Self::UnknownField => "D-Bus message has a header field of a type that headers do not have",
        })
    }
}

impl std::error::Error for WireError {}

/// A message as it was received.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received<'a> {
    pub kind: u8,
    pub serial: u32,
    pub wants_no_reply: bool,
    pub path: &'a str,
    pub member: &'a str,
    pub error: &'a str,
    pub sender: &'a str,
    pub reply_to: u32,
    pub body: &'a [u8],
}

/// How long the message at the start of `bytes` is; `None` when too little of it is there to tell.
pub fn message_length(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    if bytes.len() < 16 {
        return Ok(None);
    }
    if bytes.first() != Some(&b'l') {
        return Err(WireError::NotLittleEndian);
    }
    let mut reader = Reader { bytes, at: 4 };
    let body = reader.u32()? as usize;
    reader.u32()?;
    let fields = reader.u32()? as usize;
    let length = (16 + fields).next_multiple_of(8) + body;
    if length > MAX_MESSAGE { Err(WireError::TooLong) } else { Ok(Some(length)) }
}

/// Reads one whole message.
pub fn parse(bytes: &[u8]) -> Result<Received<'_>, WireError> {
    let length = message_length(bytes)?.ok_or(WireError::Truncated)?;
    let bytes = bytes.get(..length).ok_or(WireError::Truncated)?;
    let mut reader = Reader { bytes, at: 1 };
    let mut message = Received { kind: reader.byte()?, wants_no_reply: reader.byte()? & 1 != 0, ..Received::default() };
    reader.at = 4;
    let body = reader.u32()? as usize;
    message.serial = reader.u32()?;
    let end = reader.u32()? as usize + 16;
    while reader.at < end {
        reader.align(8);
        if reader.at >= end {
            break;
        }
        let code = reader.byte()?;
        match (code, reader.signature()?) {
            (1, "o") => message.path = reader.string()?,
            (3, "s") => message.member = reader.string()?,
            (4, "s") => message.error = reader.string()?,
            (5, "u") => message.reply_to = reader.u32()?,
            (7, "s") => message.sender = reader.string()?,
            (_, "s" | "o") => drop(reader.string()?),
            (_, "u") => drop(reader.u32()?),
            (_, "g") => drop(reader.signature()?),
            _ => return Err(WireError::UnknownField),
        }
    }
    message.body = bytes.get(length - body..).ok_or(WireError::Truncated)?;
    Ok(message)
}

/// The value of a SetValue call, as far as the fakes take one.
#[derive(Debug, PartialEq)]
pub enum Argument<'a> {
    Number(f64),
    Text(&'a str),
    Other,
}

/// The variant a SetValue call carries.
pub fn set_value_argument(body: &[u8]) -> Result<Argument<'_>, WireError> {
    let mut reader = Reader { bytes: body, at: 0 };
    let signature = reader.signature()?;
    Ok(match signature {
        "d" => Argument::Number(f64::from_le_bytes(reader.fixed::<8>()?)),
        "i" => Argument::Number(f64::from(i32::from_le_bytes(reader.fixed::<4>()?))),
        "u" => Argument::Number(f64::from(reader.u32()?)),
        "x" => Argument::Number(i64::from_le_bytes(reader.fixed::<8>()?) as f64),
        "s" => Argument::Text(reader.string()?),
        _ => Argument::Other,
    })
}

/// The strings a body is an array of (ListNames).
pub fn strings(body: &[u8]) -> Result<Vec<&str>, WireError> {
    let mut reader = Reader { bytes: body, at: 0 };
    let end = reader.u32()? as usize + reader.at;
    let mut strings = Vec::new();
    while reader.at < end {
        strings.push(reader.string()?);
    }
    Ok(strings)
}

/// The strings a body begins with (NameOwnerChanged).
pub fn leading_strings<const N: usize>(body: &[u8]) -> Result<[&str; N], WireError> {
    let mut reader = Reader { bytes: body, at: 0 };
    let mut strings = [""; N];
    for string in &mut strings {
        *string = reader.string()?;
    }
    Ok(strings)
}

/// The u32 a reply begins with (RequestName, ReleaseName).
pub fn leading_u32(body: &[u8]) -> Option<u32> {
    Reader { bytes: body, at: 0 }.u32().ok()
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let end = self.at.checked_add(count).ok_or(WireError::Truncated)?;
        let part = self.bytes.get(self.at..end).ok_or(WireError::Truncated)?;
        self.at = end;
        Ok(part)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.align(N);
        self.take(N)?.try_into().map_err(|_| WireError::Truncated)
    }

    fn byte(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.fixed::<1>()?))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.fixed::<4>()?))
    }

    fn text(&mut self, length: usize) -> Result<&'a str, WireError> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| WireError::NotUtf8)?;
        self.take(1)?;
        Ok(text)
    }

    fn string(&mut self) -> Result<&'a str, WireError> {
        let length = self.u32()? as usize;
        self.text(length)
    }

    fn signature(&mut self) -> Result<&'a str, WireError> {
        let length = self.byte()?;
        self.text(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Vec<u8> {
        let mut body = Writer::default();
        body.signature("d");
        body.double(926.5);
        let head = Head {
            kind: CALL,
            path: Some("/Dc/0/Power"),
            interface: Some("com.victronenergy.BusItem"),
            member: Some("SetValue"),
            destination: Some(":1.7"),
            signature: "v",
            ..Head::default()
        };
        message(head, 0x0102_0304, &body.bytes).0
    }

    #[test]
    fn a_message_reads_back() {
        let bytes = call();
        assert_eq!(message_length(&bytes), Ok(Some(bytes.len())));
        let read = parse(&bytes).unwrap();
        assert_eq!((read.kind, read.serial, read.path, read.member), (CALL, 0x0102_0304, "/Dc/0/Power", "SetValue"));
        assert_eq!(set_value_argument(read.body), Ok(Argument::Number(926.5)));
    }

    #[test]
    fn the_header_is_what_the_specification_says() {
        let (bytes, body_at) = message(Head { kind: SIGNAL, path: Some("/"), ..Head::default() }, 9, &[]);
        let expected = [
            b'l', 4, 0, 1, 0, 0, 0, 0, 9, 0, 0, 0, // kind, flags, version, body length, serial
            10, 0, 0, 0, // the array of fields: one struct of ten bytes
            1, 1, b'o', 0, 1, 0, 0, 0, b'/', 0, // path
            0, 0, 0, 0, 0, 0, // padding to 8
        ];
        assert_eq!(bytes, expected);
        assert_eq!(body_at, 32);
    }

    #[test]
    fn an_array_counts_its_elements_without_the_padding_before_them() {
        let mut out = Writer::default();
        let array = out.open_array(8);
        let at = out.double(1.5);
        out.close_array(array);
        assert_eq!(at, 8);
        assert_eq!(&out.bytes[..8], [8, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(out.bytes.len(), 16);
    }

    #[test]
    fn strings_and_signatures_end_with_nul() {
        let mut out = Writer::default();
        out.byte(7);
        out.string("ab");
        out.signature("a{sv}");
        assert_eq!(out.bytes, [7, 0, 0, 0, 2, 0, 0, 0, b'a', b'b', 0, 5, b'a', b'{', b's', b'v', b'}', 0]);
    }

    #[test]
    fn arrays_and_rows_of_strings_are_read() {
        let mut out = Writer::default();
        let array = out.open_array(4);
        for name in [":1.7", "com.victronenergy.settings", ""] {
            out.string(name);
        }
        out.close_array(array);
        assert_eq!(strings(&out.bytes), Ok(vec![":1.7", "com.victronenergy.settings", ""]));
        assert_eq!(strings(&out.bytes[..out.bytes.len() - 1]), Err(WireError::Truncated));
        assert_eq!(strings(&[0, 0, 0, 0]), Ok(Vec::new()));
        assert_eq!(leading_strings(&out.bytes[4..]), Ok([":1.7", "com.victronenergy.settings"]));
        assert_eq!(leading_strings::<4>(&out.bytes[4..]), Err(WireError::Truncated));
    }

    #[test]
    fn what_is_cut_short_or_foreign_is_refused() {
        let bytes = call();
        assert_eq!(message_length(&bytes[..15]), Ok(None));
        for cut in 16..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Err(WireError::Truncated));
        }
        let mut big_endian = bytes.clone();
        big_endian[0] = b'B';
        assert_eq!(message_length(&big_endian), Err(WireError::NotLittleEndian));
        let mut endless = bytes;
        endless[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(message_length(&endless), Err(WireError::TooLong));
    }

    #[test]
    fn no_bytes_make_the_reader_panic() {
        let good = call();
        for at in 0..good.len() {
            for value in [0, 1, 127, 255] {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Ok(read) = parse(&bytes) {
                    let _ = (set_value_argument(read.body), strings(read.body), leading_strings::<3>(read.body));
                }
            }
        }
    }
}

//! The body of a signal, read without anything between: nine in ten changes are numbers, and what is spent on each of them is
//! most of what this daemon costs.
//!
//! Reads exactly the bodies of `ItemsChanged` and `PropertiesChanged`, in the byte order of this machine's kind, with values that
//! hold no others. Everything else is given back ([`Unread`]), for the general way. Every step is bounded by the body's length.

use crate::bridge::Change;
use crate::bridge::value::Value;

/// Not read, or not to the end: the general way takes the whole body.
#[derive(Debug, PartialEq, Eq)]
pub struct Unread;

/// `a{sa{sv}}`
pub fn read_items<'b>(body: &'b [u8], mut each: impl FnMut(&'b str, Change)) -> Result<(), Unread> {
    let mut cursor = Cursor { body, at: 0 };
    let end = cursor.array().ok_or(Unread)?;
    while cursor.at < end {
        let (path, change) = cursor.item().ok_or(Unread)?;
        each(path, change);
    }
    if cursor.at == body.len() { Ok(()) } else { Err(Unread) }
}

/// `a{sv}`
pub fn read_change(body: &[u8]) -> Result<Change, Unread> {
    let mut cursor = Cursor { body, at: 0 };
    let change = cursor.change().ok_or(Unread)?;
    if cursor.at == body.len() { Ok(change) } else { Err(Unread) }
}

struct Cursor<'b> {
    body: &'b [u8],
    at: usize,
}

impl<'b> Cursor<'b> {
    fn item(&mut self) -> Option<(&'b str, Change)> {
        self.align(8);
        let path = std::str::from_utf8(self.text()?).ok()?;
        Some((path, self.change()?))
    }

    fn change(&mut self) -> Option<Change> {
        let end = self.array()?;
        let mut change = Change::default();
        while self.at < end {
            self.align(8);
            let field = match self.text()? {
                b"Value" => &mut change.value,
                b"Min" => &mut change.min,
                b"Max" => &mut change.max,
                b"Default" => &mut change.default,
                _ => {
                    self.skip_variant()?;
                    continue;
                }
            };
            *field = Some(self.variant()?);
        }
        (self.at == end).then_some(change)
    }

    fn variant(&mut self) -> Option<Value> {
        Some(match self.signature()? {
            b'd' => Value::Double(f64::from_le_bytes(self.number()?)),
            b'i' => Value::Int(i32::from_le_bytes(self.number()?).into()),
            b'u' => Value::Int(u32::from_le_bytes(self.number()?).into()),
            b'n' => Value::Int(i16::from_le_bytes(self.number()?).into()),
            b'q' => Value::Int(u16::from_le_bytes(self.number()?).into()),
            b'y' => Value::Int(u8::from_le_bytes(self.number()?).into()),
            b'x' => Value::Int(i64::from_le_bytes(self.number()?)),
            b't' => {
                let number = u64::from_le_bytes(self.number()?);
                i64::try_from(number).map_or(Value::UInt(number), Value::Int)
            }
            b'b' => match u32::from_le_bytes(self.number()?) {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return None,
            },
            b's' => Value::Str(std::str::from_utf8(self.text()?).ok()?.into()),
            _ => return None,
        })
    }

    fn skip_variant(&mut self) -> Option<()> {
        match self.signature()? {
            b's' => drop(self.text()?),
            b'd' | b'x' | b't' => drop(self.number::<8>()?),
            b'i' | b'u' | b'b' => drop(self.number::<4>()?),
            _ => return None,
        }
        Some(())
    }

    /// The signature of a variant that holds one simple value.
    fn signature(&mut self) -> Option<u8> {
        match *self.body.get(self.at..self.at.checked_add(3)?)? {
            [1, code, 0] => {
                self.at += 3;
                Some(code)
            }
            _ => None,
        }
    }

    /// The end of an array of dictionary entries, which begins here.
    fn array(&mut self) -> Option<usize> {
        let length = self.length()?;
        self.align(8);
        self.at.checked_add(length).filter(|end| *end <= self.body.len())
    }

    fn text(&mut self) -> Option<&'b [u8]> {
        let length = self.length()?;
        let end = self.at.checked_add(length)?;
        let text = self.body.get(self.at..end)?;
        (*self.body.get(end)? == 0).then(|| self.at = end + 1)?;
        Some(text)
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(self.number()?)).ok()
    }

    /// A number of so many bytes, aligned to its size.
    fn number<const SIZE: usize>(&mut self) -> Option<[u8; SIZE]> {
        self.align(SIZE);
        let end = self.at.checked_add(SIZE)?;
        let bytes = self.body.get(self.at..end)?.try_into().ok()?;
        self.at = end;
        Some(bytes)
    }

    /// Beyond the end is found out by whoever reads next.
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }
}

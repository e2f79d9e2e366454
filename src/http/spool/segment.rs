//! One file of the queue. Its name is the lowest sequence number that may be in it, in hexadecimal, and what is in it lies within
//! [`SPAN`] of that: from the name of an empty file follows which numbers were never given out.
//!
//! It holds records one after the other, each of 16 bytes (little-endian: CRC-32 of all that follows up to the body's end, length of
//! the body, sequence number) and the body, filled up to a multiple of 16. A mark, "done through this number", is a record with a
//! length no body has; the filling keeps it within one sector and one page, so that it can be replaced in place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::files;

/// Longest body, in bytes.
pub const BODY_MAX: usize = 256 * 1024;

/// How many sequence numbers one file is good for.
pub const SPAN: u64 = 1 << 20;

const HEADER: usize = 16;

/// Instead of a length: it is a mark.
const MARK: u32 = u32::MAX;

const BUFFER: usize = 64 * 1024;

/// What is read of a file, in bytes: many times what the daemon makes of one. The rest of a larger one counts as damaged, so that what
/// is found in it is bounded.
const SIZE_MAX: u64 = 16 << 20;

/// A record that was found.
pub struct Found {
    pub seq: u64,
    pub offset: u32,
    /// From the number of the segment.
    pub delta: u32,
    pub len: u32,
}

/// What a segment holds beside records.
pub struct Scan {
    /// Up to here all is well.
    pub good: u64,
    pub size: u64,
    /// The greatest number that a mark names.
    pub done: u64,
    pub ends_marked: bool,
    /// Why it cannot be read any further, unless it is damaged or ends too soon.
    pub error: Option<io::Error>,
}

/// The one that is written to.
pub struct Current {
    pub first: u64,
    pub file: File,
    pub len: u64,
    /// It holds a record, done or not.
    pub used: bool,
    /// It ends with a mark, which the next one may replace.
    pub marked: bool,
    /// What stands after `len` could not be cut off.
    pub sealed: bool,
}

impl Scan {
    pub fn is_whole(&self) -> bool {
        self.good == self.size
    }
}

impl Current {
    /// Adds to its end, or leaves it as it was.
    pub fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(bytes, self.len) {
            // what came there of it must not stand before the next one
            self.sealed = self.file.set_len(self.len).is_err();
            return Err(error);
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    pub fn mark(&mut self, through: u64) -> io::Result<()> {
        let bytes = mark(through);
        if self.marked {
            return self.file.write_all_at(&bytes, self.len - bytes.len() as u64);
        }
        self.add(&bytes)?;
        self.marked = true;
        Ok(())
    }
}

pub fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:016x}.queue"))
}

/// The numbers of the segments in `dir`, in order, and what is called like one and is no regular file.
pub fn names(dir: &Path) -> io::Result<(Vec<u64>, Vec<PathBuf>)> {
    let (mut names, mut odd) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".queue")).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        // what else looks like it is not ours
        let ours = number.filter(|first| path(dir, *first).file_name() == Some(&name) && *first <= u64::MAX / 2);
        match ours {
            Some(first) if entry.file_type()?.is_file() => names.push(first),
            Some(_) => odd.push(entry.path()),
            None => {}
        }
    }
    names.sort_unstable();
    Ok((names, odd))
}

/// The bytes of a record.
pub fn record(seq: u64, body: &[u8]) -> Vec<u8> {
    // more than fits is refused before
    encode(u32::try_from(body.len()).unwrap_or(MARK - 1), seq, body)
}

/// The bytes of a mark.
pub fn mark(through: u64) -> Vec<u8> {
    encode(MARK, through, &[])
}

fn encode(len: u32, seq: u64, body: &[u8]) -> Vec<u8> {
    let size = size(body.len());
    let mut bytes = Vec::with_capacity(size);
    bytes.extend_from_slice(&crc(len, seq, body).to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&seq.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes.resize(size, 0);
    bytes
}

/// Of a record with a body of `len` bytes.
fn size(len: usize) -> usize {
    HEADER + len.next_multiple_of(HEADER)
}

fn crc(len: u32, seq: u64, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&len.to_le_bytes());
    crc.update(&seq.to_le_bytes());
    crc.update(body);
    crc.finalize()
}

/// The first 16 bytes of a record.
struct Header {
    crc: u32,
    len: u32,
    seq: u64,
}

impl Header {
    fn new(bytes: [u8; HEADER]) -> Self {
        let bits = u128::from_le_bytes(bytes);
        Self { crc: bits as u32, len: (bits >> 32) as u32, seq: (bits >> 64) as u64 }
    }

    /// `None`: no record is so long.
    fn body_len(&self) -> Option<usize> {
        if self.len == MARK { Some(0) } else { usize::try_from(self.len).ok().filter(|len| *len <= BODY_MAX) }
    }
}

/// Reads the file through, and adds its records to `found`. Fails where it cannot even be opened.
pub fn scan(path: &Path, first: u64, found: &mut Vec<Found>) -> io::Result<Scan> {
    let file = files::open_own(path, OpenOptions::new().read(true))?;
    let mut scan = Scan { good: 0, size: file.metadata()?.len(), done: 0, ends_marked: false, error: None };
    let mut reader = BufReader::with_capacity(BUFFER, file);
    let mut body = Vec::new();
    while scan.good < scan.size.min(SIZE_MAX) {
        match take(&mut reader, scan.size - scan.good, &mut body) {
            Ok(Some(header)) if accept(&header, first, &mut scan, found) => {}
            Ok(_) => break,
            Err(error) => {
                // shorter than it was a moment ago is as good as cut off
                scan.error = Some(error).filter(|error| error.kind() != io::ErrorKind::UnexpectedEof);
                break;
            }
        }
    }
    Ok(scan)
}

/// The next record, checked; `None`: it is damaged, or not all there.
fn take(reader: &mut impl Read, left: u64, body: &mut Vec<u8>) -> io::Result<Option<Header>> {
    if left < HEADER as u64 {
        return Ok(None);
    }
    let mut bytes = [0; HEADER];
    reader.read_exact(&mut bytes)?;
    let header = Header::new(bytes);
    let Some(len) = header.body_len().filter(|len| size(*len) as u64 <= left) else { return Ok(None) };
    body.resize(size(len) - HEADER, 0);
    reader.read_exact(body)?;
    Ok(body.get(..len).is_some_and(|body| crc(header.len, header.seq, body) == header.crc).then_some(header))
}

/// Takes a record in, unless it cannot be of this file.
fn accept(header: &Header, first: u64, scan: &mut Scan, found: &mut Vec<Found>) -> bool {
    let (seq, end) = (header.seq, first.saturating_add(SPAN));
    let (Ok(offset), Some(len)) = (u32::try_from(scan.good), header.body_len()) else { return false };
    scan.ends_marked = header.len == MARK;
    if seq >= end {
        return false;
    }
    if scan.ends_marked {
        scan.done = scan.done.max(seq);
    } else {
        let Some(delta) = seq.checked_sub(first).and_then(|delta| u32::try_from(delta).ok()) else { return false };
        found.push(Found { seq, offset, delta, len: header.len });
    }
    scan.good += size(len) as u64;
    true
}

/// The body of the record `seq`, which is at `offset`.
pub fn body(file: &File, offset: u32, seq: u64) -> io::Result<Vec<u8>> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
    let mut bytes = [0; HEADER];
    file.read_exact_at(&mut bytes, offset.into())?;
    let header = Header::new(bytes);
    let len = header.body_len().filter(|_| header.seq == seq && header.len != MARK).ok_or_else(damaged)?;
    let mut body = vec![0; len];
    file.read_exact_at(&mut body, u64::from(offset) + HEADER as u64)?;
    if crc(header.len, seq, &body) == header.crc { Ok(body) } else { Err(damaged()) }
}

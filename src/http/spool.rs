//! The queue of one target on disk: measurements that wait, in order, across restarts and power cuts.
//!
//! Promises: what [`Spool::append`] has written survives whatever ends the process, and a power cut as well once [`Spool::sync`] has
//! returned; only that one waits for the flash. After either, no more comes again than what was forgotten and not yet noted. A body
//! is given as it came or not at all. Where the disk cannot be written, records are kept in memory, a few MiB of them, until it can;
//! what is still there at the end, [`Spool::finish`] gives back.
//! Refuses a folder that another daemon uses. What is wrong costs a warning and as little as possible; files that are not ours are
//! left alone.
//!
//! A queue is a row of segments (`segment`). Records and marks ("done through so far") are only ever added to the last one; a segment
//! goes when all in it is done, and the last one is emptied when nothing waits: a record that is delivered soon never gets to the
//! flash. All of this blocks; called by the target's worker, on a thread where that is allowed.

mod memory;
mod segment;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use log::Level;

use crate::files::{self, why};
use crate::log::Repeated;
use crate::measure::Entry;

use memory::Memory;
use segment::{BODY_MAX, Current, Found, SPAN};

/// Size of a segment, in bytes: what is done in one with something that waits still costs so much at most.
const SEGMENT: u64 = 512 * 1024;

/// Most bytes of bodies kept in memory while the disk cannot be written: six hours of an ordinary system.
pub const MEMORY: usize = 512 * 1024;

/// Why there is no body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unread {
    /// There will be none.
    Lost,
    /// The disk does not give it now; why.
    Now(String),
}

pub struct Spool {
    dir: PathBuf,
    /// Names the target in log lines.
    what: String,
    segment_size: u64,
    /// The folder, locked unless its file system knows no locks; `None`: there is none yet.
    folder: Option<File>,
    /// The folder is somebody else's, or holds what an earlier life of ours could not see: all stays in memory.
    foreign: bool,
    /// By the number in their names.
    segments: BTreeMap<u64, Segment>,
    /// The one that is written to, the last of `segments`.
    current: Option<Current>,
    /// The one before it that was read last: what waits is read in order.
    reader: Option<(u64, File)>,
    /// What waits on disk, in order.
    index: VecDeque<Slot>,
    /// What waits and could not be written, in order; newer than all on disk.
    memory: Memory,
    /// How many were dropped from memory since the trouble began.
    dropped: u64,
    /// The latest that was appended.
    last: u64,
    /// Everything up to this one is delivered or dropped, and up to `noted` that is what the disk says.
    done: u64,
    noted: u64,
    /// Folders with entries that a power cut could undo.
    folders: Vec<PathBuf>,
    /// The disk could not be written, and that was said.
    failing: bool,
    /// The same for bringing it all to the flash.
    sync_failing: bool,
    said: Repeated,
}

/// Where a record is: in the segment with the number `seq - delta`.
#[derive(Clone, Copy, Debug)]
struct Slot {
    seq: u64,
    offset: u32,
    delta: u32,
}

#[derive(Default)]
struct Segment {
    /// Records that wait.
    live: usize,
    /// Not all of it is on the flash as it is now.
    dirty: bool,
    /// Something of it may be on the flash.
    synced: bool,
    /// A record of it could not be read, and that was said.
    damaged: bool,
    /// The disk did not give all of it: the next start may find more.
    unread: bool,
}

impl Spool {
    /// Opens or makes the queue in `dir`, `<state_dir>/http/<queue>`: these three folders are made where they are not there, but what
    /// they lie in is for the person to make. `what` names the target in log lines. Gives what waits, oldest first, and the next
    /// sequence number: greater than all before it, but not always the very next. What is wrong is said.
    pub fn open(dir: &Path, what: &str) -> (Self, Vec<Entry>, u64) {
        Self::with_sizes(dir, what, SEGMENT, MEMORY)
    }

    fn with_sizes(dir: &Path, what: &str, segment_size: u64, memory_max: usize) -> (Self, Vec<Entry>, u64) {
        let mut spool = Self {
            dir: dir.into(),
            what: what.into(),
            segment_size,
            folder: None,
            foreign: false,
            segments: BTreeMap::new(),
            current: None,
            reader: None,
            index: VecDeque::new(),
            memory: Memory::new(memory_max),
            dropped: 0,
            last: 0,
            done: 0,
            noted: 0,
            folders: Vec::new(),
            failing: false,
            sync_failing: false,
            said: Repeated::new(),
        };
        let entries = match spool.make_way().and_then(|()| spool.attach()) {
            Ok(names) => spool.load(&names),
            Err(error) => {
                spool.report(Err(error));
                Vec::new()
            }
        };
        let next = spool.last.saturating_add(1);
        (spool, entries, next)
    }

    /// Whether somebody uses the queue in `dir` now: an earlier life that has not quite ended, say.
    pub fn is_taken(dir: &Path) -> bool {
        files::open_folder(dir).is_ok_and(|folder| matches!(folder.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Appends at once, with one write and no fsync; where that fails, the record is kept in memory. `seq` must be greater than
    /// every one before it: a record that comes twice is kept once. More than 256 KiB are not kept.
    pub fn append(&mut self, seq: u64, body: &[u8]) {
        if seq <= self.last {
            return;
        }
        // first, so that a segment that begins with it has room for this record
        let noted = self.note();
        self.last = seq;
        if body.len() > BODY_MAX {
            log::warn!("{}: a measurement of {} bytes is too large to be kept: it is lost", self.what, body.len());
            return;
        }
        let written = self.bring().and_then(|()| self.write(seq, body));
        if written.is_err() {
            self.remember(seq, body);
        }
        self.report(written.and(noted));
    }

    /// The body. What is damaged, or was not there any more, is lost, and that was said.
    pub fn read(&mut self, seq: u64) -> Result<Vec<u8>, Unread> {
        if let Some(body) = self.memory.get(seq) {
            return Ok(body.to_vec());
        }
        let at = self.index.binary_search_by_key(&seq, |slot| slot.seq).map_err(|_| Unread::Lost)?;
        let slot = *self.index.get(at).ok_or(Unread::Lost)?;
        let error = match self.fetch(slot) {
            Ok(body) => return Ok(body),
            Err(error) if is_damage(&error) => error,
            Err(error) => return Err(Unread::Now(why(&error))),
        };
        let file = segment::path(&self.dir, slot.first());
        match self.segments.get_mut(&slot.first()) {
            Some(segment) if !segment.damaged => {
                segment.damaged = true;
                log::warn!("{}: a measurement that waited cannot be read from {}: {}; it is lost", self.what, file.display(), why(&error));
            }
            _ => log::debug!("{}: measurement {seq} cannot be read from {} either", self.what, file.display()),
        }
        Err(Unread::Lost)
    }

    /// Everything up to and including `through` is delivered or dropped.
    pub fn forget(&mut self, through: u64) {
        self.done = self.done.max(through.min(self.last));
        while let Some(slot) = self.index.front().copied().filter(|slot| slot.seq <= self.done) {
            self.index.pop_front();
            if let Some(segment) = self.segments.get_mut(&slot.first()) {
                segment.live = segment.live.saturating_sub(1);
            }
        }
        self.memory.forget(self.done);
        if let error @ Err(_) = self.note() {
            self.report(error);
        }
    }

    /// Brings to the flash what was done since the last time, and to the disk what is in memory only. Cheap when there is nothing
    /// to do.
    pub fn sync(&mut self) {
        if !self.memory.is_empty() || self.noted < self.done {
            let brought = self.note().and(self.bring());
            self.report(brought);
        }
        let synced = self.flush();
        match (&synced, self.sync_failing) {
            (Err(error), false) => {
                let text = format!("{}: measurements in {} are not safe from a power cut: {}", self.what, self.dir.display(), why(error));
                self.said.say(Level::Warn, &text);
            }
            (Ok(()), true) => {
                let text = format!("{}: measurements in {} are safe from a power cut again", self.what, self.dir.display());
                self.said.say(Level::Info, &text);
            }
            _ => {}
        }
        self.sync_failing = synced.is_err();
    }

    /// How many of those that wait are in memory only.
    pub fn unwritten(&self) -> usize {
        self.memory.len()
    }

    /// The end. Gives the bodies that the disk does not take even now, oldest first.
    pub fn finish(mut self) -> Vec<Box<[u8]>> {
        if !self.memory.is_empty() || self.noted < self.done {
            self.sync();
        }
        std::iter::from_fn(|| self.memory.pop()).map(|(_, body)| body).collect()
    }

    /// Sets aside what is in the place of its folders. For the start only: what takes their place later is not looked at.
    fn make_way(&self) -> io::Result<()> {
        // the third is the state folder, which is the person's
        let levels: Vec<_> = self.dir.ancestors().take(2).collect();
        for level in levels.into_iter().rev().filter(|level| files::is_no_folder(level)) {
            let aside = files::set_aside(level)?;
            log::warn!("{}: {} is not a folder: it is now {}", self.what, level.display(), aside.display());
        }
        Ok(())
    }

    /// Makes what folders are missing, and locks the last. Gives the numbers of the segments that are there.
    fn attach(&mut self) -> io::Result<Vec<u64>> {
        let levels: Vec<_> = self.dir.ancestors().take(3).filter(|level| !level.as_os_str().is_empty()).collect();
        for level in levels.into_iter().rev() {
            match DirBuilder::new().mode(0o700).create(level) {
                Ok(()) => self.folders.extend(level.parent().map(Path::to_path_buf)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        let folder = files::open_folder(&self.dir)?;
        // a file system that knows no locks is no reason to keep nothing
        if let Err(TryLockError::WouldBlock) = folder.try_lock() {
            return Err(self.keep_off("another daemon uses it; give this one a `state_dir` of its own in [devices], and start it again"));
        }
        self.folder = Some(folder);
        let (names, odd) = segment::names(&self.dir)?;
        for file in odd {
            let aside = files::set_aside(&file)?;
            log::warn!("{}: {} is not a regular file: it is now {}", self.what, file.display(), aside.display());
        }
        Ok(names)
    }

    /// Reads what is there, and gives what waits. The file that is written to is the last one, if all is well with it; else a new one:
    /// numbers that may have been given out are not given out again.
    fn load(&mut self, names: &[u64]) -> Vec<Entry> {
        let mut found = Vec::new();
        let mut end = None;
        for (at, &first) in names.iter().enumerate() {
            let newest = at + 1 == names.len();
            let before = found.len();
            match segment::scan(&segment::path(&self.dir, first), first, &mut found) {
                Ok(scan) => {
                    self.noted = self.noted.max(scan.done);
                    let unread = scan.error.is_some();
                    self.segments.insert(first, Segment { dirty: true, synced: true, unread, ..Segment::default() });
                    self.warn_damaged(first, &scan, newest);
                    end = (newest && scan.is_whole() && found.len() > before).then_some(scan);
                }
                Err(error) => {
                    let file = segment::path(&self.dir, first);
                    log::warn!("{}: measurements in {} cannot be read: {}", self.what, file.display(), why(&error));
                }
            }
        }
        self.done = self.noted;
        let last = found.iter().map(|found| found.seq).max().unwrap_or(0).max(self.done);
        // a power cut may have brought back what was removed
        found.retain(|found| found.seq > self.done);
        found.sort_by_key(|found| found.seq);
        found.dedup_by_key(|found| found.seq);
        let entries = found.iter().map(|found| Entry { seq: found.seq, len: found.len }).collect();
        self.index = found.into_iter().map(Slot::from).collect();
        for slot in &self.index {
            if let Some(segment) = self.segments.get_mut(&slot.first()) {
                segment.live += 1;
            }
        }
        let newest = names.last().copied();
        self.last = if end.is_some() { last } else { newest.map_or(0, |first| last.max(first.saturating_add(SPAN - 1))) };
        let continued = match (end, newest) {
            (Some(scan), Some(first)) => self.go_on(first, &scan),
            _ => self.roll(self.last.saturating_add(1)),
        };
        let tidied = if self.index.is_empty() { self.clear() } else { self.remove_done() };
        if let error @ Err(_) = continued.and(tidied) {
            self.report(error);
        }
        entries
    }

    /// What follows a damage is lost; at the end of the newest segment, where a write was cut short, it is cut off as well.
    fn warn_damaged(&self, first: u64, scan: &segment::Scan, newest: bool) {
        if scan.is_whole() {
            return;
        }
        let (file, bytes) = (segment::path(&self.dir, first), scan.size - scan.good);
        match &scan.error {
            Some(error) => log::warn!("{}: the last {bytes} bytes of {} cannot be read: {}", self.what, file.display(), why(error)),
            None if newest => log::warn!("{}: the last {bytes} bytes of {} are incomplete or damaged: cut off", self.what, file.display()),
            None => {
                log::warn!("{}: the last {bytes} bytes of {} are damaged: the measurements in them are lost", self.what, file.display())
            }
        }
        if newest && scan.error.is_none() {
            let cut = files::open_own(&file, OpenOptions::new().write(true)).and_then(|file| file.set_len(scan.good));
            if let Err(error) = cut {
                log::warn!("{}: {} cannot be cut: {}", self.what, file.display(), why(&error));
            }
        }
    }

    /// Writes on where an earlier life ended.
    fn go_on(&mut self, first: u64, scan: &segment::Scan) -> io::Result<()> {
        let file = files::open_own(&segment::path(&self.dir, first), OpenOptions::new().read(true).write(true))?;
        self.current = Some(Current { first, file, len: scan.size, used: true, marked: scan.ends_marked, sealed: false });
        Ok(())
    }

    /// Brings what is in memory to the disk.
    fn bring(&mut self) -> io::Result<()> {
        while let Some((seq, body)) = self.memory.pop() {
            if let Err(error) = self.write(seq, &body) {
                self.memory.put_back(seq, body);
                return Err(error);
            }
        }
        Ok(())
    }

    fn remember(&mut self, seq: u64, body: &[u8]) {
        let dropped = self.memory.push(seq, body);
        if dropped > 0 && self.dropped == 0 {
            let text = format!("{}: memory holds no more measurements: the oldest of those that are only there are dropped", self.what);
            self.said.say(Level::Warn, &text);
        }
        self.dropped += dropped;
    }

    fn write(&mut self, seq: u64, body: &[u8]) -> io::Result<()> {
        let bytes = segment::record(seq, body);
        let size = self.segment_size;
        let room = |current: &Current| {
            let span = current.first..current.first.saturating_add(SPAN);
            span.contains(&seq) && (!current.used || current.len + bytes.len() as u64 <= size)
        };
        self.ensure(seq, room)?;
        let Some(current) = &mut self.current else { return Err(gone()) };
        let slot = Slot { seq, offset: u32::try_from(current.len).map_err(io::Error::other)?, delta: delta(seq, current.first)? };
        current.add(&bytes)?;
        (current.used, current.marked) = (true, false);
        self.index.push_back(slot);
        let segment = self.segments.entry(slot.first()).or_default();
        segment.live += 1;
        segment.dirty = true;
        Ok(())
    }

    /// Has the disk say what is done, and removes what nobody waits for.
    fn note(&mut self) -> io::Result<()> {
        if self.noted >= self.done {
            return Ok(());
        }
        if self.index.is_empty() {
            self.clear()?;
        } else {
            // a full disk may have no room for the mark before something is removed
            let marked = self.mark();
            self.remove_done()?;
            marked?;
        }
        self.noted = self.done;
        Ok(())
    }

    fn mark(&mut self) -> io::Result<()> {
        let next = self.memory.first().unwrap_or(self.last.saturating_add(1));
        self.ensure(next, |_| true)?;
        let Some(current) = &mut self.current else { return Err(gone()) };
        current.mark(self.done)?;
        self.segments.entry(current.first).or_default().dirty = true;
        Ok(())
    }

    /// Nothing on disk waits: the last segment is emptied, the others go.
    fn clear(&mut self) -> io::Result<()> {
        self.index.shrink_to(64);
        self.remove_done()?;
        let Some(current) = &mut self.current else { return Ok(()) };
        if current.len > 0 || current.sealed {
            current.file.set_len(0)?;
            (current.len, current.used, current.marked, current.sealed) = (0, false, false, false);
            if let Some(segment) = self.segments.get_mut(&current.first) {
                segment.dirty = segment.synced;
            }
        }
        Ok(())
    }

    /// Removes the segments before the last one in which nothing waits.
    fn remove_done(&mut self) -> io::Result<()> {
        let current = self.current.as_ref().map(|current| current.first);
        let done: Vec<_> = self
            .segments
            .iter()
            .filter(|(first, segment)| segment.live == 0 && !segment.unread && Some(**first) != current)
            .map(|(first, _)| *first)
            .collect();
        done.into_iter().try_for_each(|first| self.remove(first))
    }

    fn remove(&mut self, first: u64) -> io::Result<()> {
        match fs::remove_file(segment::path(&self.dir, first)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.segments.remove(&first);
        if self.reader.as_ref().is_some_and(|(number, _)| *number == first) {
            self.reader = None;
        }
        self.changed();
        Ok(())
    }

    /// Sees to it that the current segment can be written to and is what the caller asks for; a new one gets the number `next`.
    fn ensure(&mut self, next: u64, fits: impl Fn(&Current) -> bool) -> io::Result<()> {
        match &self.current {
            // a file that was removed can be written to like any other
            Some(current) if !current.sealed && fits(current) && current.file.metadata()?.nlink() > 0 => Ok(()),
            _ => self.roll(next),
        }
    }

    fn roll(&mut self, first: u64) -> io::Result<()> {
        if self.foreign {
            return Err(gone());
        }
        self.stay()?;
        if self.segments.contains_key(&first) {
            // no record ever got into it
            self.current = None;
            self.remove(first)?;
        }
        let path = segment::path(&self.dir, first);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let mut current = Current { first, file, len: 0, used: false, marked: false, sealed: false };
        // the segment with the latest mark may go before one with records that are done
        if self.done > 0
            && !self.index.is_empty()
            && let Err(error) = current.mark(self.done)
        {
            if fs::remove_file(path).is_err() {
                // it is in the way until it can be
                self.segments.insert(first, Segment::default());
            }
            return Err(error);
        }
        self.segments.insert(first, Segment { dirty: current.len > 0, ..Segment::default() });
        self.current = Some(current);
        self.changed();
        // tried again when more is done
        let _ = self.remove_done();
        Ok(())
    }

    /// Makes the folder again where it is gone, or another one is in its place.
    fn stay(&mut self) -> io::Result<()> {
        if let Some(folder) = &self.folder {
            let (held, there) = (folder.metadata()?, fs::metadata(&self.dir));
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
                return Ok(());
            }
        }
        let names = self.attach()?;
        (self.current, self.reader) = (None, None);
        self.segments.clear();
        if !self.index.is_empty() {
            let lost = self.index.len();
            log::warn!("{}: {} was removed: {lost} measurements that waited in it are lost", self.what, self.dir.display());
            self.index = VecDeque::new();
        }
        if !names.is_empty() {
            return Err(self.keep_off("it was not there at the start and holds measurements; they go out after the next start"));
        }
        Ok(())
    }

    /// From now on; that is worth a line of its own.
    fn keep_off(&mut self, reason: &str) -> io::Error {
        (self.foreign, self.failing, self.current) = (true, false, None);
        io::Error::other(reason)
    }

    fn fetch(&mut self, slot: Slot) -> io::Result<Vec<u8>> {
        let first = slot.first();
        if let Some(current) = self.current.as_ref().filter(|current| current.first == first) {
            return segment::body(&current.file, slot.offset, slot.seq);
        }
        let file = match self.reader.take() {
            Some((number, file)) if number == first => file,
            _ => files::open_own(&segment::path(&self.dir, first), OpenOptions::new().read(true))?,
        };
        // after an error it is opened again
        let body = segment::body(&file, slot.offset, slot.seq)?;
        self.reader = Some((first, file));
        Ok(body)
    }

    fn flush(&mut self) -> io::Result<()> {
        for (first, segment) in self.segments.iter_mut().filter(|(_, segment)| segment.dirty) {
            match self.current.as_ref().filter(|current| current.first == *first) {
                Some(current) => current.file.sync_data()?,
                None => open_there(&segment::path(&self.dir, *first))?.map_or(Ok(()), |file| file.sync_data())?,
            }
            (segment.dirty, segment.synced) = (false, true);
        }
        while let Some(folder) = self.folders.last() {
            // what lies above may not be ours to open
            if let Ok(folder) = files::open_folder(folder) {
                folder.sync_all()?;
            }
            self.folders.pop();
        }
        Ok(())
    }

    /// Files came or went.
    fn changed(&mut self) {
        if !self.folders.contains(&self.dir) {
            self.folders.push(self.dir.clone());
        }
    }

    /// Says when the disk cannot be written, and when it can again.
    fn report(&mut self, result: io::Result<()>) {
        match (&result, self.failing) {
            (Err(error), false) => {
                let text = format!(
                    "{}: measurements that wait are kept in memory only: cannot write into {}: {}{}",
                    self.what,
                    self.dir.display(),
                    why(error),
                    if self.foreign { "" } else { "; set `state_dir` in [devices] to a folder that can be written and has room" }
                );
                self.said.say(Level::Warn, &text);
            }
            (Ok(()), true) => {
                let (lost, dir) = (self.dropped, self.dir.display());
                let text =
                    format!("{}: measurements that wait are kept in {dir} again; {lost} were dropped from memory meanwhile", self.what);
                self.said.say(Level::Info, &text);
                self.dropped = 0;
            }
            _ => {}
        }
        self.failing = result.is_err();
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // a child that is just being started has the descriptor, too
        if let Some(folder) = &self.folder {
            let _ = folder.unlock();
        }
    }
}

impl Slot {
    /// The number of its segment.
    fn first(self) -> u64 {
        self.seq - u64::from(self.delta)
    }
}

impl From<Found> for Slot {
    fn from(found: Found) -> Self {
        Self { seq: found.seq, offset: found.offset, delta: found.delta }
    }
}

fn delta(seq: u64, first: u64) -> io::Result<u32> {
    seq.checked_sub(first).and_then(|delta| u32::try_from(delta).ok()).ok_or_else(gone)
}

/// Another attempt would find the same.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound)
}

/// `None`: it was removed.
fn open_there(file: &Path) -> io::Result<Option<File>> {
    match files::open_own(file, OpenOptions::new().read(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "there is nothing to write to")
}

//! Whatever is done to a queue, in whatever order, and wherever its files are damaged: it is compared with a model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::broken::{break_disk, mend_disk};
use super::{SMALL, bytes_in, files, open, queue};
use crate::http::spool::{MEMORY, Spool, segment};
use crate::scratch::Scratch;

/// What is done to a queue.
#[derive(Clone, Debug)]
enum Op {
    Append(usize),
    /// So many of those that wait.
    Forget(usize),
    Read,
    Sync,
    Reopen,
    /// The disk takes nothing, until it is mended.
    Break,
    Mend,
    /// Of the newest file, at that part of its length.
    Cut(f64),
    /// In one of the files, at that part of its length, these bits.
    Flip(prop::sample::Index, f64, u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        16 => (0_usize..300).prop_map(Op::Append),
        10 => (0_usize..6).prop_map(Op::Forget),
        2 => (20_usize..60).prop_map(Op::Forget),
        4 => Just(Op::Read),
        1 => Just(Op::Sync),
        2 => Just(Op::Reopen),
        6 => Just(Op::Break),
        10 => Just(Op::Mend),
        2 => (0.0..1.0).prop_map(Op::Cut),
        2 => (any::<prop::sample::Index>(), 0.0..1.0, 1_u8..).prop_map(|(file, place, bits)| Op::Flip(file, place, bits)),
    ]
}

/// A queue, and what should be in it.
struct Model {
    dir: PathBuf,
    spool: Option<Spool>,
    next: u64,
    waiting: BTreeMap<u64, Vec<u8>>,
    /// What was there once: damaged marks may bring it back, but never anything else.
    past: BTreeMap<u64, Vec<u8>>,
    broken: bool,
}

impl Model {
    fn new(dir: PathBuf) -> Self {
        let (spool, _, next) = open(&dir);
        Self { dir, spool: Some(spool), next, waiting: BTreeMap::new(), past: BTreeMap::new(), broken: false }
    }

    fn spool(&mut self) -> &mut Spool {
        self.spool.as_mut().unwrap()
    }

    fn apply(&mut self, op: Op) {
        if matches!(op, Op::Reopen | Op::Cut(_) | Op::Flip(..)) {
            // what memory holds is lost at an end, and a file that is damaged has to be there
            self.mend();
            self.spool().sync();
        }
        match op {
            Op::Append(len) => {
                let body: Vec<u8> = (0..len).map(|at| (at as u64 ^ self.next.wrapping_mul(31)) as u8).collect();
                let seq = self.next;
                self.spool().append(seq, &body);
                assert!(self.broken || self.spool().memory.is_empty(), "the disk takes it");
                self.waiting.insert(seq, body);
                self.next += 1;
            }
            Op::Forget(count) => {
                let Some(through) = self.waiting.keys().take(count).next_back().copied() else { return };
                self.spool().forget(through);
                let rest = self.waiting.split_off(&(through + 1));
                self.past.extend(std::mem::replace(&mut self.waiting, rest));
            }
            // what is on a broken disk may be read or not
            Op::Read if self.broken => {}
            Op::Read => {
                let damaged = self.read_all();
                assert!(damaged.is_empty(), "{damaged:?}");
            }
            Op::Sync => self.spool().sync(),
            Op::Reopen => self.reopen(None),
            Op::Break => {
                if !std::mem::replace(&mut self.broken, true) {
                    break_disk(self.spool());
                }
            }
            Op::Mend => self.mend(),
            Op::Cut(part) => {
                let file = files(&self.dir).pop().unwrap();
                let at = (fs::metadata(&file).unwrap().len() as f64 * part) as u64;
                let hit = self.touched(&file, |_, end| end > at);
                OpenOptions::new().write(true).open(&file).unwrap().set_len(at).unwrap();
                self.reopen(Some(hit));
            }
            Op::Flip(file, part, bits) => {
                let file = file.get(&files(&self.dir)).clone();
                let mut bytes = fs::read(&file).unwrap();
                let at = (bytes.len() as f64 * part) as usize;
                let Some(byte) = bytes.get_mut(at) else { return };
                *byte ^= bits;
                fs::write(&file, bytes).unwrap();
                let hit = self.touched(&file, |start, end| start <= at as u64 && at as u64 <= end);
                let damaged = self.read_all();
                assert!(damaged.is_subset(&hit), "{damaged:?} {hit:?}");
                let behind = self.touched(&file, |_, end| end > at as u64);
                self.reopen(Some(behind));
            }
        }
    }

    fn mend(&mut self) {
        if std::mem::take(&mut self.broken) {
            mend_disk(self.spool());
        }
    }

    /// Those that wait and lie in such a place of the file.
    fn touched(&mut self, file: &Path, place: impl Fn(u64, u64) -> bool) -> BTreeSet<u64> {
        let (dir, waiting) = (&self.dir, &self.waiting);
        let slots = self.spool.as_ref().unwrap().index.iter().filter(|slot| segment::path(dir, slot.first()) == file);
        let within = slots.filter(|slot| {
            let start = u64::from(slot.offset);
            place(start, start + segment::record(slot.seq, &waiting[&slot.seq]).len() as u64)
        });
        within.map(|slot| slot.seq).collect()
    }

    /// Those that wait and are not given; what is given is right.
    fn read_all(&mut self) -> BTreeSet<u64> {
        let spool = self.spool.as_mut().unwrap();
        let missing = self.waiting.iter().filter(|(seq, body)| match spool.read(**seq).ok() {
            Some(read) => {
                assert_eq!(&read, *body);
                false
            }
            None => true,
        });
        missing.map(|(seq, _)| *seq).collect()
    }

    /// Another life. Where something was damaged, what lay behind may be missing and what was done come back; else all is as it was.
    fn reopen(&mut self, damaged: Option<BTreeSet<u64>>) {
        self.spool = None;
        let (mut spool, entries, next) = Spool::with_sizes(&self.dir, "http 1", SMALL, MEMORY);
        assert!(entries.is_sorted_by(|a, b| a.seq < b.seq));
        let there: BTreeMap<_, _> = entries.iter().map(|entry| (entry.seq, spool.read(entry.seq).unwrap())).collect();
        for (entry, body) in entries.iter().zip(there.values()) {
            assert_eq!(entry.len as usize, body.len());
            assert_eq!(self.waiting.get(&entry.seq).or_else(|| self.past.get(&entry.seq)), Some(body));
        }
        let missing: BTreeSet<_> = self.waiting.keys().filter(|seq| !there.contains_key(seq)).copied().collect();
        match damaged {
            Some(behind) => assert!(missing.is_subset(&behind), "{missing:?} {behind:?}"),
            None => assert!(there.keys().eq(self.waiting.keys()) && next >= self.next, "{entries:?}"),
        }
        assert!(there.last_key_value().is_none_or(|(last, _)| next > *last));
        self.past.extend(std::mem::replace(&mut self.waiting, there));
        (self.spool, self.next) = (Some(spool), next);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn as_the_model(ops in prop::collection::vec(op(), 1..100)) {
        let scratch = Scratch::new();
        let mut model = Model::new(queue(&scratch));
        ops.into_iter().for_each(|op| model.apply(op));
        model.apply(Op::Reopen);
        // an empty queue is an empty file, whatever happened before
        model.apply(Op::Forget(usize::MAX));
        let dir = model.dir.clone();
        prop_assert_eq!((files(&dir).len(), bytes_in(&dir)), (1, 0));
    }
}

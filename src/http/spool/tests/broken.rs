//! A disk that takes nothing for a while.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;

use super::{append, open, queue, readable};
use crate::http::spool::{Spool, segment};
use crate::scratch::Scratch;

/// From now on neither the folder nor the file that is written to can be changed. What is open can be read.
pub fn break_disk(spool: &mut Spool) {
    let (there, away) = places(spool);
    if let Some(current) = &mut spool.current {
        current.file = File::open(segment::path(&spool.dir, current.first)).unwrap();
    }
    fs::rename(&there, away).unwrap();
    fs::write(there, "no folder").unwrap();
}

/// All is as it was before.
pub fn mend_disk(spool: &mut Spool) {
    let (there, away) = places(spool);
    fs::remove_file(&there).unwrap();
    fs::rename(away, there).unwrap();
    if let Some(current) = &mut spool.current {
        current.file = OpenOptions::new().read(true).write(true).open(segment::path(&spool.dir, current.first)).unwrap();
    }
}

/// What holds the queue's folder, and where that is meanwhile.
fn places(spool: &Spool) -> (PathBuf, PathBuf) {
    let there = spool.dir.parent().unwrap();
    (there.to_owned(), there.with_extension("away"))
}

#[test]
fn what_could_not_be_noted_is_followed_by_records_on_disk() {
    for could_be_opened in [true, false] {
        let scratch = Scratch::new();
        let (mut spool, ..) = open(&queue(&scratch));
        append(&mut spool, 1..=3);
        break_disk(&mut spool);
        if !could_be_opened {
            spool.current = None;
        }
        spool.forget(1);
        mend_disk(&mut spool);
        append(&mut spool, [4]);
        assert!(spool.memory.is_empty());
        append(&mut spool, [5]);
        drop(spool);
        let (mut spool, waiting, _) = open(&queue(&scratch));
        assert_eq!(waiting, [2, 3, 4, 5]);
        assert_eq!(readable(&mut spool, 1..=5), [2, 3, 4, 5]);
    }
}

#[test]
fn nothing_is_written_to_a_file_that_begins_later() {
    let scratch = Scratch::new();
    let (mut spool, ..) = open(&queue(&scratch));
    append(&mut spool, 1..=3);
    spool.forget(1);
    spool.roll(6).unwrap();
    append(&mut spool, 4..=8);
    assert!(spool.memory.is_empty());
    drop(spool);
    assert_eq!(open(&queue(&scratch)).1, [2, 3, 4, 5, 6, 7, 8]);
}

mod broken;
mod model;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Once;

use log::{Level, LevelFilter, Metadata, Record};

use super::*;
use crate::files::tests::{in_time, odd_files};
use crate::scratch::Scratch;

/// Of segments in most tests, so that there are several.
const SMALL: u64 = 512;

/// A queue in a folder that is there.
fn open(dir: &Path) -> (Spool, Vec<u64>, u64) {
    let (spool, entries, next) = Spool::with_sizes(dir, "http 1", SMALL, MEMORY);
    (spool, entries.iter().map(|entry| entry.seq).collect(), next)
}

fn queue(scratch: &Scratch) -> PathBuf {
    scratch.path().join("state/http/1.json-lines")
}

/// What the record with that number holds.
fn body(seq: u64) -> Vec<u8> {
    format!("{{\"timestamp\":{seq}}}").repeat(1 + (seq % 5) as usize).into_bytes()
}

fn append(spool: &mut Spool, seqs: impl IntoIterator<Item = u64>) {
    seqs.into_iter().for_each(|seq| spool.append(seq, &body(seq)));
}

/// Those that can be read, each as it was appended.
fn readable(spool: &mut Spool, seqs: impl IntoIterator<Item = u64>) -> Vec<u64> {
    seqs.into_iter().filter(|seq| spool.read(*seq).is_ok_and(|read| read == body(*seq))).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

fn files(dir: &Path) -> Vec<PathBuf> {
    segment::names(dir).unwrap().0.into_iter().map(|first| segment::path(dir, first)).collect()
}

fn bytes_in(dir: &Path) -> u64 {
    files(dir).iter().map(|file| fs::metadata(file).unwrap().len()).sum()
}

thread_local!(static SAID: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) });

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        if record.level() <= Level::Info {
            SAID.with_borrow_mut(|said| said.push(format!("{}: {}", record.level(), record.args())));
        }
    }

    fn flush(&self) {}
}

/// What this thread has logged since it was asked the last time.
pub fn said() -> Vec<String> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Listener).unwrap();
        log::set_max_level(LevelFilter::Info);
    });
    SAID.take()
}

/// The one line that was logged holds all of `words`.
#[track_caller]
fn assert_said_once(words: &[&str]) {
    let said = said();
    assert!(said.len() == 1 && words.iter().all(|word| said[0].contains(word)), "{said:#?}");
}

#[test]
fn what_waits_is_there_after_a_restart_and_in_order() {
    said();
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut spool, waiting, next) = open_below(&scratch);
    assert_eq!((waiting, next), (vec![], 1));
    append(&mut spool, 1..=40);
    assert_eq!(readable(&mut spool, 1..=40), Vec::from_iter(1..=40));
    spool.forget(15);
    assert_eq!(readable(&mut spool, 1..=40), Vec::from_iter(16..=40));
    drop(spool);
    let (mut spool, entries, next) = Spool::with_sizes(&dir, "http 1", SMALL, MEMORY);
    let expected = (16..=40).map(|seq| Entry { seq, len: body(seq).len() as u32 });
    assert_eq!((entries, next), (expected.collect(), 41));
    append(&mut spool, 41..=42);
    assert_eq!(readable(&mut spool, 1..=42), Vec::from_iter(16..=42));
    assert_eq!(said(), [""; 0]);
}

fn open_below(scratch: &Scratch) -> (Spool, Vec<u64>, u64) {
    open(&queue(scratch))
}

#[test]
fn only_we_can_read_it_and_what_is_not_ours_is_left_alone() {
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let others = ["1.queue", "0000000000000001.queue.bak", "000000000000000A.queue", "ffffffffffffffff.queue", "notes"];
    others.iter().for_each(|name| drop(scratch.file(&format!("state/http/1.json-lines/{name}"), "theirs")));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let (mut spool, ..) = open(&dir);
    append(&mut spool, 1..=40);
    assert!(files(&dir).iter().all(|file| mode(file) == 0o600));
    spool.forget(40);
    drop(spool);
    let (_, waiting, _) = open(&dir);
    assert_eq!(waiting, [0; 0]);
    assert!(others.iter().all(|name| fs::read(dir.join(name)).unwrap() == b"theirs"));

    let new = Scratch::new();
    let _ = open_below(&new);
    assert!(queue(&new).ancestors().take(3).all(|level| mode(level) == 0o700));
}

#[test]
fn what_the_state_folder_lies_in_is_not_made() {
    said();
    let scratch = Scratch::new();
    let (mut spool, ..) = open(&scratch.path().join("not/there/http/1.json-lines"));
    assert_eq!(names(scratch.path()), [""; 0]);
    assert_said_once(&["WARN: http 1: ", "not/there/http/1.json-lines: no such file; set `state_dir` in [devices]"]);
    append(&mut spool, 1..=3);
    spool.sync();
    spool.forget(1);
    assert_eq!(readable(&mut spool, 1..=3), [2, 3]);
    fs::create_dir(scratch.path().join("not")).unwrap();
    spool.sync();
    assert_said_once(&["INFO: http 1: ", " 0 were dropped"]);
    append(&mut spool, 4..=4);
    drop(spool);
    assert_eq!(open(&scratch.path().join("not/there/http/1.json-lines")).1, [2, 3, 4]);
}

#[test]
fn what_is_delivered_at_once_leaves_an_empty_file_that_needs_no_flash() {
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut spool, ..) = open(&dir);
    spool.sync();
    for seq in 1..=1000 {
        append(&mut spool, [seq]);
        assert!(bytes_in(&dir) > 0);
        spool.forget(seq);
        assert_eq!((files(&dir).len(), bytes_in(&dir)), (1, 0));
        assert!(spool.segments.values().all(|segment| !segment.dirty) && spool.folders.is_empty());
    }
    append(&mut spool, [1001]);
    spool.sync();
    spool.forget(1001);
    assert!(spool.segments.values().all(|segment| segment.dirty), "the record would come back");
}

#[test]
fn numbers_are_never_given_out_again() {
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let mut highest = 0;
    for round in 0..6 {
        let (mut spool, waiting, next) = open(&dir);
        assert!(next > highest && waiting.is_empty());
        highest = next + [1, 2, 5, SPAN - 2, SPAN + 7, 2 * SPAN][round];
        append(&mut spool, [next]);
        spool.forget(next);
        append(&mut spool, [highest - 1, highest]);
        assert_eq!(spool.read(highest).unwrap(), body(highest));
        spool.forget(highest);
    }
}

#[test]
fn a_number_that_was_there_is_not_taken_twice_and_too_much_is_not_taken() {
    said();
    let scratch = Scratch::new();
    let (mut spool, ..) = open_below(&scratch);
    spool.append(5, b"first");
    spool.append(5, b"second");
    spool.append(4, b"third");
    assert_eq!((spool.read(5).unwrap(), spool.read(4).ok()), (b"first".to_vec(), None));
    spool.append(6, &vec![0; BODY_MAX + 1]);
    assert_said_once(&["http 1: a measurement of 262145 bytes is too large"]);
    spool.append(7, &vec![7; BODY_MAX]);
    spool.append(8, b"");
    drop(spool);
    let (mut spool, waiting, _) = open_below(&scratch);
    assert_eq!(waiting, [5, 7, 8]);
    assert_eq!((spool.read(7).unwrap(), spool.read(8).unwrap()), (vec![7; BODY_MAX], vec![]));
}

#[test]
fn a_full_queue_needs_little_more_than_what_waits() {
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut spool, ..) = open(&dir);
    for seq in 1..=3000_u64 {
        append(&mut spool, [seq]);
        spool.forget(seq.saturating_sub(20));
        let live: usize = (seq.saturating_sub(19).max(1)..=seq).map(|seq| segment::record(seq, &body(seq)).len()).sum();
        // marks are in between
        let most = live as u64 + 2 * SMALL + 20 * 16;
        assert!(bytes_in(&dir) <= most, "{} of {most} bytes", bytes_in(&dir));
    }
    drop(spool);
    assert_eq!(open(&dir).1, Vec::from_iter(2981..=3000));
}

#[test]
fn a_backlog_that_is_delivered_needs_no_more_room_than_it_had() {
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut spool, ..) = open(&dir);
    append(&mut spool, 1..=300);
    let before = bytes_in(&dir);
    for seq in 1..=299 {
        assert_eq!(spool.read(seq).unwrap(), body(seq));
        spool.forget(seq);
        assert!(bytes_in(&dir) <= before + 16);
        // a removed file that is open keeps its room
        assert!(spool.reader.as_ref().is_none_or(|(first, _)| spool.segments.contains_key(first)));
    }
    assert_eq!(files(&dir).len(), 1);
    spool.forget(300);
    assert_eq!(bytes_in(&dir), 0);
}

#[test]
fn every_cut_of_the_newest_file_costs_what_it_cut_and_no_more() {
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut spool, ..) = open(&dir);
    let mut ends = BTreeMap::new();
    for seq in 1..=5 {
        append(&mut spool, [seq]);
        ends.insert(seq, bytes_in(&dir));
        if seq == 3 {
            spool.forget(1);
        }
    }
    let mark = ends[&3] + 16;
    drop(spool);
    let [file] = &files(&dir)[..] else { panic!("it is in one file") };
    let whole = fs::read(file).unwrap();
    for cut in 0..=whole.len() as u64 {
        said();
        fs::read_dir(&dir).unwrap().for_each(|entry| fs::remove_file(entry.unwrap().path()).unwrap());
        fs::write(file, &whole[..cut as usize]).unwrap();
        let (mut spool, waiting, next) = open(&dir);
        let expected: Vec<_> = ends.iter().filter(|(seq, end)| **end <= cut && (**seq > 1 || cut < mark)).map(|(seq, _)| *seq).collect();
        assert_eq!(waiting, expected, "cut at {cut}");
        assert_eq!(readable(&mut spool, 1..=5), expected);
        assert!(next > expected.last().copied().unwrap_or(0));
        let good = ends.values().chain([&mark, &0]).filter(|end| **end <= cut).max().unwrap();
        if *good == cut {
            assert_eq!(said(), [""; 0]);
        } else {
            let lost = format!("the last {} bytes of {} are incomplete or damaged: cut off", cut - good, file.display());
            assert_said_once(&["WARN: http 1: ", &lost]);
            assert!(next > 5, "a number may have been given out");
        }
        append(&mut spool, [next]);
        drop(spool);
        assert_eq!(open(&dir).1, [&expected[..], &[next]].concat());
        assert_eq!(said(), [""; 0], "it is whole again");
    }
}

#[test]
fn a_damage_in_an_older_file_costs_what_follows_in_it() {
    said();
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut spool, ..) = open(&dir);
    append(&mut spool, 1..=30);
    drop(spool);
    let older = &files(&dir)[1];
    let mut found = Vec::new();
    segment::scan(older, segment::names(&dir).unwrap().0[1], &mut found).unwrap();
    let (second, last) = (&found[1], found.last().unwrap());
    let mut bytes = fs::read(older).unwrap();
    bytes[second.offset as usize + 20] ^= 1;
    fs::write(older, &bytes).unwrap();
    let (mut spool, waiting, next) = open(&dir);
    let expected: Vec<_> = (1..second.seq).chain(last.seq + 1..=30).collect();
    assert_eq!((&waiting, next), (&expected, 31));
    assert_eq!(readable(&mut spool, 1..=30), expected);
    let lost = format!("the last {} bytes of {} are damaged: the measurements", bytes.len() - second.offset as usize, older.display());
    assert_said_once(&["WARN: http 1: ", &lost]);
    spool.forget(29);
    assert!(!older.exists());
}

#[test]
fn no_length_is_believed_and_nothing_but_a_file_is_opened() {
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let junk = [
        vec![0; 5000],
        vec![0xff; 5000],
        [&[0; 4][..], &(1_u32 << 31).to_le_bytes(), &[0; 100]].concat(),
        segment::record(1, &vec![0; BODY_MAX + 1]),
        segment::record(1 + SPAN, b"of another file"),
    ];
    for junk in junk {
        scratch.file("state/http/1.json-lines/0000000000000001.queue", junk);
        let (mut spool, waiting, next) = open(&dir);
        assert_eq!((waiting, next), (vec![], 1 + SPAN));
        append(&mut spool, [next]);
        assert_eq!(names(&dir), ["0000000000100001.queue"]);
        spool.forget(next);
        drop(spool);
        fs::remove_file(dir.join("0000000000100001.queue")).unwrap();
    }
    fs::create_dir(dir.join("0000000000000009.queue")).unwrap();
    let (mut spool, ..) = open(&dir);
    append(&mut spool, [1]);
    drop(spool);
    assert_eq!(open(&dir).1, [1]);
}

#[test]
fn what_the_disk_does_not_give_now_is_not_lost() {
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut spool, ..) = open(&dir);
    append(&mut spool, 1..=40);
    let first = files(&dir).remove(0);
    let aside = scratch.path().join("aside");
    fs::rename(&first, &aside).unwrap();
    // nothing can be read from a folder
    fs::create_dir(&first).unwrap();
    said();
    assert_eq!(spool.read(1), Err(Unread::Now("it is a directory".into())));
    assert_eq!(said(), [""; 0]);
    fs::remove_dir(&first).unwrap();
    fs::rename(&aside, &first).unwrap();
    assert_eq!(spool.read(1), Ok(body(1)));
}

#[test]
fn a_body_that_was_damaged_meanwhile_is_not_given() {
    said();
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut spool, ..) = open(&dir);
    append(&mut spool, 1..=40);
    let oldest = &files(&dir)[0];
    let length = fs::metadata(oldest).unwrap().len();
    fs::write(oldest, vec![0; length as usize]).unwrap();
    assert_eq!((spool.read(1).ok(), spool.read(2).ok()), (None, None));
    assert_said_once(&["a measurement that waited cannot be read from ", "0000000000000001.queue: it is damaged; it is lost"]);
    assert_eq!(readable(&mut spool, 30..=40), Vec::from_iter(30..=40));
    fs::remove_file(&files(&dir)[2]).unwrap();
    assert!(readable(&mut spool, 1..=40).len() < 38);
    spool.forget(39);
    spool.sync();
    assert_eq!(readable(&mut spool, [40]), [40]);
}

#[test]
fn files_that_come_back_bring_nothing_that_is_done_and_nothing_twice() {
    said();
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut spool, ..) = open(&dir);
    append(&mut spool, 1..=40);
    let oldest = files(&dir)[0].clone();
    let bytes = fs::read(&oldest).unwrap();
    spool.forget(35);
    drop(spool);
    assert!(!oldest.exists());
    fs::write(&oldest, bytes).unwrap();
    // a copy, and others out of the row
    let records = [50, 38, 45].map(|seq| segment::record(seq, &body(seq))).concat();
    scratch.file("state/http/1.json-lines/0000000000000025.queue", [records, segment::mark(36), segment::mark(20)].concat());
    let (mut spool, waiting, next) = open(&dir);
    assert_eq!((waiting, next), (vec![37, 38, 39, 40, 45, 50], 51));
    assert_eq!(readable(&mut spool, 1..=50), [37, 38, 39, 40, 45, 50]);
    assert!(!oldest.exists());
    assert_eq!(said(), [""; 0]);
}

#[test]
fn the_queue_of_another_daemon_is_left_alone() {
    said();
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut first, ..) = open(&dir);
    append(&mut first, 1..=3);
    let before = (names(&dir), bytes_in(&dir));
    let (mut second, waiting, next) = open(&dir);
    assert_eq!((waiting, next), (vec![], 1));
    append(&mut second, 1..=30);
    second.sync();
    second.forget(10);
    assert_eq!(readable(&mut second, 1..=30), Vec::from_iter(11..=30));
    assert_eq!((names(&dir), bytes_in(&dir)), before);
    assert_said_once(&["WARN: http 1: ", "another daemon uses it; give this one a `state_dir` of its own in [devices]"]);
    drop(first);
    append(&mut second, [31]);
    assert_eq!(bytes_in(&dir), before.1, "what waits there is for the next start");
    drop(second);
    assert_eq!(open(&dir).1, [1, 2, 3]);
}

#[test]
fn a_folder_that_is_removed_is_made_again() {
    said();
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut spool, ..) = open(&dir);
    append(&mut spool, 1..=3);
    fs::remove_dir_all(scratch.path().join("state")).unwrap();
    append(&mut spool, 4..=5);
    assert_said_once(&["WARN: http 1: ", "1.json-lines was removed: 3 measurements that waited in it are lost"]);
    assert_eq!(readable(&mut spool, 1..=5), [4, 5]);
    spool.sync();
    assert!(open(&dir).1.is_empty(), "it is locked");
    drop(spool);
    assert_eq!(open(&dir).1, [4, 5]);
}

#[test]
fn a_file_that_is_removed_is_followed_by_another() {
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut spool, ..) = open(&dir);
    append(&mut spool, 1..=2);
    fs::remove_file(&files(&dir)[0]).unwrap();
    append(&mut spool, 3..=4);
    spool.sync();
    assert_eq!(readable(&mut spool, 1..=4), [3, 4]);
    append(&mut spool, 5..=40);
    // noted in the newest only
    spool.forget(3);
    let newest = files(&dir).pop().unwrap();
    let lost = u64::from_str_radix(newest.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    fs::remove_file(newest).unwrap();
    append(&mut spool, [41]);
    drop(spool);
    assert_eq!(open(&dir).1, Vec::from_iter((4..lost).chain([41])));
}

#[test]
fn a_queue_that_comes_late_is_for_the_next_start() {
    let scratch = Scratch::new();
    let (mut earlier, ..) = open(&scratch.path().join("elsewhere/http/1.json-lines"));
    append(&mut earlier, 1..=3);
    drop(earlier);
    scratch.file("state", "no folder");
    let (mut spool, ..) = open_below(&scratch);
    append(&mut spool, 1..=2);
    fs::remove_file(scratch.path().join("state")).unwrap();
    fs::rename(scratch.path().join("elsewhere"), scratch.path().join("state")).unwrap();
    said();
    append(&mut spool, 3..=4);
    spool.sync();
    assert_said_once(&["it was not there at the start and holds measurements"]);
    assert_eq!(readable(&mut spool, 1..=4), [1, 2, 3, 4]);
    drop(spool);
    let (mut spool, waiting, _) = open_below(&scratch);
    assert_eq!((waiting, readable(&mut spool, 1..=4)), (vec![1, 2, 3], vec![1, 2, 3]));
}

#[test]
fn memory_is_bounded_and_the_oldest_goes() {
    said();
    let scratch = Scratch::new();
    let state = scratch.file("state", "no folder");
    let (mut spool, ..) = Spool::with_sizes(&queue(&scratch), "http 1", SMALL, 4096);
    said();
    for seq in 1..=100 {
        spool.append(seq, &[seq as u8; 448]);
        assert!(spool.memory.len() <= 8);
    }
    assert_said_once(&["WARN: http 1: memory holds no more measurements: the oldest"]);
    assert_eq!((spool.read(92).ok(), spool.read(93).ok()), (None, Some(vec![93; 448])));
    assert_eq!(said(), [""; 0], "that was said");
    fs::remove_file(state).unwrap();
    spool.append(101, &[101; 448]);
    assert_said_once(&["INFO: http 1: ", " again; 92 were dropped from memory meanwhile"]);
    assert_eq!(spool.memory.cost(), (0, 0));
    drop(spool);
    assert_eq!(open_below(&scratch).1, Vec::from_iter(93..=101));
}

/// What could not be cut off stands at the end of its file, and nothing is written after it.
#[test]
fn a_sealed_file_is_followed_by_another() {
    said();
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    for waits in [true, false] {
        let (mut spool, _, next) = open(&dir);
        if waits {
            append(&mut spool, [next]);
        }
        let current = spool.current.as_mut().unwrap();
        current.file.write_all_at(b"part", current.len).unwrap();
        current.sealed = true;
        append(&mut spool, [next + 1, next + 2]);
        let expected = Vec::from_iter(if waits { next } else { next + 1 }..=next + 2);
        assert_eq!(readable(&mut spool, expected.clone()), expected);
        drop(spool);
        said();
        let (mut spool, waiting, _) = open(&dir);
        assert_eq!(waiting, expected);
        assert_eq!(said().len(), usize::from(waits), "the part is damage in an older file");
        spool.forget(next + 2);
        assert_eq!((files(&dir).len(), bytes_in(&dir)), (1, 0));
    }
}

const CHILD: &str = "VENUS_MQTT_TEST_SPOOL";

/// This test binary, to run one of its tests for us.
fn child(test: &str, dir: &Path) -> Command {
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("{module}::{test}"), "--ignored", "--nocapture"]).env(CHILD, dir).stdin(Stdio::null());
    command
}

#[test]
fn a_full_disk_costs_nothing_that_memory_can_hold() {
    let scratch = Scratch::new();
    let output = child("child_on_a_full_disk", &queue(&scratch)).output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(open_below(&scratch).1, [11, 12, 13, 14]);
}

/// The limit of a process's files is met as a full disk is, by a write that is cut short, and needs no rights and no disk of its own.
#[test]
#[ignore = "runs in a process of its own, for another test"]
fn child_on_a_full_disk() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let signal = std::sync::Arc::default();
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::clone(&signal)).unwrap();
    let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    let limit = |bytes| setrlimit(Resource::RLIMIT_FSIZE, bytes, most).unwrap();
    let (mut spool, ..) = Spool::with_sizes(&dir, "http 1", SEGMENT, MEMORY);
    said();
    limit(1000);
    let record = |seq: u64| vec![seq as u8; 304];
    (1..=6).for_each(|seq| spool.append(seq, &record(seq)));
    spool.sync();
    assert_eq!(bytes_in(&dir), 960, "the part of the fourth is cut off");
    assert!(signal.load(std::sync::atomic::Ordering::Relaxed), "the limit was met");
    assert_said_once(&["WARN: http 1: measurements that wait are kept in memory only: cannot write into "]);
    assert!((1..=6).all(|seq| spool.read(seq).unwrap() == record(seq)));
    // noted where the fourth had no room; then there is none for a mark either
    spool.forget(1);
    assert_eq!(bytes_in(&dir), 976);
    spool.forget(4);
    assert_eq!((bytes_in(&dir), said()), (0, vec![]));
    (7..=8).for_each(|seq| spool.append(seq, &record(seq)));
    assert_eq!(bytes_in(&dir), 960, "what was in memory comes first");
    let said_then = said();
    assert!(said_then.len() == 2 && said_then[0].contains(" again; 0 were dropped") && said_then[1].starts_with("WARN"), "{said_then:#?}");
    limit(960);
    spool.append(9, &record(9));
    spool.forget(5);
    limit(0);
    spool.forget(6);
    spool.append(10, &record(10));
    spool.append(11, &record(11));
    assert_eq!(said(), [""; 0]);
    limit(most);
    spool.sync();
    assert_eq!(bytes_in(&dir), 3 * 320 + 16 + 4 * 320, "the mark had no room either");
    assert_said_once(&["INFO: "]);
    (12..=13).for_each(|seq| spool.append(seq, &record(seq)));
    assert!((7..=13).all(|seq| spool.read(seq).unwrap() == record(seq)));
    spool.forget(10);
    spool.append(14, &record(14));
}

#[test]
fn killed_at_any_moment_nothing_is_lost() {
    let scratch = Scratch::new();
    let dir = queue(&scratch);
    let (mut appended, mut forgotten, mut done) = (BTreeSet::new(), 0, 0);
    for round in 0..12 {
        let mut child = child("child_that_is_killed", &dir).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        for (count, line) in lines.enumerate() {
            if count == 30 + 117 * round {
                child.kill().unwrap();
            }
            let number = |prefix| line.strip_prefix(prefix)?.strip_suffix('.')?.parse::<u64>().ok();
            if let Some(seq) = number("next ") {
                assert!(appended.last().is_none_or(|last| seq > *last));
            } else if let Some(seq) = number("appended ") {
                appended.insert(seq);
            } else if let Some(seq) = number("forgets ") {
                forgotten = forgotten.max(seq);
            } else if let Some(seq) = number("forgotten ") {
                done = done.max(seq);
            }
        }
        assert_eq!(child.wait().unwrap().signal(), Some(9), "it ends by itself");
        let (mut spool, waiting, _) = open(&dir);
        let expected: Vec<_> = appended.range(forgotten + 1..).copied().collect();
        assert!(waiting.is_sorted_by(|a, b| a < b) && waiting.iter().all(|seq| *seq > done));
        assert!(expected.iter().all(|seq| waiting.contains(seq)), "{expected:?} {waiting:?}");
        assert_eq!(readable(&mut spool, waiting.clone()), waiting);
    }
}

#[test]
#[ignore = "runs in a process of its own, for another test"]
fn child_that_is_killed() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let mut out = std::io::stdout().lock();
    let mut tell = |word: &str, seq: u64| out.write_all(format!("\n{word} {seq}.\n").as_bytes()).unwrap();
    let (mut spool, _, next) = open(&dir);
    tell("next", next);
    for seq in next.. {
        append(&mut spool, [seq]);
        tell("appended", seq);
        if seq % 3 == 0 {
            // now and then all of it
            let through = if seq % 9 == 0 { seq } else { seq.saturating_sub(20) };
            tell("forgets", through);
            spool.forget(through);
            tell("forgotten", through);
        }
    }
}

/// Whatever is where its folders and files are expected: out of the way, and the queue works.
#[test]
fn what_is_no_folder_or_file_is_set_aside() {
    for odd in 0..7 {
        let works = in_time(move || {
            let scratch = Scratch::new();
            let file = odd_files(&scratch).swap_remove(odd);
            for place in ["state/http", "state/http/1.json-lines", "state/http/1.json-lines/0000000000000001.queue"] {
                said();
                let place = scratch.path().join(place);
                fs::create_dir_all(place.parent().unwrap()).unwrap();
                let is_folder = file.is_dir();
                if is_folder && !place.ends_with("0000000000000001.queue") {
                    continue;
                }
                fs::rename(&file, &place).unwrap();
                let (mut spool, ..) = Spool::with_sizes(&scratch.path().join("state/http/1.json-lines"), "http 1", SMALL, MEMORY);
                append(&mut spool, 1..=3);
                assert_eq!(spool.unwritten(), 0, "{}", place.display());
                assert_eq!(readable(&mut spool, 1..=3), [1, 2, 3]);
                drop(spool);
                assert_said_once(&["WARN: http 1: ", ": it is now ", ".corrupt"]);
                let aside = PathBuf::from(format!("{}.corrupt", place.display()));
                fs::rename(aside, &file).unwrap();
                fs::remove_dir_all(scratch.path().join("state")).unwrap();
            }
            true
        });
        assert!(works);
    }
}

/// Bytes without end, as a broken file system can show them.
#[test]
fn a_huge_segment_costs_no_memory() {
    let scratch = Scratch::new();
    let (mut spool, ..) = open_below(&scratch);
    append(&mut spool, 1..=3);
    drop(spool);
    let file = files(&queue(&scratch)).swap_remove(0);
    fs::File::options().write(true).open(file).unwrap().set_len(1 << 40).unwrap();
    let (mut spool, waiting, _) = open_below(&scratch);
    assert_eq!(waiting.len(), 3);
    assert_eq!(readable(&mut spool, 1..=3), [1, 2, 3]);
    said();
}

//! Replays the corpora of the fuzz targets (`fuzz/corpus`), so that what a fuzzer has found once stays found.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
// each target is built on its own by the fuzzer, with what it shares with others
#![allow(clippy::duplicate_mod)]

#[path = "fuzz/dbus.rs"]
mod dbus;
#[path = "fuzz/keepalive.rs"]
mod keepalive;
#[path = "fuzz/packets.rs"]
mod packets;
#[path = "fuzz/proxy.rs"]
mod proxy;
#[path = "fuzz/status.rs"]
mod status;
#[path = "fuzz/topics.rs"]
mod topics;
#[path = "fuzz/write.rs"]
mod write;

use std::path::Path;

/// Plays every file of a corpus; the name of the one that fails is the last in the output.
fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 5, "the corpus is missing");
    for file in files {
        println!("{}", file.display());
        target(&std::fs::read(&file).unwrap());
    }
}

#[test]
fn corpus_of_dbus() {
    replay("dbus", dbus::target);
}

#[test]
fn corpus_of_keepalive() {
    replay("keepalive", keepalive::target);
}

#[test]
fn corpus_of_packets() {
    replay("packets", packets::target);
}

#[test]
fn corpus_of_proxy() {
    replay("proxy", proxy::target);
}

#[test]
fn corpus_of_status() {
    replay("status", status::target);
}

#[test]
fn corpus_of_topics() {
    replay("topics", topics::target);
}

#[test]
fn corpus_of_write() {
    replay("write", write::target);
}

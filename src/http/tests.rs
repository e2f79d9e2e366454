//! What the workers leave to the next life.

use super::spool::tests::said;
use super::*;
use crate::config::{Given, Source};
use crate::scratch::Scratch;

/// Longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(60);

/// Nothing is posted to them.
fn targets(names: &[&str]) -> Vec<HttpTarget> {
    let config: String = names.iter().map(|name| format!("[[http]]\nname = \"{name}\"\nurl = \"http://127.0.0.1:9\"\n")).collect();
    let scratch = Scratch::new();
    Source::new(Some(scratch.file("c.toml", config)), Given::default()).load().unwrap().config.http
}

fn dir(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join("http").join(format!("{name}.victron-measurements"))
}

/// The targets with these names, and what waits for each.
async fn start(names: &[&str], state_dir: &Path, unwritten: Unwritten) -> (Http, Vec<usize>) {
    let mut http = Http::start(&targets(names), state_dir, unwritten).unwrap();
    let mut waiting = vec![0; names.len()];
    for _ in names {
        let (n, Event::Opened { entries, next_seq }) = http.next().await else { panic!("they open first") };
        assert!(entries.is_sorted_by(|a, b| a.seq < b.seq) && entries.iter().all(|entry| entry.len == 3 && entry.seq < next_seq));
        waiting[n] = entries.len();
    }
    (http, waiting)
}

/// A life on a disk that takes nothing, in which each of the targets measured so often.
async fn life_without_a_disk(scratch: &Scratch, measured: &[(&str, u64)]) -> Unwritten {
    let names: Vec<_> = measured.iter().map(|(name, _)| *name).collect();
    let (http, _) = start(&names, &scratch.file("file", "no folder"), Unwritten::default()).await;
    for (n, (name, count)) in measured.iter().enumerate() {
        (1..=*count).for_each(|seq| http.command(n, Command::Append { seq, body: format!("{name}-{seq}").into() }));
    }
    http.finish(sleep(LONG)).await
}

/// The bodies in a queue.
fn bodies(dir: &Path) -> Vec<String> {
    let (mut spool, entries, _) = Spool::open(dir, "http a");
    entries.iter().map(|entry| String::from_utf8(spool.read(entry.seq).unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn what_the_disk_did_not_take_goes_to_the_same_queue_of_the_next_life() {
    let scratch = Scratch::new();
    let unwritten = life_without_a_disk(&scratch, &[("a", 3), ("b", 2), ("c", 0)]).await;
    let state_dir = scratch.path().join("state");
    Spool::open(&dir(&state_dir, "a"), "http a").0.append(1, b"old");
    said();
    let (http, waiting) = start(&["c", "a"], &state_dir, unwritten).await;
    assert_eq!(waiting, [0, 4]);
    assert_eq!(said(), ["WARN: http b: measurements that were kept in memory only are lost: 2"]);
    drop(http.finish(sleep(LONG)).await);
    assert_eq!(said(), [""; 0]);
    assert_eq!(bodies(&dir(&state_dir, "a")), ["old", "a-1", "a-2", "a-3"]);
}

#[tokio::test]
async fn what_no_disk_takes_to_the_end_is_lost_and_that_is_said() {
    let scratch = Scratch::new();
    let unwritten = life_without_a_disk(&scratch, &[("a", 3)]).await;
    let (http, waiting) = start(&["a"], &scratch.path().join("file"), unwritten).await;
    assert_eq!(waiting, [3]);
    http.command(0, Command::Append { seq: 4, body: b"a-4".into() });
    http.command(0, Command::Forget { through: 1 });
    said();
    drop(http.finish(sleep(LONG)).await);
    assert_eq!(said(), ["WARN: http a: measurements that were kept in memory only are lost: 3"]);
}

#[tokio::test]
async fn the_end_brings_to_disk_what_it_takes_by_then() {
    let scratch = Scratch::new();
    let file = scratch.file("state", "no folder");
    let (mut http, _) = start(&["a"], &file, Unwritten::default()).await;
    http.command(0, Command::Append { seq: 1, body: b"a-1".into() });
    assert_eq!(http.next().await, (0, Event::Stored(1)));
    std::fs::remove_file(&file).unwrap();
    said();
    drop(http.finish(sleep(LONG)).await);
    assert_eq!(said(), [""; 0]);
    assert_eq!(bodies(&dir(&file, "a")), ["a-1"]);
}

#[tokio::test]
async fn a_worker_that_does_not_end_is_not_waited_for_and_what_it_has_is_said() {
    let scratch = Scratch::new();
    let unwritten = life_without_a_disk(&scratch, &[("a", 3)]).await;
    let state_dir = scratch.path().join("state");
    // it waits for this one first
    let _other = Spool::open(&dir(&state_dir, "a"), "http a");
    let http = Http::start(&targets(&["a"]), &state_dir, unwritten).unwrap();
    said();
    drop(http.finish(std::future::ready(())).await);
    assert_eq!(said(), ["WARN: http a: measurements that were kept in memory only are lost: 3"]);
}

//! The most memory that everything outside can make the daemon take, added up: what peers send, however much of it at once, is bounded
//! table by table, and the sum stays below what the packages allow the process (`softlimit -d` in `packaging/service/run`).
//!
//! Each row names a table or buffer and its worst case in bytes, computed from the caps that its code uses. Checked when compiling.

use crate::bridge::limits as core;
use crate::bus::{self, services, socket};
use crate::http::spool;

/// What a package allows the process, in bytes: private memory, the stacks of its threads included.
pub const ALLOWED: usize = 100_000_000;

/// Threads that may wait for a disk, a backend or a name at once, and the stack of each in bytes: a TLS handshake takes a fifth of it.
pub const THREADS: usize = 12;
pub const THREAD_STACK: usize = 512 * 1024;

/// What an entry of a queue or a map costs beside the bytes it refers to: its place, its allocations.
const ENTRY: usize = 160;
/// A topic or path of the longest kind, with its place.
const TOPIC: usize = 512;
/// An entry of the outbox, which grows by doubling.
const QUEUED: usize = 24;
/// Connections that a system bus gives a user, and with them services of devices, whatever `max_services_total` (160) is set to; those that are
/// leaving are among them.
const CONNECTIONS: usize = 256;
/// A registered service: its items, the settings that it asks for, its connection. Values that are restored, or pending while a service is off
/// the bus, take the place of those it will have.
const REGISTERED: usize = 24 * KIB;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// What is taken at most, and by what.
pub const WORST_CASE: &[(&str, usize)] = &[
    ("heap of the daemon with its configuration and no services", 4 * MIB),
    ("items: paths, values and limits", core::MODEL_BYTES),
    ("names of services", core::SERVICES * KIB),
    ("topics of services that have left", core::LEFT_TOPICS * (core::ITEM_BYTES + 64)),
    ("queue of items to publish, and of answers", 2 * (core::ITEMS + core::LEFT_TOPICS).next_power_of_two() * QUEUED),
    ("stale topics of the sweep", core::STALE * TOPIC),
    ("parts of the sweep", core::SWEEP_PARTS * (TOPIC / 2)),
    ("filters of keep-alives, awake and to be republished", 2 * (core::FILTERS * ENTRY + core::FILTER_BYTES * 4)),
    ("echoes to be answered: asked for, queued, from a lost connection", 3 * core::COMPLETIONS * (core::ECHO + 32)),
    ("requests before the start is complete", core::WAITING_BYTES + core::WAITING * ENTRY),
    ("walks through introspection data", core::WALK_NODES_ALL * (ENTRY / 2)),
    ("log lines of the core", 3 * core::NOTES * KIB / 2),
    ("calls: values that wait, and their messages", 2 * core::CALLS_BYTES + (core::CALLS + core::SCANS) * TOPIC),
    (
        "messages of the bus read ahead, the largest, and its values",
        bus::QUEUE.get() * socket::LARGE + socket::MESSAGE_MAX + core::REPLY_BYTES,
    ),
    ("services of devices", CONNECTIONS * (REGISTERED + core::DEVICE_SERVICE_BYTES + socket::SHARED)),
    ("calls to them, and their answers", services::INCOMING * services::MESSAGE_MAX + services::BACKLOG_ALL),
    ("devices: answers, writes to services of others", core::ANSWER_BYTES + core::ANSWERS * TOPIC + core::WAITING_BYTES),
    ("the registry, as it is printed and as it is written", 3 * crate::store::FILE_MAX as usize),
    ("messages that the broker has not confirmed", crate::mqtt::UNCONFIRMED_BYTES),
    ("messages from the broker that the loop has not taken", crate::mqtt::INCOMING_BYTES),
    ("topics and filters that the broker may have closed the connection over", crate::mqtt::REFUSED * TOPIC),
    ("stacks of threads", THREADS * THREAD_STACK),
    ("measurements: what no disk takes, of all targets, and what is posted", core::TARGETS * (spool::MEMORY + 128 * KIB)),
];

/// The sum of [`WORST_CASE`], in bytes.
pub const fn worst_case() -> usize {
    let (mut sum, mut row) = (0, 0);
    while row < WORST_CASE.len() {
        #[expect(clippy::indexing_slicing, reason = "evaluated when compiling")]
        let (_, bytes) = WORST_CASE[row];
        sum += bytes;
        row += 1;
    }
    sum
}

const _: () = assert!(worst_case() <= ALLOWED, "the worst case is over what the packages allow");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_printed() {
        WORST_CASE.iter().for_each(|(what, bytes)| println!("{bytes:>10}  {what}"));
        println!("{:>10}  of {ALLOWED}", worst_case());
    }

    #[test]
    fn the_packages_allow_what_is_stated_here() {
        let run = include_str!("../packaging/service/run");
        assert!(run.contains(&format!("softlimit -d {ALLOWED} ")), "{run}");
    }
}

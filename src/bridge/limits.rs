//! Every time-out, cap and rate of the pure rooms, each with its reason.

use std::time::Duration;

use super::outgoing::Places;

/// GetItems, GetValue on `/`, Introspect. velib's scanners wait two minutes, blocking; nobody waits for ours, and thirty seconds
/// is what a change that comes before the scan has ended is kept.
pub const SCAN_DEADLINE: Duration = Duration::from_secs(30);
/// A service that did not answer is asked again after this, doubling.
pub const SCAN_RETRY_FIRST: Duration = Duration::from_secs(30);
pub const SCAN_RETRY_LAST: Duration = Duration::from_secs(600);
/// Requests wait for the services that were there at the start no longer than this, should one of them hang.
pub const FIRST_SCAN: Duration = Duration::from_secs(2);
/// A read or a write; the default of D-Bus clients is 25 s, which a person at a switch does not wait.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// ListNames and GetNameOwner, which the bus itself answers.
pub const BUS_DEADLINE: Duration = Duration::from_secs(25);

/// How often a heartbeat goes out while awake (dbus-flashmq's own period).
pub const HEARTBEAT: Duration = Duration::from_secs(3);
/// Republishes in one second; those beyond are joined to the next one.
pub const REPUBLISHES: usize = 3;
pub const REPUBLISH_WINDOW: Duration = Duration::from_secs(1);
/// How long the auto mode listens for another bridge once the broker has the probe: the heartbeat period and some.
pub const DETECTION: Duration = Duration::from_millis(3500);
/// A part of the sweep in which the broker falls silent before the marker and everything expected have come.
pub const SWEEP_QUIET: Duration = Duration::from_secs(2);
/// The same on a slow link, where the marker waits behind a window of notifications on its way there and of messages on its way back.
pub const SWEEP_QUIET_SLOW: Duration = Duration::from_secs(30);
/// On a slow link a part of the sweep with no more than so many known items is asked for so long after the last request, when so few
/// messages wait.
pub const SWEEP_SMALL: usize = 100;
pub const SWEEP_AFTER_REQUEST: Duration = Duration::from_secs(10);
pub const SWEEP_QUEUE: usize = 64;
/// After so long it is asked for all the same; a larger part only now, and when there was no request for so long.
pub const SWEEP_PATIENCE: Duration = Duration::from_secs(60);
/// How often that is looked at.
pub const SWEEP_LOOK: Duration = Duration::from_secs(1);
/// Passes that were cut and found nothing: a broker that lets the marker get lost does so again.
pub const SWEEP_PASSES_CUT: u32 = 3;
/// Passes of the sweep on one connection: a broker drops what does not fit its queue, so one may not see everything.
pub const SWEEP_PASSES: u32 = 32;

/// Replays up to this size are not cut by any broker's queue: what does not come back is not retained.
pub const SWEEP_SURE: usize = 16;
/// Parts that wait to be asked for.
pub const SWEEP_PARTS: usize = 512;
/// Parts of one pass, beyond which none is divided any more: each takes a round trip.
pub const SWEEP_ASKED: usize = 2048;
/// Numbers that a part asks for beside the known ones: as many filters, in a packet of a few kilobytes.
pub const SWEEP_NUMBERS: usize = 64;

/// Services at once; a bus takes 256 connections per user.
pub const SERVICES: usize = 1024;
/// Items of all services together (eight times a large system), and of one: a service that makes up paths leaves room for the others.
pub const ITEMS: usize = 49_152;
pub const SERVICE_ITEMS: usize = ITEMS / 2;
/// Bytes that the items of all services may take, and those of one. A large system takes 2 MiB.
pub const MODEL_BYTES: usize = 16 << 20;
pub const SERVICE_BYTES: usize = 6 << 20;
/// Bytes of an item beside its path, its texts and its limits: itself and its place in a table that grows by doubling.
pub const ITEM_BYTES: usize = 200;
/// Topics of services that have left, waiting to be cleared; what is beyond is found by the next sweep.
pub const LEFT_TOPICS: usize = 8192;
/// Largest payload of a keep-alive that is read, in bytes, and most filters in it: more counts as an empty payload.
pub const KEEPALIVE_PAYLOAD: usize = 16 * 1024;
pub const KEEPALIVE_FILTERS: usize = 1024;
/// Distinct filters of keep-alives at once, and bytes of their texts: a keep-alive beyond that counts as one for everything.
pub const FILTERS: usize = 1024;
pub const FILTER_BYTES: usize = 64 * 1024;
/// Longest echo of a keep-alive, in bytes (the contract's).
pub const ECHO: usize = 256;
/// Echoes waiting to be answered.
pub const COMPLETIONS: usize = 2048;
/// Reads and writes that wait for their replies, of all services: at most. One service may have half of what is left of
/// [`CALLS_SHARED`], up to [`CALLS_EACH`], and in any case [`READS_RESERVED`] and [`WRITES_RESERVED`], however many other calls wait.
pub const CALLS: usize = CALLS_SHARED + SERVICES * (READS_RESERVED + WRITES_RESERVED);
pub const CALLS_SHARED: usize = 2048;
pub const READS_RESERVED: usize = 1;
pub const WRITES_RESERVED: usize = 2;
pub const CALLS_EACH: usize = 512;
/// Bytes of the values that wait to be written, of all services: forty of the largest writes that are texts.
pub const CALLS_BYTES: usize = 3 * 1024 * 1024;
/// Places for calls under way that dbus-daemon has for a connection (max_replies_per_connection, its default on a system bus).
pub const BUS_PLACES: usize = 128;
/// Those of the bridge. Connections that stop answering hold about a third of them however many calls each is to get; beyond it one each.
pub const PLACES: Places = Places { all: 104, unheard: 80, crowded: 48, first: 2, each: 16, mute: 2, overdue: 8 };
/// Those of devices on the same connection, all of localsettings.
pub const SETTINGS_PLACES: Places = Places { all: 16, unheard: 16, crowded: 48, first: 16, each: 16, mute: 16, overdue: 16 };
/// The portal ID is asked of the system's service, once.
const _: () = assert!(PLACES.all + SETTINGS_PLACES.all < BUS_PLACES);
/// A call that is not answered after this is overdue: nothing on a healthy device takes so long.
pub const OVERDUE: Duration = Duration::from_secs(5);
/// A connection that has sent something within this is taken for alive.
pub const ALIVE: Duration = Duration::from_secs(5);
/// Bytes that the values of one answer take in memory: 25,000 numbers with their paths. What comes after them is left out.
pub const REPLY_BYTES: usize = 4 << 20;
/// Nodes, and calls at once, of a walk through introspection data.
pub const WALK_NODES: usize = 4096;
/// Nodes that wait in the walks of all services.
pub const WALK_NODES_ALL: usize = 16_384;
pub const WALK_AT_ONCE: usize = 16;
/// Calls of scans at once, of all services, beyond which each service gets one; and the most that makes.
pub const SCANS_AT_ONCE: usize = 512;
pub const SCANS: usize = SCANS_AT_ONCE + WALK_AT_ONCE + SERVICES;
/// Largest payload of a write, in bytes (the contract's).
pub const WRITE_PAYLOAD: usize = 64 * 1024;
/// Requests, and their bytes, that wait for the first scan and the auto mode.
pub const WAITING: usize = 1024;
pub const WAITING_BYTES: usize = 1024 * 1024;
/// Stale topics known and not yet cleared; the next pass of the sweep finds the rest.
pub const STALE: usize = 4096;
/// Log lines waiting for the loop.
pub const NOTES: usize = 512;
/// Lines of one kind that are written, and how long there must be none before they are again; in between one is. On a device the log is
/// 100 kB of flash.
pub const NOTES_AT_ONCE: u32 = 10;
pub const NOTES_WINDOW: Duration = Duration::from_secs(3600);

/// Largest Status (the contract's) and Proxy message (that of a write).
pub const STATUS_PAYLOAD: usize = 4096;
pub const PROXY_PAYLOAD: usize = WRITE_PAYLOAD;
/// Characters of the ID of a client or a service (the contract's).
pub const ID: usize = 32;
/// Bytes of the client ID in a topic, where it is another than the device's own: answers go there too.
pub const TOPIC_ID: usize = 255;
/// Characters of a device's version that are kept.
pub const VERSION: usize = 64;
/// Bytes of `lwt_topic` and of `lwt_value`.
pub const WILL: usize = 256;
/// A device that came back by itself, from the registry or a retained Status, and is not heard of for so long leaves (the contract's).
pub const PROVISIONAL: Duration = Duration::from_secs(300);
/// A device is told that localsettings is not there after this (the contract's).
pub const SETTINGS_PATIENCE: Duration = Duration::from_secs(30);
/// A call to localsettings; what is not answered by then is asked again.
pub const SETTINGS_DEADLINE: Duration = Duration::from_secs(10);
/// The number of a service is not looked up longer than this while services of its type are being scanned, should one of them hang.
pub const NUMBER_PATIENCE: Duration = FIRST_SCAN;
/// Numbers above a taken one that are looked at: more than there can be services on the bus.
pub const NUMBERS_TRIED: i32 = 2048;
/// Numbers claimed from localsettings in a row, should it answer each time with one that is taken on the bus.
pub const NUMBER_CLAIMS: u32 = 64;
/// Pairs of services with one type and instance that wait to be told to devices.
pub const CONFLICTS: usize = 64;
/// A service that could not be put on the bus is tried again after this, doubling: the name may be an earlier life's.
pub const SERVICE_RETRY_FIRST: Duration = Duration::from_secs(1);
pub const SERVICE_RETRY_LAST: Duration = Duration::from_secs(60);
/// After a connect, wills that the broker replays count for so long.
pub const WILL_REPLAY: Duration = Duration::from_secs(5);
/// How often another bridge is kept awake: half of what it stays awake for, so that one may get lost.
pub const KEEP_AWAKE: Duration = Duration::from_secs(30);
/// How long a device waits for its answer until another bridge serves its services (the contract's), when that one is asked first, after the
/// service is on the bus (dbus-flashmq takes some 10 ms to find it), and again, doubling.
pub const SERVED_PATIENCE: Duration = Duration::from_secs(3);
pub const SERVED_FIRST: Duration = Duration::from_millis(50);
pub const SERVED_AGAIN: Duration = Duration::from_millis(100);
/// Such requests in one window, of all services: each is a call on the other bridge's connection to the bus, which has 128 places for them.
pub const SERVED_REQUESTS: usize = 32;
pub const SERVED_WINDOW: Duration = Duration::from_millis(100);
/// Answers to devices that wait for the connection, and bytes of them.
pub const ANSWERS: usize = 1024;
pub const ANSWER_BYTES: usize = 2 << 20;
/// Bytes of the texts and lists of one service of a device: names and lists of options take a few hundred.
pub const DEVICE_SERVICE_BYTES: usize = 16 * 1024;
/// Devices remembered beside those that are registered: so many may be gone and still be listed.
pub const GONE: usize = 256;
/// Services of all of those.
pub const GONE_SERVICES: usize = 1024;
/// Services that a device had before, and that are remembered with their numbers.
pub const FORMER_SERVICES: usize = 16;
/// Bytes of a type and of an instance in a Proxy's topicPath.
pub const TYPE: usize = 64;
/// Values in one Proxy message, and refusals that are told of it.
pub const PROXY_VALUES: usize = 512;
pub const PROXY_REFUSALS: usize = 5;
/// Bytes of the registry on disk, and of the values in it that a restart of the daemon restores, of all services.
pub const REGISTRY_BYTES: usize = 1024 * 1024;
pub const RESTORED_BYTES: usize = REGISTRY_BYTES / 2;
/// How often the registry is made anew: the file is written still less often.
pub const REGISTRY_EVERY: Duration = Duration::from_secs(1);
/// Largest measurement, in bytes: every item of a large system.
pub const MEASUREMENT: usize = 256 * 1024;
/// Characters of a name or a serial number in a measurement.
pub const NAME: usize = 200;
/// Trackers of one solar charger: four times what the largest has.
pub const TRACKERS: usize = 16;
/// How often the clock is looked at while a measurement is far off: it may be set.
pub const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);
/// Measurements handed to the disk and not yet taken: a disk that hangs may not fill the memory.
pub const STORING: usize = 64;
pub const STORING_BYTES: u64 = 1024 * 1024;
/// A disk that has not said by then what waits on it is worth a line.
pub const OPENING: Duration = Duration::from_secs(60);
/// How often what waits is brought to the flash for good (a power cut loses no more than this).
pub const SYNC: Duration = Duration::from_secs(60);
/// After a post that failed the next waits so long, doubling; with a wrong key it always waits the longest (the contract's).
pub const POST_RETRY_FIRST: Duration = Duration::from_secs(5);
pub const POST_RETRY_LAST: Duration = Duration::from_secs(900);
/// Longest wait that a backend can ask for (the contract's), and the shortest; and how far the wait grows with one that asks for next to
/// nothing again and again.
pub const RETRY_AFTER: Duration = Duration::from_secs(3600);
pub const RETRY_AFTER_LEAST: Duration = Duration::from_secs(1);
pub const RETRY_AFTER_AGAIN: Duration = Duration::from_secs(60);
/// The status of a target is published when it has been the same for so long, and no more often than so.
pub const STATUS_SETTLE: Duration = Duration::from_secs(1);
pub const STATUS_EVERY: Duration = Duration::from_secs(5);
/// Serial numbers of refused devices that one line names.
pub const REFUSED: usize = 20;
/// Targets of measurements.
pub const TARGETS: usize = 8;
/// Items of one service that come into being when they are written: all days of a solar charger's history, and nine outputs.
pub const GROWN_ITEMS: usize = 640;

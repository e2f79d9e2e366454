//! venus-mqtt: the MQTT interface of Venus OS.
//!
//! The house, from the door inwards; an arrow means "uses", and none points the other way:
//!
//! ```text
//! main -> cli -> daemon -> { bus, mqtt, http, portal, signals, store, control, supervisor, watchdog, catalogue_files, watch } -> device, measure -> bridge -> text
//!           \-> config, tls, dbus_address, log
//! ```
//!
//! | room | what it promises |
//! |---|---|
//! | [`cli`] | arguments, the commands, exit codes |
//! | [`config`] | TOML and flags become values that cannot be wrong, or a message with file and line |
//! | [`daemon`] | the loop: the only one who knows everyone; nothing in a turn of it waits |
//! | [`bridge`] | PURE: all state, and what follows from each event. No clock, no socket, no library of the edges |
//! | [`device`] | PURE: devices that register themselves: who is there, what is wanted, and the next step towards it |
//! | [`measure`] | PURE: measurements for HTTP backends: when one is taken, what waits, when it is posted, what an answer means |
//! | [`bus`] | the watcher's connection: every signal and reply in the bus's own order, calls that are never waited for; a connection for each service of a device |
//! | [`mqtt`] | the connection to the broker, with credit |
//! | [`dbus_address`] | addresses of a bus: a list that is tried in order, or what is wrong with it |
//! | [`tls`] | what secures connections: certificates and keys that work, or which file does not |
//! | [`http`] | measurements on their way: for each target a queue on disk and a client, neither of which the loop waits for |
//! | [`portal`] | who this device is |
//! | [`control`] | the socket by which `venus-mqtt devices` talks to the daemon that runs |
//! | [`catalogue_files`] | the user's own types of devices, read; what is wrong with them costs nothing else |
//! | [`memory`] | the worst case of memory, added up |
//! | [`store`] | the registered devices' note on disk: written whole or not at all, and never waited for |
//! | `files` | opens and reads files, whatever is at their paths, and never waits |
//! | [`signals`] | what the system wants of the process |
//! | `privileges` | what the process gives up at its start: core dumps, privileges by exec |
//! | [`supervisor`] | what systemd is told: ready, alive, at the end |
//! | [`watchdog`] | aborts the process when the loop stands still |
//! | `watch` | descriptors watched for one thing only, a timer that wakes once |
//! | [`log`] | one line per event, for multilog, a terminal or the journal |
//! | [`text`] | PURE: what peers say, made fit for a log line |
//!
//! Inside the bridge: `topic`, `name`, `filter`, `value` are the words it speaks, `json` and `lenient` read values from payloads; `item` is
//! one item and `items` what is known of the bus, `presence` how it comes and goes, `scan` how it is found; `keepalive` is who is awake; `outbox` and `publish` are what goes out; `request` is reads
//! and writes, `calls` what is asked of the bus, `outgoing` how much of it at once; `session` is the connection, other bridges and what a former life left behind;
//! `access`, `limits` and `notes` are the rules, the caps and the log lines; `view` is what other rooms may read.
//!
//! Inside the devices: `id`, `status` and `proxy` are what devices say; `catalogue` and `format` what types of services there are, as data;
//! `model` is what is known of a device; `registration` who is there, `steps` how a service comes and goes, `settings` and `dialogue`
//! the calls to localsettings, `persisted` the items that it stores, `numbers` the instances; `service` what a service answers; `registry` what is remembered from one life of the daemon to the next.
//!
//! Inside the measurements: `sample` makes one out of items, `stamp` is the time of day; `target` is one backend with its `queue` and its words, and
//! `answer` what that one said. On the edge, `spool` is the file of a queue, `poster` posts, and `client` sees to it that it comes to an end.
#![forbid(unsafe_code)]

pub mod bridge;
pub mod bus;
pub mod catalogue_files;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dbus_address;
pub mod device;
mod files;
pub mod http;
pub mod log;
pub mod measure;
pub mod memory;
pub mod mqtt;
pub mod portal;
mod privileges;
#[cfg(test)]
mod scratch;
pub mod signals;
pub mod store;
pub mod supervisor;
pub mod text;
pub mod tls;
mod watch;
mod watchdog;

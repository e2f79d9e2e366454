//! One line per event, for multilog, a terminal or the systemd journal.
//!
//! Promises: what peers say can neither forge a line (control characters are escaped) nor flood one (cut at 1,000
//! characters); a closed stderr ends nothing; a stderr that nobody reads costs a few milliseconds once, then lines are
//! dropped and counted until it is read again. Libraries are heard from `warn` on, unless the level is `debug` or `trace`,
//! and named; those that tell secrets there are not. Installed by `cli`; everyone else uses the macros of the crate `log`.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use systemd_journal_logger::{JournalLog, connected_to_journal};

use crate::bridge::Time;
use crate::bridge::notes::Repeats;
use crate::text::escape_to;

/// Most characters of one event. With the longest characters this stays below the 4,096 bytes that a pipe which is ready
/// takes without blocking.
const LINE_MAX: usize = 1000;

/// How long a line waits for a stderr that is full, in milliseconds: a busy reader catches up in it, and the loop is not held up for longer
/// than one turn may take.
const PATIENCE_MS: u16 = 5;

/// Our own records have targets that begin so.
const OWN_TARGET: &str = env!("CARGO_CRATE_NAME");

/// They log whole requests, keys included: heard from `warn` on, whatever the level.
const TALKATIVE: [&str; 2] = ["ureq", "ureq_proto"];

/// Installs the logger; call it once, at the start. Panics are logged too, as one line.
pub fn install(level: LevelFilter) {
    let sink = if connected_to_journal()
        && let Ok(journal) = JournalLog::new()
    {
        Sink::Journal(journal)
    } else {
        Sink::Stderr(Stderr::new(io::stderr()))
    };
    // a second call (tests) keeps the first logger
    let _ = log::set_boxed_logger(Box::new(Logger { sink }));
    set_level(level);
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        match panic.location() {
            Some(at) => log::error!("internal error, please report it: {text} ({}:{})", at.file(), at.line()),
            None => log::error!("internal error, please report it: {text}"),
        }
    }));
}

/// Changes the level, also while running.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

struct Logger {
    sink: Sink,
}

enum Sink {
    Journal(JournalLog),
    Stderr(Stderr<io::Stderr>),
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        passes(metadata.target(), metadata.level(), log::max_level())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = if is_own(record.target()) { record.args().to_string() } else { format!("{}: {}", record.target(), record.args()) };
        let text = escape_to(&text, LINE_MAX);
        match &self.sink {
            Sink::Journal(journal) => {
                let _ = journal.journal_send(
                    &Record::builder()
                        .metadata(record.metadata().clone())
                        .module_path(record.module_path())
                        .args(format_args!("{text}"))
                        .build(),
                );
            }
            Sink::Stderr(stderr) => stderr.line(record.level(), &text.to_string()),
        }
    }

    fn flush(&self) {}
}

/// Whether a record is logged at all.
fn passes(target: &str, level: Level, max: LevelFilter) -> bool {
    let all = is_own(target) || (max >= LevelFilter::Debug && !TALKATIVE.iter().any(|name| is_of(target, name)));
    // what ends a connection is in our own line, which is limited
    level <= max && (all || (level <= Level::Warn && !is_of(target, "rumqttc_v4_next")))
}

fn is_own(target: &str) -> bool {
    is_of(target, OWN_TARGET)
}

/// Whether a record is from the library of that name.
fn is_of(target: &str, name: &str) -> bool {
    target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Stderr, or what stands for it in a test.
struct Stderr<W> {
    out: W,
    terminal: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last line found it full: do not wait again before it was read.
    stuck: bool,
    /// Lines dropped since.
    dropped: u64,
}

impl<W> Stderr<W>
where
    W: AsFd,
    for<'a> &'a W: io::Write,
{
    fn new(out: W) -> Self
    where
        W: IsTerminal,
    {
        Self { terminal: out.is_terminal(), out, state: Mutex::default() }
    }

    fn line(&self, level: Level, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let patience = if state.stuck { 0 } else { PATIENCE_MS };
        if !self.is_ready(patience) {
            state.stuck = true;
            state.dropped += 1;
            return;
        }
        state.stuck = false;
        let dropped = std::mem::take(&mut state.dropped);
        if dropped > 0 {
            self.write(Level::Warn, &format!("{dropped} log lines were dropped: nobody read them"));
            if !self.is_ready(0) {
                state.stuck = true;
                state.dropped = 1;
                return;
            }
        }
        self.write(level, text);
    }

    /// Whether a write of a line will not block. An error counts as ready: the write then fails at once.
    fn is_ready(&self, patience_ms: u16) -> bool {
        let mut fds = [PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)];
        nix::poll::poll(&mut fds, PollTimeout::from(patience_ms)) != Ok(0)
    }

    fn write(&self, level: Level, text: &str) {
        let mut line = String::with_capacity(text.len() + 20);
        if self.terminal {
            let _ = write!(line, "{} ", clock(SystemTime::now()));
        }
        let _ = writeln!(line, "{}: {text}", level_name(level));
        // a closed stderr is nobody's error
        let _ = (&self.out).write_all(line.as_bytes());
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// Lines of one kind that can repeat for ever, such as those of a disk that works now and then: written as rarely as the core's
/// ([`Repeats`]).
#[derive(Debug)]
pub(crate) struct Repeated {
    began: Instant,
    repeats: Repeats,
}

impl Repeated {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), repeats: Repeats::default() }
    }

    pub(crate) fn say(&mut self, level: Level, text: &str) {
        match self.repeats.admit(Time::since_start(self.began.elapsed())) {
            Some(more) => log::log!(level, "{text}{more}"),
            None => log::debug!("{text}"),
        }
    }
}

/// The time of day, UTC.
fn clock(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn who_is_heard() {
        use Level::{Debug, Error, Info, Trace, Warn};
        let table = [
            ("venus_mqtt::daemon", Info, LevelFilter::Info, true),
            ("venus_mqtt", Error, LevelFilter::Error, true),
            ("venus_mqtt::daemon", Debug, LevelFilter::Info, false),
            ("venus_mqtt_other", Info, LevelFilter::Info, false),
            ("rumqttc_v4_next::state", Info, LevelFilter::Info, false),
            ("rumqttc_v4_next::state", Error, LevelFilter::Info, false),
            ("rumqttc_v4_next::state", Warn, LevelFilter::Debug, true),
            ("rumqttc_v4_next::state", Debug, LevelFilter::Debug, true),
            ("rustls::client", Debug, LevelFilter::Trace, true),
            ("ureq::run", Debug, LevelFilter::Trace, false),
            ("ureq_proto::util", Trace, LevelFilter::Trace, false),
            ("ureq", Info, LevelFilter::Trace, false),
            ("ureq::pool", Warn, LevelFilter::Trace, true),
            ("ureq_other", Trace, LevelFilter::Trace, true),
        ];
        for (target, level, max, expected) in table {
            assert_eq!(passes(target, level, max), expected, "{target} {level} {max}");
        }
    }

    #[test]
    fn lines() {
        let dir = Scratch::new();
        let path = dir.file("log", "");
        let stderr = Stderr::new(File::create(&path).unwrap());
        stderr.line(Level::Info, "one");
        stderr.line(Level::Error, "two");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "info: one\nerror: two\n");
    }

    #[test]
    fn terminal_lines_have_the_time() {
        let dir = Scratch::new();
        let path = dir.file("log", "");
        let stderr = Stderr { out: File::create(&path).unwrap(), terminal: true, state: Mutex::default() };
        stderr.line(Level::Debug, "one");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.get(8..) == Some(" debug: one\n"), "{text}");
        assert_eq!(clock(UNIX_EPOCH + Duration::from_secs(1_700_000_000)), "22:13:20");
    }

    #[test]
    fn a_full_stderr_costs_little_and_says_what_was_lost() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let stderr = Stderr { out: ours, terminal: false, state: Mutex::default() };
        let text = "x".repeat(LINE_MAX);
        let start = Instant::now();
        for _ in 0..2000 {
            stderr.line(Level::Info, &text);
        }
        assert!(start.elapsed() < Duration::from_secs(5));
        let dropped = stderr.state.lock().unwrap().dropped;
        assert!(dropped > 0, "2 MB fit into a socket nobody reads");

        theirs.set_nonblocking(true).unwrap();
        let mut sink = vec![0; 1 << 20];
        while theirs.read(&mut sink).is_ok_and(|n| n > 0) {}
        stderr.line(Level::Info, "back");
        let mut text = [0; 200];
        let n = theirs.read(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..n]);
        assert_eq!(text, format!("warn: {dropped} log lines were dropped: nobody read them\ninfo: back\n"));
    }

    #[test]
    fn a_closed_stderr_is_nobodys_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let stderr = Stderr { out: ours, terminal: false, state: Mutex::default() };
        stderr.line(Level::Info, "to nobody");
    }
}

//! Aborts the process when the loop stands still, so that the supervisor starts it again.
//!
//! dbus-daemon queues what a connection does not read. Once that queue is full it stops reading the senders of those messages: a loop
//! that stands still blocks the services whose signals it does not take.
//!
//! Promises: the process ends 60 to 90 s after the last turn of the loop (SIGABRT), after one line in the log that says why. It does not
//! end while a debugger is attached, nor because the process was stopped (SIGSTOP) or the machine was suspended: the loop gets 60 s to
//! turn after that as well. Started by [`crate::supervisor`] where no systemd watchdog does the same.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, Builder, Thread};
use std::time::{Duration, Instant};

/// Between two looks at the loop. Two of them without a turn are the end: one of them could come right after SIGCONT.
pub const LOOK: Duration = Duration::from_secs(30);

/// Looks in a row without a turn of the loop after which the process is aborted.
const STILL: u32 = 2;

/// The loop turns at least this often, also when nothing happens: shorter than [`LOOK`].
pub const TURN: Duration = Duration::from_secs(20);

/// The line in the log is waited for this long: what the loop stands still for may be the log.
const LAST_LINE: Duration = Duration::from_secs(2);

/// Bytes of the thread's stack, which counts against the memory limit of the process.
const STACK: usize = 128 << 10;

/// A thread that looks at the loop. Ends when dropped.
#[derive(Debug)]
pub struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<Thread>,
}

#[derive(Debug, Default)]
struct Shared {
    turns: AtomicU32,
    ended: AtomicBool,
}

impl Watchdog {
    pub fn start() -> Self {
        Self::with(LOOK, is_traced, abort)
    }

    fn with(look: Duration, is_traced: impl Fn() -> bool + Send + 'static, abort: impl FnOnce() + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        let thread = Builder::new().name("watchdog".into()).stack_size(STACK).spawn(move || {
            if watch(&watched, look, is_traced) {
                abort();
            }
        });
        let thread = thread.inspect_err(|error| log::warn!("no thread that watches the loop: {error}")).ok();
        Self { shared, thread: thread.map(|thread| thread.thread().clone()) }
    }

    /// The loop has turned. Called by the loop only.
    pub fn turned(&self) {
        // one thread writes: an ordinary store is cheaper than fetch_add
        self.shared.turns.store(self.shared.turns.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}

/// Returns true when the loop stands still, false when nothing is to be watched any more.
fn watch(shared: &Shared, look: Duration, is_traced: impl Fn() -> bool) -> bool {
    let mut judge = Judge::default();
    loop {
        let began = Instant::now();
        while let Some(left) = look.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            thread::park_timeout(left);
            if shared.ended.load(Ordering::Acquire) {
                return false;
            }
        }
        let late = began.elapsed() > look + look / 4;
        if judge.is_still(shared.turns.load(Ordering::Relaxed), late || is_traced()) {
            return true;
        }
    }
}

/// What the looks have shown.
#[derive(Debug, Default)]
struct Judge {
    turns: u32,
    still: u32,
}

impl Judge {
    /// One look. `excused`: the loop could not turn, or need not (the process was stopped, the thread itself was late, a debugger is
    /// attached); counting begins anew.
    fn is_still(&mut self, turns: u32, excused: bool) -> bool {
        if excused || turns != self.turns {
            (self.turns, self.still) = (turns, 0);
            return false;
        }
        self.still += 1;
        self.still >= STILL
    }
}

/// Whether a debugger is attached.
fn is_traced() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|pid| pid.trim() != "0")
}

fn abort() {
    // on a thread of its own, as it may block
    let said = Builder::new().stack_size(STACK).spawn(|| {
        log::error!(
            "the loop has not turned for {} s: aborting, because dbus-daemon stops reading the services whose signals are not taken; the supervisor has to start the daemon again",
            (LOOK * STILL).as_secs()
        );
        std::process::abort();
    });
    if said.is_ok() {
        thread::sleep(LAST_LINE);
    }
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    /// For what has to happen.
    const DEADLINE: Duration = Duration::from_secs(30);

    #[test]
    fn a_loop_that_turns_is_never_still() {
        let mut judge = Judge::default();
        assert!((1..100).all(|turns| !judge.is_still(turns, false)));
        assert!(!judge.is_still(u32::MAX, false) && !judge.is_still(0, false), "the counter wraps");
    }

    #[test]
    fn two_looks_without_a_turn_are_the_end() {
        let mut judge = Judge::default();
        for turns in [1, 2, 3] {
            assert!(!judge.is_still(turns, false));
            assert!(!judge.is_still(turns, false), "one could come right after SIGCONT");
        }
        assert!(judge.is_still(3, false));
    }

    #[test]
    fn one_that_never_turned_is_still_as_well() {
        let mut judge = Judge::default();
        assert!(!judge.is_still(0, false));
        assert!(judge.is_still(0, false));
    }

    /// Stopped and continued again and again, each time before the loop has turned.
    #[test]
    fn a_look_that_comes_late_is_no_reason() {
        let mut judge = Judge::default();
        for _ in 0..10 {
            assert!(!judge.is_still(5, false));
            assert!(!judge.is_still(5, true));
        }
        assert!(!judge.is_still(5, false));
        assert!(judge.is_still(5, false));
    }

    #[test]
    fn the_thread_finds_a_loop_that_has_stopped() {
        let (aborted, ends) = mpsc::channel();
        let watchdog = Watchdog::with(SHORT, || false, move || aborted.send(()).unwrap());
        watchdog.turned();
        ends.recv_timeout(DEADLINE).unwrap();
    }

    #[test]
    fn a_debugger_may_hold_the_loop() {
        let (looked, looks) = mpsc::channel();
        let (aborted, ends) = mpsc::channel::<()>();
        let is_traced = move || looked.send(()).is_ok();
        let watchdog = Watchdog::with(SHORT, is_traced, move || aborted.send(()).unwrap());
        for _ in 0..STILL + 2 {
            looks.recv_timeout(DEADLINE).unwrap();
        }
        assert!(ends.try_recv().is_err());
        drop(watchdog);
        // the thread has ended without an abort
        assert_eq!(ends.recv_timeout(DEADLINE), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn nothing_is_looked_at_after_the_end() {
        let (aborted, ends) = mpsc::channel::<()>();
        drop(Watchdog::with(LOOK, || false, move || aborted.send(()).unwrap()));
        assert_eq!(ends.recv_timeout(DEADLINE), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}

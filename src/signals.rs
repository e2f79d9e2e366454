//! The signals that mean something to the daemon, as a source a runtime can wait for.
//!
//! Promises: a signal is delivered once for every time it is seen, also a second SIGTERM while the first is being obeyed
//! (several that come before anyone looks are one, as everywhere in Unix); none is lost when [`Signals::next`] is dropped
//! half way; Stop goes before the others. SIGPIPE is ignored by Rust's runtime already. Called by the daemon.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level;
use tokio::net::UnixStream;

/// What the person, the supervisor or the system wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM or SIGINT: end politely.
    Stop,
    /// SIGHUP: load the configuration again.
    Reload,
    /// SIGUSR1: a summary into the log.
    Summary,
}

/// Which number means what; in the order of delivery.
const MEANINGS: [(i32, Signal); 4] =
    [(SIGTERM, Signal::Stop), (SIGINT, Signal::Stop), (SIGHUP, Signal::Reload), (SIGUSR1, Signal::Summary)];

/// The signals, from the moment it was installed.
pub struct Signals {
    flags: Vec<(Arc<AtomicBool>, Signal)>,
    /// Each signal writes a byte to the other end, after its flag was set.
    wake: UnixStream,
    registered: Vec<SigId>,
}

impl Signals {
    /// Must be called inside a runtime. From here on none of the signals ends the process.
    pub fn install() -> io::Result<Self> {
        let (wake, ring) = std::os::unix::net::UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let mut signals = Self { flags: Vec::new(), wake: UnixStream::from_std(wake)?, registered: Vec::new() };
        for (number, meaning) in MEANINGS {
            let flag = Arc::new(AtomicBool::new(false));
            // the flag first: whoever is woken finds it set
            signals.registered.push(signal_hook::flag::register(number, Arc::clone(&flag))?);
            signals.registered.push(low_level::pipe::register(number, ring.try_clone()?)?);
            signals.flags.push((flag, meaning));
        }
        Ok(signals)
    }

    /// The next signal. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        loop {
            if let Some(signal) = self.take() {
                return signal;
            }
            // an error here would be a broken socket pair of our own; the flags are looked at all the same
            let _ = poll_fn(|context| self.wake.poll_read_ready(context)).await;
            self.drain();
        }
    }

    fn take(&mut self) -> Option<Signal> {
        let (_, first) = self.flags.iter().find(|(flag, _)| flag.swap(false, Ordering::SeqCst))?;
        if *first == Signal::Stop {
            // SIGTERM and SIGINT at once are one wish
            for (flag, _) in self.flags.iter().filter(|(_, signal)| signal == first) {
                flag.store(false, Ordering::SeqCst);
            }
        }
        Some(*first)
    }

    fn drain(&self) {
        let mut bytes = [0; 64];
        while self.wake.try_read(&mut bytes).is_ok_and(|n| n > 0) {}
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            low_level::unregister(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use signal_hook::low_level::raise;
    use tokio::time::timeout;

    use super::*;

    /// The signals belong to the whole process: one test at a time.
    static ALONE: Mutex<()> = Mutex::new(());

    fn run(test: impl Future<Output = ()>) {
        let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    }

    async fn next(signals: &mut Signals) -> Signal {
        timeout(Duration::from_secs(5), signals.next()).await.unwrap()
    }

    #[test]
    fn each_means_what_it_means() {
        run(async {
            let mut signals = Signals::install().unwrap();
            for (number, meaning) in MEANINGS {
                raise(number).unwrap();
                assert_eq!(next(&mut signals).await, meaning);
            }
        });
    }

    #[test]
    fn a_second_stop_is_delivered() {
        run(async {
            let mut signals = Signals::install().unwrap();
            for _ in 0..3 {
                raise(SIGTERM).unwrap();
                assert_eq!(next(&mut signals).await, Signal::Stop);
            }
        });
    }

    #[test]
    fn stop_goes_first_and_no_other_is_lost() {
        run(async {
            let mut signals = Signals::install().unwrap();
            for number in [SIGUSR1, SIGHUP, SIGINT, SIGTERM] {
                raise(number).unwrap();
            }
            assert_eq!(next(&mut signals).await, Signal::Stop);
            assert_eq!(next(&mut signals).await, Signal::Reload);
            assert_eq!(next(&mut signals).await, Signal::Summary);
            assert!(timeout(Duration::from_millis(50), signals.next()).await.is_err());
        });
    }

    #[test]
    fn waiting_wakes_and_may_be_given_up() {
        run(async {
            let mut signals = Signals::install().unwrap();
            for _ in 0..20 {
                assert!(timeout(Duration::ZERO, signals.next()).await.is_err());
            }
            let (got, ()) = tokio::join!(next(&mut signals), async {
                tokio::task::yield_now().await;
                raise(SIGHUP).unwrap();
            });
            assert_eq!(got, Signal::Reload);
        });
    }
}

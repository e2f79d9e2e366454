//! The signals that mean something to the daemon, as a source a runtime can wait for.
//!
//! Promises: a stop wins over everything else, whenever it comes: [`Signals::stop_wanted`] stays true from the first SIGTERM or SIGINT
//! on, and nothing but further stops is delivered after it. A reload or a summary is delivered once, by [`Signals::next`]: while only
//! [`Signals::stop`] is waited for, both stay pending. Several signals of one kind that come before anyone looks are one, as everywhere
//! in Unix. Nothing is lost when a wait is dropped half way. SIGPIPE is ignored by Rust's runtime already. Called by the daemon.

use std::future::poll_fn;
use std::io;
use std::mem;
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

/// Which number means what.
const MEANINGS: [(i32, Signal); 4] =
    [(SIGTERM, Signal::Stop), (SIGINT, Signal::Stop), (SIGHUP, Signal::Reload), (SIGUSR1, Signal::Summary)];

/// What has come and has not been delivered yet.
#[derive(Default, Debug)]
struct Pending {
    stop: bool,
    reload: bool,
    summary: bool,
    /// A stop has been delivered.
    stopping: bool,
}

impl Pending {
    fn add(&mut self, signal: Signal) {
        match signal {
            Signal::Stop => self.stop = true,
            Signal::Reload => self.reload = true,
            Signal::Summary => self.summary = true,
        }
    }

    /// A stop that has come since the last one.
    fn take_stop(&mut self) -> Option<Signal> {
        let came = mem::take(&mut self.stop);
        if came && !mem::replace(&mut self.stopping, true) {
            log::info!("told to stop");
        }
        came.then_some(Signal::Stop)
    }

    /// What is most urgent; after a stop nothing but another one.
    fn take(&mut self) -> Option<Signal> {
        let stop = self.take_stop();
        if stop.is_some() || self.stopping {
            return stop;
        }
        if mem::take(&mut self.reload) {
            return Some(Signal::Reload);
        }
        mem::take(&mut self.summary).then_some(Signal::Summary)
    }

    fn is_stop_wanted(&self) -> bool {
        self.stop || self.stopping
    }
}

/// The signals, from the moment it was installed.
pub struct Signals {
    flags: Vec<(Arc<AtomicBool>, Signal)>,
    /// Each signal writes a byte to the other end, after its flag was set.
    wake: UnixStream,
    registered: Vec<SigId>,
    pending: Pending,
}

impl Signals {
    /// Must be called inside a runtime. From here on none of the signals ends the process.
    pub fn install() -> io::Result<Self> {
        let (wake, ring) = std::os::unix::net::UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let wake = UnixStream::from_std(wake)?;
        let mut signals = Self { flags: Vec::new(), wake, registered: Vec::new(), pending: Pending::default() };
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
        self.wait(Pending::take).await
    }

    /// The next SIGTERM or SIGINT; all others stay pending. Cancel-safe.
    pub async fn stop(&mut self) -> Signal {
        self.wait(Pending::take_stop).await
    }

    /// Whether a stop has come, delivered or not.
    pub fn stop_wanted(&mut self) -> bool {
        self.collect();
        self.pending.is_stop_wanted()
    }

    async fn wait(&mut self, take: impl Fn(&mut Pending) -> Option<Signal>) -> Signal {
        loop {
            self.collect();
            if let Some(signal) = take(&mut self.pending) {
                return signal;
            }
            // an error here would be a broken socket pair of our own; the flags are looked at all the same
            let _ = poll_fn(|context| self.wake.poll_read_ready(context)).await;
            self.drain();
        }
    }

    /// Takes what has come from the handlers.
    fn collect(&mut self) {
        for (flag, signal) in &self.flags {
            if flag.swap(false, Ordering::SeqCst) {
                self.pending.add(*signal);
            }
        }
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

    /// For what has to happen.
    const LONG: Duration = Duration::from_secs(30);

    async fn next(signals: &mut Signals) -> Signal {
        timeout(LONG, signals.next()).await.unwrap()
    }

    #[test]
    fn each_means_what_it_means() {
        for (number, meaning) in MEANINGS {
            run(async {
                let mut signals = Signals::install().unwrap();
                raise(number).unwrap();
                assert_eq!(next(&mut signals).await, meaning);
                assert_eq!(signals.stop_wanted(), meaning == Signal::Stop);
            });
        }
    }

    #[test]
    fn a_second_stop_is_delivered() {
        run(async {
            let mut signals = Signals::install().unwrap();
            for _ in 0..3 {
                raise(SIGTERM).unwrap();
                assert_eq!(next(&mut signals).await, Signal::Stop);
                raise(SIGINT).unwrap();
                assert_eq!(timeout(LONG, signals.stop()).await, Ok(Signal::Stop));
            }
        });
    }

    #[test]
    fn waiting_for_a_stop_leaves_the_others_pending() {
        run(async {
            let mut signals = Signals::install().unwrap();
            for number in [SIGUSR1, SIGHUP] {
                raise(number).unwrap();
            }
            assert!(timeout(Duration::from_millis(50), signals.stop()).await.is_err());
            assert!(!signals.stop_wanted());
            assert_eq!(next(&mut signals).await, Signal::Reload);
            assert_eq!(next(&mut signals).await, Signal::Summary);
            assert!(timeout(Duration::from_millis(50), signals.next()).await.is_err());
        });
    }

    #[test]
    fn a_stop_that_nobody_waited_for_is_wanted() {
        run(async {
            let mut signals = Signals::install().unwrap();
            assert!(!signals.stop_wanted());
            raise(SIGINT).unwrap();
            assert!(signals.stop_wanted() && signals.stop_wanted());
            // SIGTERM and SIGINT at once are one stop
            raise(SIGTERM).unwrap();
            assert_eq!(next(&mut signals).await, Signal::Stop);
            assert!(timeout(Duration::from_millis(50), signals.stop()).await.is_err());
            assert!(signals.stop_wanted());
        });
    }

    #[test]
    fn waiting_wakes_and_may_be_given_up() {
        run(async {
            let mut signals = Signals::install().unwrap();
            for _ in 0..20 {
                assert!(timeout(Duration::ZERO, signals.next()).await.is_err());
                assert!(timeout(Duration::ZERO, signals.stop()).await.is_err());
            }
            let (got, ()) = tokio::join!(next(&mut signals), async {
                tokio::task::yield_now().await;
                raise(SIGHUP).unwrap();
            });
            assert_eq!(got, Signal::Reload);
        });
    }

    /// What can happen to [`Pending`].
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Event {
        Came(Signal),
        Next,
        Stop,
    }

    /// Every order of six events, and then all that is left.
    #[test]
    fn whatever_the_order() {
        let events = [Event::Came(Signal::Stop), Event::Came(Signal::Reload), Event::Came(Signal::Summary), Event::Next, Event::Stop];
        for number in 0..events.len().pow(6) {
            let order = (0..6).map(|digit| events[number / events.len().pow(digit) % events.len()]);
            let order: Vec<_> = order.chain([Event::Next; 4]).collect();
            let mut pending = Pending::default();
            let delivered = order.iter().map(|event| match event {
                Event::Came(signal) => {
                    pending.add(*signal);
                    None
                }
                Event::Next => pending.take(),
                Event::Stop => pending.take_stop(),
            });
            let delivered: Vec<_> = delivered.collect();
            let stop = order.iter().position(|event| *event == Event::Came(Signal::Stop));
            assert_eq!(pending.is_stop_wanted(), stop.is_some(), "{order:?}");
            let before = stop.unwrap_or(order.len());
            if let Some(stop) = stop {
                let mut after = (stop..order.len()).filter(|&at| matches!(order[at], Event::Next | Event::Stop)).map(|at| delivered[at]);
                assert_eq!(after.next(), Some(Some(Signal::Stop)), "{order:?}");
                assert!(after.flatten().all(|signal| signal == Signal::Stop), "{order:?}");
            }
            for signal in [Signal::Stop, Signal::Reload, Signal::Summary] {
                let came: Vec<_> = (0..order.len()).filter(|&at| order[at] == Event::Came(signal)).collect();
                let went: Vec<_> = (0..order.len()).filter(|&at| delivered[at] == Some(signal)).collect();
                // each delivery is of one that came, each that came is delivered with the last before a delivery
                assert!(went.iter().enumerate().all(|(n, at)| came.get(n).is_some_and(|came| came < at)), "{order:?}: {went:?}");
                if let (Some(came), true) = (came.last(), signal == Signal::Stop || before == order.len()) {
                    assert!(went.last().is_some_and(|went| went > came), "{order:?}: {went:?}");
                }
            }
        }
    }
}

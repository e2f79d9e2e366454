//! What systemd is told, where it has asked for it: that the daemon is ready, that it is alive, that it ends. Where no systemd watches
//! the loop, a thread does ([`crate::watchdog`]).
//!
//! Promises: nothing is sent where nobody asks (daemontools, a container, a terminal). A sign of life comes out of the loop and from
//! nowhere else: a loop that hangs gives none, and is started anew. Called by the daemon.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::watchdog::{self, Watchdog};

/// Who started us.
pub struct Supervisor {
    asks: bool,
    /// Watches the loop, unless systemd does.
    watchdog: Option<Watchdog>,
    /// Between two signs of life.
    interval: Duration,
    due: Option<Instant>,
}

impl Supervisor {
    /// As the environment has it (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub fn new() -> Self {
        let asks = std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty());
        // twice in the time there is, as systemd advises
        let interval = sd_notify::watchdog_enabled().filter(|deadline| asks && !deadline.is_zero()).map(|deadline| deadline / 2);
        let watchdog = interval.is_none().then(Watchdog::start);
        Self { asks, watchdog, interval: interval.unwrap_or(watchdog::TURN), due: None }
    }

    /// The bus is there, and everything can be asked of us.
    pub fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
        self.due = Some(Instant::now());
    }

    /// A line for whoever asks how it goes.
    pub fn status(&self, text: &str) {
        self.tell(&[NotifyState::Status(text)]);
    }

    /// It goes on with another configuration: [`Supervisor::ready`] says when. Gives a sign of life: the next one comes then.
    pub fn reloading(&mut self) {
        self.tell(&[NotifyState::Reloading]);
        let now = Instant::now();
        self.due = Some(now);
        self.live(now);
    }

    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// When the loop has to turn, whatever else happens.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The loop has turned: gives a sign of life, if one is due.
    pub fn live(&mut self, now: Instant) {
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due {
            self.due = Some(now + self.interval);
        }
        match &self.watchdog {
            Some(watchdog) => watchdog.turned(),
            None if is_due => self.tell(&[NotifyState::Watchdog]),
            None => {}
        }
    }

    fn tell(&self, what: &[NotifyState<'_>]) {
        if !self.asks {
            return;
        }
        if let Err(error) = sd_notify::notify(what) {
            log::debug!("systemd is not told: {error}");
        }
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

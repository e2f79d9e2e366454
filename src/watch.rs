//! Descriptors that the runtime watches for one thing only, and a timer that costs one wake-up.
//!
//! The runtime's own sockets are watched for everything, and its own timers wake the process up to three times before they are
//! due: with a change in half a millisecond, or none in three seconds, that is what a program like this consists of.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor, which must not block.
#[expect(deprecated, reason = "its successor is unsafe, for types whose descriptor can change; none of ours can")]
pub fn watch<T: AsRawFd>(descriptor: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(descriptor, interest)
}

/// Watches a socket for room to write, through a descriptor of its own: one descriptor can be watched only once, and somebody watches
/// this one for reading.
pub fn watch_room(socket: &UnixStream) -> io::Result<AsyncFd<UnixStream>> {
    watch(socket.try_clone()?, Interest::WRITABLE)
}

/// One timer, for whatever is due next.
pub struct Timer {
    timer: AsyncFd<Descriptor>,
    set: Option<Instant>,
}

impl Timer {
    pub fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        Ok(Self { timer: watch(Descriptor(timer), Interest::READABLE)?, set: None })
    }

    /// Ends at that time, or never. Dropping the future loses nothing.
    pub async fn wait_until(&mut self, due: Option<Instant>) -> io::Result<()> {
        if self.set != due {
            self.set(due)?;
        }
        let mut ready = self.timer.readable().await?;
        ready.clear_ready();
        drop(ready);
        // reading takes the expiration away; the next wait sets it anew
        self.timer.get_ref().0.wait().or_else(|error| if error == nix::Error::EAGAIN { Ok(()) } else { Err(error) })?;
        self.set = None;
        Ok(())
    }

    fn set(&mut self, due: Option<Instant>) -> io::Result<()> {
        let timer = &self.timer.get_ref().0;
        match due {
            // nothing at all would mean never
            Some(due) => {
                let left = due.saturating_duration_since(Instant::now()).max(std::time::Duration::from_nanos(1));
                timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())?;
            }
            None => timer.unset()?,
        }
        self.set = due;
        Ok(())
    }
}

struct Descriptor(TimerFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LATE: Duration = Duration::from_secs(60);
    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn ends_when_it_is_due_and_not_before() {
        let mut timer = Timer::new().unwrap();
        for _ in 0..3 {
            let due = Instant::now() + SOON;
            timeout(DEADLINE, timer.wait_until(Some(due))).await.unwrap().unwrap();
            assert!(Instant::now() >= due);
        }
        timeout(DEADLINE, timer.wait_until(Some(Instant::now() - SOON))).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn can_be_set_to_another_time_and_to_none() {
        let mut timer = Timer::new().unwrap();
        assert!(timeout(SOON, timer.wait_until(Some(Instant::now() + LATE))).await.is_err());
        timeout(DEADLINE, timer.wait_until(Some(Instant::now() + SOON))).await.unwrap().unwrap();
        assert!(timeout(SOON, timer.wait_until(Some(Instant::now() + SOON + SOON))).await.is_err());
        assert!(timeout(SOON * 5, timer.wait_until(None)).await.is_err(), "unset");
    }
}

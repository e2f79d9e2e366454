//! Names of hosts to addresses.
//!
//! Promises: a name is looked up within the time there is, on a thread of its own, and while a look-up that has been given up hangs there
//! is no other. Where the system gives no thread the post fails; ureq's own resolver would end the daemon.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

#[derive(Debug, Default)]
pub(super) struct Names {
    /// There is a thread that looks something up.
    busy: Arc<AtomicBool>,
}

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else { return Err(Error::HostNotFound) };
        let name = DefaultResolver::host_and_port(scheme, authority).ok_or(Error::HostNotFound)?;
        let found = match name.parse() {
            Ok(address) => vec![address],
            Err(_) => self.look_up(authority.host(), timeout, move || Ok(name.to_socket_addrs()?.collect()))?,
        };
        let mut addresses = self.empty();
        // of more than there is room for, the first do
        let _ = found.into_iter().try_for_each(|address| addresses.try_push(address));
        if addresses.is_empty() { Err(Error::HostNotFound) } else { Ok(addresses) }
    }
}

impl Names {
    fn look_up(
        &self,
        host: &str,
        timeout: NextTimeout,
        look_up: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> Result<Vec<SocketAddr>, Error> {
        if self.busy.swap(true, Ordering::AcqRel) {
            return Err(Error::Io(io::Error::other(format!("{host} is still being looked up since an attempt before"))));
        }
        let (sender, found) = mpsc::sync_channel(1);
        let busy = self.busy.clone();
        let started = thread::Builder::new().name("names".into()).stack_size(crate::memory::THREAD_STACK).spawn(move || {
            let addresses = look_up();
            busy.store(false, Ordering::Release);
            // nobody waits any more
            let _ = sender.send(addresses);
        });
        if let Err(error) = started {
            self.busy.store(false, Ordering::Release);
            return Err(Error::Io(io::Error::other(format!("{host} cannot be looked up now: {error}"))));
        }
        match found.recv_timeout(*timeout.after) {
            Ok(addresses) => Ok(addresses?),
            Err(RecvTimeoutError::Timeout) => Err(Error::Timeout(timeout.reason)),
            Err(RecvTimeoutError::Disconnected) => Err(Error::HostNotFound),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ureq::Timeout;

    use super::*;

    fn within(span: Duration) -> NextTimeout {
        NextTimeout { after: ureq::unversioned::transport::time::Duration::Exact(span), reason: Timeout::Resolve, ..NextTimeout::default() }
    }

    /// Longer than this test takes.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn an_address_needs_no_thread() {
        let names = Names { busy: Arc::new(AtomicBool::new(true)) };
        for (url, expected) in [("http://192.0.2.1/", "192.0.2.1:80"), ("https://[2001:db8::1]:8443/", "[2001:db8::1]:8443")] {
            let found = names.resolve(&url.parse().unwrap(), &Config::default(), within(LONG)).unwrap();
            assert_eq!(found[..], [expected.parse().unwrap()]);
        }
    }

    #[test]
    fn a_look_up_that_hangs_is_the_only_one() {
        let names = Names::default();
        let (end, over) = mpsc::channel::<()>();
        let (sender, ended) = mpsc::channel();
        let hangs = move || {
            let _ = over.recv();
            let _held_to_the_end = sender;
            Ok(Vec::new())
        };
        let error = names.look_up("a.test", within(Duration::from_millis(1)), hangs).unwrap_err();
        assert!(matches!(error, Error::Timeout(Timeout::Resolve)), "{error}");
        let error = names.look_up("a.test", within(LONG), || panic!("there is one already")).unwrap_err();
        assert_eq!(error.to_string(), "io: a.test is still being looked up since an attempt before");
        drop(end);
        let _: Result<(), _> = ended.recv();
        let address = "192.0.2.1:80".parse().unwrap();
        // its thread has a step to go
        let found = loop {
            match names.look_up("a.test", within(LONG), move || Ok(vec![address])) {
                Err(Error::Io(_)) => thread::yield_now(),
                other => break other.unwrap(),
            }
        };
        assert_eq!(found, [address]);
    }
}

//! A backend that measurements are posted to: HTTP/1.1 on threads of the test, with or without TLS, that can be told to misbehave.
//!
//! What it promises: everything that came is kept, in order, with the time it came; what is answered is decided when a request has
//! been read, one answer after the other; while it is down its port refuses, and it comes back under the same one. Requests are read
//! with the library's own parser, so what is not HTTP ends the connection. Everything ends with it.

mod answer;
mod connection;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub use answer::Answer;
use anyhow::Result;
use rustls::ServerConfig;
use serde_json::Value;

use crate::{DEADLINE, certs::Identity, parts::free_port};

/// Listens until it is dropped.
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// When it had been read.
    pub at: Instant,
    pub method: String,
    pub path: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    /// Not compressed any more.
    pub body: Vec<u8>,
    /// Which connection it came on, from 1.
    pub connection: usize,
    /// The status it was answered with, if any.
    pub status: Option<u16>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The measurement's own time.
    pub fn stamp(&self) -> String {
        self.json()["timestamp"].as_str().unwrap_or_else(|| panic!("no timestamp in {}", self.json())).to_owned()
    }

    /// Whether the sender knows that it was taken.
    pub fn delivered(&self) -> bool {
        self.status == Some(201)
    }
}

/// What the connections' threads share with the scenario.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    tls: Option<Arc<ServerConfig>>,
}

#[derive(Default)]
struct State {
    up: bool,
    /// what the next requests are answered
    plan: VecDeque<Answer>,
    /// what all others are
    then: Answer,
    /// the key that requests must carry
    key: Option<String>,
    /// serials of devices that are not known
    unknown: BTreeSet<String>,
    requests: Vec<Request>,
    connections: usize,
    /// what is open, by the connection's number
    open: BTreeMap<usize, TcpStream>,
}

impl Backend {
    /// For parts that run as processes.
    pub fn start() -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), None)
    }

    /// Where the parts of a rig reach it, whatever they run as: [`crate::Rig::host`].
    pub fn on(host: IpAddr) -> Self {
        Self::at(host, None)
    }

    /// With TLS.
    pub fn tls(identity: &Identity) -> Self {
        let config = connection::tls(identity).expect("a certificate and its key");
        Self::at(Ipv4Addr::LOCALHOST.into(), Some(Arc::new(config)))
    }

    fn at(host: IpAddr, tls: Option<Arc<ServerConfig>>) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), tls });
        // a port that outgoing connections are not given: it has to be free still when the backend comes back
        let mut last = None;
        for _ in 0..50 {
            match free_port().and_then(|port| Ok((port, listen((host, port).into(), &shared)?))) {
                Ok((port, thread)) => {
                    return Self { address: (host, port).into(), shared, listening: Mutex::new(Some(thread)) };
                }
                Err(error) => last = Some(error),
            }
        }
        panic!("the backend does not come up: {last:?}");
    }

    /// Scheme, address and port.
    pub fn url(&self) -> String {
        self.url_as(&self.address.ip().to_string())
    }

    /// The same, by another name for the address.
    pub fn url_as(&self, host: &str) -> String {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{host}:{}", self.address.port())
    }

    /// The lines of an `[[http]]` section that posts here.
    pub fn section(&self, more: &str) -> String {
        format!("url = \"{}\"\n{more}", self.url())
    }

    /// Every request is answered so from now on.
    pub fn answer(&self, answer: Answer) {
        let mut state = self.state();
        state.plan.clear();
        state.then = answer;
    }

    /// The next requests are answered so, one after the other; then as before.
    pub fn next(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state().plan.extend(answers);
    }

    /// Only requests with this key are taken.
    pub fn key(&self, key: &str) {
        self.state().key = Some(key.into());
    }

    /// Every device is known but these.
    pub fn unknown(&self, serials: &[&str]) {
        self.state().unknown = serials.iter().map(|&serial| serial.to_owned()).collect();
    }

    /// The port refuses, and whoever is connected is cut off.
    pub fn down(&self) {
        let Some(thread) = self.listening.lock().expect("nothing panics with it in hand").take() else { return };
        {
            let mut state = self.state();
            state.up = false;
            close_all(&mut state);
        }
        // wakes the thread that listens, which ends
        let _ = TcpStream::connect(self.address);
        let _ = thread.join();
        close_all(&mut self.state());
    }

    /// It listens again, where it did before.
    pub fn up(&self) {
        let mut listening = self.listening.lock().expect("nothing panics with it in hand");
        if listening.is_none() {
            *listening = Some(listen(self.address, &self.shared).expect("the port is still free"));
        }
    }

    /// Ends the connections that are open, as a backend does with those that were idle for long.
    pub fn close_connections(&self) {
        close_all(&mut self.state());
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// Everything that came.
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// What was taken, as the sender knows it.
    pub fn delivered(&self) -> Vec<Request> {
        self.state().requests.iter().filter(|request| request.delivered()).cloned().collect()
    }

    /// Forgets what came so far.
    pub fn forget(&self) {
        self.state().requests.clear();
    }

    /// Waits until so many requests came; all of them.
    pub fn await_requests(&self, count: usize) -> Vec<Request> {
        self.wait(&format!("{count} requests"), DEADLINE, |requests| (requests.len() >= count).then(|| requests.to_vec()))
    }

    /// Waits until so many were taken; those.
    pub fn await_delivered(&self, count: usize) -> Vec<Request> {
        self.wait(&format!("{count} measurements"), DEADLINE, |requests| {
            let delivered = || requests.iter().filter(|request| request.delivered());
            (delivered().count() >= count).then(|| delivered().cloned().collect())
        })
    }

    /// Waits for a request that fits.
    pub fn await_request(&self, what: &str, mut fits: impl FnMut(&Request) -> bool) -> Request {
        self.wait(what, DEADLINE, |requests| requests.iter().find(|request| fits(request)).cloned())
    }

    /// What `find` makes of everything that came.
    pub fn wait<T>(&self, what: &str, within: Duration, mut find: impl FnMut(&[Request]) -> Option<T>) -> T {
        let end = Instant::now() + within;
        let mut state = self.state();
        loop {
            if let Some(found) = find(&state.requests) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let came: Vec<String> = state.requests.iter().rev().take(20).rev().map(Request::show).collect();
                let all = state.requests.len();
                // the lock must not be poisoned for those who look next
                drop(state);
                panic!("not within {within:?}: {what}\n{all} requests came, the last of them:\n{}", came.join("\n"));
            }
            (state, _) = self.shared.changed.wait_timeout(state, left).expect("the connections do not panic");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Request {
    fn show(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        let body: String = body.chars().take(200).collect();
        format!("  {} {} -> {:?}: {body}", self.method, self.path, self.status)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.down();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the connections do not panic")
    }
}

fn close_all(state: &mut State) {
    for (_, stream) in std::mem::take(&mut state.open) {
        // one that has ended already is what is wanted
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Takes connections until the backend is down.
fn listen(address: SocketAddr, shared: &Arc<Shared>) -> Result<JoinHandle<()>> {
    let listener = TcpListener::bind(address)?;
    shared.state().up = true;
    let shared = Arc::clone(shared);
    Ok(std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let Ok(Some(number)) = admit(&shared, &stream) else { return };
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                // a connection that fails is one that has ended
                let _ = connection::serve(&shared, stream, number);
                shared.state().open.remove(&number);
            });
        }
    }))
}

/// The connection's number, unless the backend is down.
fn admit(shared: &Shared, stream: &TcpStream) -> io::Result<Option<usize>> {
    let copy = stream.try_clone()?;
    stream.set_nodelay(true)?;
    let mut state = shared.state();
    if !state.up {
        return Ok(None);
    }
    state.connections += 1;
    let number = state.connections;
    state.open.insert(number, copy);
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use serde_json::json;

    use super::*;
    use crate::{certs::Certs, eventually};

    const BODY: &str =
        r#"{"timestamp": "2025-10-30T15:27:33+00:00", "cerbo_serial": "c", "devices": [{"serial": "HQ1"}, {"serial": "HQ2"}]}"#;

    fn post(backend: &Backend, headers: &str) -> TcpStream {
        let mut stream = TcpStream::connect(backend.address).unwrap();
        // in one piece: what comes after a reset is an error
        let request = format!("POST /x HTTP/1.1\r\n{headers}Content-Length: {}\r\n\r\n{BODY}", BODY.len());
        stream.write_all(request.as_bytes()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// The first line of the answer, or what came in its place.
    fn answered(mut stream: TcpStream) -> String {
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(read) => String::from_utf8_lossy(&bytes[..read]).lines().next().unwrap_or_default().to_owned(),
            Err(error) => error.kind().to_string(),
        }
    }

    #[test]
    fn it_answers_as_the_api_does() {
        let backend = Backend::start();
        backend.key("right");
        assert_eq!(answered(post(&backend, "X-API-Key: wrong\r\n")), "HTTP/1.1 401 As Ordered");
        let key = "X-API-Key: right\r\n";
        for (unknown, status) in [(&[][..], 201), (&["HQ1"], 207), (&["HQ1", "HQ2"], 404)] {
            backend.unknown(unknown);
            assert_eq!(answered(post(&backend, key)), format!("HTTP/1.1 {status} As Ordered"));
        }
        // what was answered is noted when it has been sent
        let requests = crate::eventually("four requests are answered", crate::DEADLINE, || {
            Some(backend.requests()).filter(|requests| requests.iter().filter(|request| request.status.is_some()).count() == 4)
        });
        assert_eq!(requests.iter().map(|request| request.status).collect::<Vec<_>>(), [401, 201, 207, 404].map(Some));
        assert_eq!((requests[0].path.as_str(), requests[0].header("x-api-key")), ("/x", Some("wrong")));
        assert_eq!(requests[1].stamp(), "2025-10-30T15:27:33+00:00");
        let (_, body) = answer::api(&requests[2].json(), &BTreeSet::from(["HQ1".into()]), true);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["results"][0], json!({"device_identifier": "HQ1", "status": "error", "error": "Device HQ1 not found"}));
        assert_eq!((&body["total_devices"], &body["success_count"], &body["error_count"]), (&json!(2), &json!(1), &json!(1)));
    }

    #[test]
    fn it_misbehaves_as_told() {
        let backend = Backend::start();
        backend.next([
            Answer::Close,
            Answer::Reset,
            Answer::ResetUnread,
            Answer::Raw("this is no HTTP\r\n\r\n"),
            Answer::redirect(307, "/y"),
        ]);
        assert_eq!(answered(post(&backend, "")), "");
        assert_eq!(answered(post(&backend, "")), "connection reset");
        assert_eq!(answered(post(&backend, "")), "connection reset");
        assert!(answered(post(&backend, "")).contains("no HTTP"));
        assert_eq!(answered(post(&backend, "")), "HTTP/1.1 307 As Ordered");
        assert_eq!(backend.requests().len(), 4, "one was not read");
        backend.answer(Answer::Hang);
        let hung = post(&backend, "");
        backend.await_requests(5);
        backend.down();
        assert_eq!(answered(hung), "");
        assert!(TcpStream::connect(backend.address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused));
        backend.up();
        backend.answer(Answer::Api);
        assert_eq!(answered(post(&backend, "")), "HTTP/1.1 201 As Ordered");
    }

    #[test]
    fn it_ends() {
        let backend = Backend::tls(&Certs::make("localhost").unwrap().server_identity());
        let (address, shared) = (backend.address, Arc::downgrade(&backend.shared));
        let _open = TcpStream::connect(address).unwrap();
        drop(backend);
        assert!(TcpStream::connect(address).is_err());
        eventually("all its threads have ended", DEADLINE, || shared.upgrade().is_none().then_some(()));
    }
}

//! The client against servers that answer, misbehave or are not there. None of them outlives its test.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use flate2::read::GzDecoder;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::measure::options::{Format, Options};
use crate::scratch::Scratch;

/// Longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(60);
/// For those that wait for its end.
const SHORT: Duration = Duration::from_millis(300);

const KEY: &str = "s3cret-key";
const CREATED: &str = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\nContent-Type: Application/JSON; charset=utf-8\r\n\r\n{}";

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// One connection, as its server sees it.
struct Peer {
    stream: BufReader<Box<dyn Stream>>,
    /// Counted from 0.
    number: usize,
    requests: Sender<(String, Vec<u8>)>,
}

impl Peer {
    /// Reads a request, head and body; `None`: the connection has ended.
    fn request(&mut self) -> Option<()> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.stream.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        self.stream.read_exact(&mut body).ok()?;
        self.requests.send((head, body)).ok()
    }

    /// `None`: nobody listens any more.
    fn send(&mut self, text: &str) -> Option<()> {
        let stream = self.stream.get_mut();
        stream.write_all(text.as_bytes()).and_then(|()| stream.flush()).ok()
    }

    /// Says `start`, then `more` again and again for as long as somebody listens.
    fn drip(&mut self, start: &str, more: &str, pause: Duration) -> Option<()> {
        self.send(start)?;
        loop {
            self.send(more)?;
            thread::sleep(pause);
        }
    }
}

struct Server {
    port: u16,
    requests: Receiver<(String, Vec<u8>)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves one connection after the other.
    fn start(serve: impl Fn(&mut Peer) -> Option<()> + Send + 'static) -> Self {
        Self::with(None, serve)
    }

    fn with(tls: Option<Arc<ServerConfig>>, serve: impl Fn(&mut Peer) -> Option<()> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, requests) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(LONG)).unwrap();
                let stream: Box<dyn Stream> = match &tls {
                    Some(tls) => Box::new(StreamOwned::new(ServerConnection::new(tls.clone()).unwrap(), stream)),
                    None => Box::new(stream),
                };
                let _ = serve(&mut Peer { stream: BufReader::new(stream), number, requests: sender.clone() });
            }
        });
        Self { port, requests, stop, thread: Some(thread) }
    }

    /// Gives the same answer to everybody.
    fn answering(answer: impl Into<String>) -> Self {
        let answer = answer.into();
        Self::start(move |peer| {
            loop {
                peer.request()?;
                peer.send(&answer)?;
            }
        })
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/s3cret-path", self.port)
    }

    fn proxy(&self) -> Result<Option<Proxy>, &'static str> {
        proxy(&format!("http://user:s3cret-password@127.0.0.1:{}", self.port))
    }

    fn request(&self) -> (String, Vec<u8>) {
        self.requests.recv_timeout(LONG).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // the one who waits for connections looks up
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn proxy(url: &str) -> Result<Option<Proxy>, &'static str> {
    Ok(Some(Proxy::new(url).unwrap()))
}

fn target(url: impl Into<String>) -> HttpTarget {
    HttpTarget {
        options: Options {
            name: "1".into(),
            host: "http://127.0.0.1".into(),
            format: Format::VictronMeasurements,
            update_interval: Duration::from_secs(30),
            cerbo_serial: None,
            catch_up_rate: 5.0,
            queue_records: 10,
            queue_bytes: 1 << 20,
        },
        url: url.into(),
        api_key: None,
        api_key_header: String::new(),
        connect_timeout: LONG,
        timeout: LONG,
        ca_file: None,
        gzip: false,
    }
}

/// What comes of one post without a proxy.
fn post(target: &HttpTarget) -> Outcome {
    Poster::through(target, Ok(None)).unwrap().post(b"{}")
}

fn answer(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Answer(answer) => answer,
        Outcome::Failed(text) | Outcome::Untrusted(text) => panic!("{text}"),
    }
}

fn failure(outcome: Outcome) -> String {
    let untrusted = matches!(outcome, Outcome::Untrusted(_));
    match outcome {
        Outcome::Failed(text) | Outcome::Untrusted(text) => {
            assert_eq!(untrusted, text.contains("certificate") || text.contains("TLS"), "{text}");
            assert!(!text.contains("s3cret"), "{text}");
            text
        }
        Outcome::Answer(answer) => panic!("{answer:?}"),
    }
}

#[test]
fn the_request() {
    let server = Server::answering(CREATED);
    let mut poster = Poster::through(&target(server.url()), Ok(None)).unwrap();
    poster.key = Some(secret_header("X-API-Key", KEY).unwrap());
    let answer = answer(poster.post(b"{}"));
    assert_eq!(answer, Answer { status: 201, content_type: "application/json".into(), body: b"{}".to_vec(), ..Answer::default() });
    let (head, body) = server.request();
    let (first, fields) = head.split_once("\r\n").unwrap();
    assert_eq!(first, "POST /s3cret-path HTTP/1.1");
    let mut fields: Vec<_> = fields.trim_end().split("\r\n").map(str::to_lowercase).collect();
    fields.sort_unstable();
    let host = format!("host: 127.0.0.1:{}", server.port);
    let agent = format!("user-agent: {USER_AGENT}");
    assert_eq!(fields, ["accept: */*", "content-length: 2", "content-type: application/json", &host, &agent, "x-api-key: s3cret-key"]);
    assert_eq!(body, b"{}");
}

#[test]
fn compressed() {
    let server = Server::answering(CREATED);
    let target = HttpTarget { gzip: true, ..target(server.url()) };
    let text = "measured ".repeat(10_000);
    answer(Poster::through(&target, Ok(None)).unwrap().post(text.as_bytes()));
    let (head, body) = server.request();
    assert!(head.to_lowercase().contains("\r\ncontent-encoding: gzip\r\n"), "{head}");
    let mut plain = String::new();
    GzDecoder::new(&body[..]).read_to_string(&mut plain).unwrap();
    assert_eq!(plain, text);
    assert!(body.len() < text.len() / 10);
}

#[test]
fn every_status_is_an_answer() {
    for status in [200, 204, 207, 304, 400, 401, 404, 413, 429, 500, 503, 599] {
        let length = if matches!(status, 204 | 304) { "" } else { "Content-Length: 4\r\n" };
        let body = if length.is_empty() { "" } else { "body" };
        let server = Server::answering(format!("HTTP/1.1 {status} Some Words\r\n{length}Retry-After: 7\r\n\r\n{body}"));
        let expected = Answer { status, retry_after: Some(Duration::from_secs(7)), body: body.as_bytes().to_vec(), ..Answer::default() };
        assert_eq!(answer(post(&target(server.url()))), expected);
    }
}

/// Also where they come one by one.
#[test]
fn interim_answers_are_passed_over() {
    let server = Server::start(|peer| {
        loop {
            peer.request()?;
            for interim in ["100 Continue", "102 Processing", "102 Processing", "103 Early Hints\r\nLink: </a>; rel=preload"] {
                peer.send(&format!("HTTP/1.1 {interim}\r\n\r\n"))?;
                thread::sleep(Duration::from_millis(20));
            }
            peer.send(CREATED)?;
        }
    });
    let mut poster = Poster::through(&target(server.url()), Ok(None)).unwrap();
    for _ in 0..2 {
        assert_eq!(answer(poster.post(b"{}")).status, 201);
    }
}

#[test]
fn redirects_are_told_and_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let server = Server::start(move |peer| {
            peer.request()?;
            peer.send(&format!(
                "HTTP/1.1 {status} Moved\r\nLocation: https://u:s3cret@login.test:1/s3cret?a=b\r\nContent-Length: 0\r\n\r\n"
            ))
        });
        let answer = answer(post(&target(server.url())));
        assert_eq!((answer.status, answer.location.as_deref()), (status, Some("https://login.test:1")));
    }
    let server = Server::answering("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n");
    let own = format!("http://127.0.0.1:{}", server.port);
    assert_eq!(answer(post(&target(server.url()))).location, Some(own));
    let server = Server::answering("HTTP/1.1 302 Found\r\nLocation: \u{1f}\r\nContent-Length: 0\r\n\r\n");
    // it is refused, or is no place: it must not be shown
    if let Outcome::Answer(answer) = post(&target(server.url())) {
        assert_eq!(answer.location, None);
    }
}

#[test]
fn secrets_that_come_back_go_no_further() {
    let echo = "you sent x-api-key: Bearer s3cret-key to /x?token=s3cret-token&a=b, s3cret-key";
    let server = Server::answering(format!(
        "HTTP/1.1 400 Bad\r\nContent-Type: s3cret-key\r\nLocation: https://s3cret-key.test/\r\nContent-Length: {}\r\n\r\n{echo}",
        echo.len()
    ));
    let key = Scratch::new();
    let config = format!(
        "[[http]]\nurl = \"{}?token=s3cret-token&a=b\"\nformat = \"json-lines\"\nfilters = [\"#\"]\napi_key_file = \"{}\"\n",
        server.url(),
        key.file("key", "Bearer s3cret-key").display()
    );
    let source = crate::config::Source::new(Some(key.file("c.toml", config)), crate::config::Given::default());
    let target = source.load().unwrap().config.http.remove(0);
    let answer = answer(post(&target));
    assert_eq!(String::from_utf8_lossy(&answer.body), "you sent x-api-key: *** to /x?***, ***");
    assert_eq!((answer.content_type.as_str(), answer.location.as_deref()), ("***", Some("https://***.test")));
}

#[test]
fn a_large_body_is_cut() {
    let large = "x".repeat(1 << 20);
    let server = Server::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{large}", large.len()));
    assert_eq!(answer(post(&target(server.url()))).body.len(), 64 << 10);
    let server = Server::start(|peer| {
        peer.request()?;
        peer.drip("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &format!("100\r\n{}\r\n", "x".repeat(256)), Duration::ZERO)
    });
    assert_eq!(answer(post(&target(server.url()))).body.len(), 64 << 10);
}

#[test]
fn the_status_counts_when_the_body_breaks_off() {
    let server = Server::start(|peer| {
        peer.request()?;
        peer.send("HTTP/1.1 207 Multi-Status\r\nContent-Length: 100\r\n\r\n{\"a\"")
    });
    let answer = answer(post(&target(server.url())));
    assert_eq!((answer.status, &answer.body[..]), (207, &b"{\"a\""[..]));
}

#[test]
fn an_exchange_ends_at_its_timeout() {
    let pause = Duration::from_millis(20);
    let limited = |server: &Server| HttpTarget { timeout: SHORT, ..target(server.url()) };
    for (start, more) in [("HTTP/1.1 201 Created\r\nX: ", "y"), ("", "HTTP/1.1 100 Continue\r\n\r\n")] {
        let server = Server::start(move |peer| {
            peer.request()?;
            peer.drip(start, more, pause)
        });
        assert_eq!(failure(post(&limited(&server))), "no answer within 0.3 s");
    }
    let server = Server::start(move |peer| {
        peer.request()?;
        peer.drip("HTTP/1.1 201 Created\r\nContent-Length: 60000\r\n\r\n", "y", pause)
    });
    assert_eq!(answer(post(&limited(&server))).status, 201);
    // nobody reads what we send
    let (end, over) = mpsc::channel::<()>();
    let server = Server::start(move |_| over.recv().ok());
    let text = failure(Poster::through(&limited(&server), Ok(None)).unwrap().post(&vec![b'x'; 16 << 20]));
    drop(end);
    assert_eq!(text, "no answer within 0.3 s");
}

#[test]
fn the_connection_ends_at_its_timeout() {
    let (end, over) = mpsc::channel::<()>();
    let server = Server::start(move |_| over.recv().ok());
    let mut target = with_ca(&server, "ca.pem");
    target.connect_timeout = SHORT;
    let outcome = post(&target);
    drop(end);
    assert_eq!(failure(outcome), "no connection within 0.3 s");
}

#[test]
fn answers_that_are_none() {
    for (said, expected) in [
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "the answer is not HTTP: "),
        ("<html>s3cret</html>\r\n\r\n", "the answer is not HTTP: "),
        ("HTTP/1.1 20x OK\r\n\r\n", "the answer is not HTTP: "),
        ("", "the connection was closed before there was an answer"),
        ("HTTP/1.1 201 Cre", "the connection was closed before there was an answer"),
    ] {
        let server = Server::start(move |peer| {
            peer.request()?;
            peer.send(said)
        });
        let text = failure(post(&target(server.url())));
        assert!(text.starts_with(expected), "{said:?}: {text}");
    }
}

#[test]
fn heads_without_an_end() {
    for (line, expected) in [
        ("X: y\r\n".to_owned(), "the answer is not HTTP: "),
        (format!("X: {}\r\n", "y".repeat(1000)), "the answer's head is larger than 12288 bytes"),
        ("y".repeat(1000), "the answer's head is larger than 12288 bytes"),
    ] {
        let server = Server::start(move |peer| {
            peer.request()?;
            peer.drip("HTTP/1.1 201 Created\r\nX: ", &line, Duration::ZERO)
        });
        let text = failure(post(&target(server.url())));
        assert!(text.starts_with(expected), "{text}");
    }
}

#[test]
fn a_backend_that_is_not_there() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_eq!(failure(post(&target(format!("http://127.0.0.1:{port}/s3cret")))), "connection refused");
    // too long a label: nobody needs to be asked
    let host = format!("{}.invalid", "a".repeat(64));
    let text = failure(post(&target(format!("http://{host}/s3cret"))));
    assert!(text.starts_with(&format!("{host} was not found: ")), "{text}");
}

#[test]
fn a_connection_serves_again() {
    let server = Server::start(|peer| {
        loop {
            peer.request()?;
            peer.send(&format!("HTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\n{}", peer.number))?;
        }
    });
    let mut poster = Poster::through(&target(server.url()), Ok(None)).unwrap();
    let bodies = [(); 5].map(|()| answer(poster.post(b"{}")).body);
    assert_eq!(bodies, [b"0"; 5]);
    // the server waits for this end of it
    drop(poster);
}

#[test]
fn a_connection_that_has_ended_meanwhile_costs_nothing() {
    // ends it after the answer, or instead of the second one
    for late in [false, true] {
        let server = Server::start(move |peer| {
            peer.request()?;
            peer.send(&format!("HTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\n{}", peer.number))?;
            if late { peer.request() } else { None }
        });
        let mut poster = Poster::through(&target(server.url()), Ok(None)).unwrap();
        let bodies = [(); 3].map(|()| answer(poster.post(b"{}")).body);
        assert_eq!(bodies, [b"0", b"1", b"2"], "late: {late}");
        drop(poster);
    }
}

#[test]
fn a_backend_that_only_hangs_up_is_asked_once() {
    let server = Server::start(|peer| peer.request());
    let mut poster = Poster::through(&target(server.url()), Ok(None)).unwrap();
    for _ in 0..2 {
        assert_eq!(failure(poster.post(b"{}")), "the connection was closed before there was an answer");
    }
    assert_eq!(server.requests.try_iter().count(), 2);
}

#[test]
fn tls() {
    let server = Server::with(Some(server_config("server.pem", "server.key")), |peer| {
        loop {
            peer.request()?;
            peer.send(CREATED)?;
        }
    });
    let good = with_ca(&server, "ca.pem");
    assert_eq!(answer(post(&good)).status, 201);
    let foreign = with_ca(&server, "client.pem");
    let text = failure(post(&foreign));
    assert!(text.starts_with("the certificate is not trusted: the backend's certificate is not the one in "), "{text}");
    let other = HttpTarget { url: good.url.replace("127.0.0.1", "localhost"), ..good.clone() };
    assert_eq!(
        failure(post(&other)),
        "the certificate is not for localhost, but for broker.test, 127.0.0.1; to accept this very certificate under any name, put it into `ca_file`"
    );
    let plain = target(server.url());
    let text = failure(post(&plain));
    assert!(text.starts_with("the answer is not HTTP"), "{text}");
}

#[test]
fn tls_with_whom_does_not_speak_it() {
    let server = Server::start(|peer| {
        peer.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?;
        peer.request()
    });
    let expected = "what answers does not speak TLS: is it the port of http, not https?";
    assert_eq!(failure(post(&with_ca(&server, "ca.pem"))), expected);
}

/// What a GX makes for itself: one of a CA, out of date at will, with no name of the host.
#[test]
fn a_pinned_certificate_is_accepted_as_it_is() {
    let server = Server::with(Some(server_config("gx.pem", "gx.key")), |peer| {
        peer.request()?;
        peer.send(CREATED)
    });
    assert_eq!(answer(post(&with_ca(&server, "gx.pem"))).status, 201);
    let text = failure(post(&with_ca(&server, "v1.pem")));
    assert!(text.contains("the backend's certificate is not the one in "), "{text}");
}

/// A handshake that is cut off counts as TLS that failed.
#[test]
fn a_backend_that_hangs_up_in_the_handshake() {
    let server = Server::start(|_| None);
    let Outcome::Untrusted(text) = post(&with_ca(&server, "ca.pem")) else { panic!("it is not TLS that failed") };
    assert_eq!(text, "the backend closed the connection during the TLS handshake: is it the port of http, not https?");
}

#[test]
fn certificates_that_do_not_work_are_known_at_once() {
    let mut target = target("https://127.0.0.1:1/");
    target.ca_file = Some("/nowhere/ca.pem".into());
    let error = Poster::through(&target, Ok(None)).err().unwrap();
    assert_eq!(error.to_string(), "/nowhere/ca.pem: cannot read it: no such file");
}

#[test]
fn through_a_proxy() {
    let proxy = Server::start(|peer| {
        peer.request()?;
        peer.send("HTTP/1.1 200 Connection established\r\n\r\n")?;
        peer.request()?;
        peer.send(CREATED)
    });
    let backend = target("http://backend.invalid:8080/s3cret-path");
    assert_eq!(answer(Poster::through(&backend, proxy.proxy()).unwrap().post(b"{}")).status, 201);
    let (connect, _) = proxy.request();
    assert!(connect.starts_with("CONNECT backend.invalid:8080 HTTP/1.1\r\n"), "{connect}");
    assert!(!connect.contains("s3cret"), "{connect}");
    let (post, _) = proxy.request();
    assert!(post.starts_with("POST /s3cret-path HTTP/1.1\r\n"), "{post}");
    assert!(!post.contains("Proxy-Authorization"), "{post}");
}

/// To a backend of https, a proxy of https passes on TLS within TLS.
#[test]
fn a_proxy_of_https_sees_no_request() {
    let proxy = Server::with(Some(server_config("server.pem", "server.key")), |peer| {
        peer.request()?;
        peer.send("HTTP/1.1 200 OK\r\n\r\n")?;
        let mut first = [0];
        peer.stream.read_exact(&mut first).ok()?;
        peer.requests.send((String::new(), first.to_vec())).ok()
    });
    let backend = HttpTarget { ca_file: Some(fixture("ca.pem")), ..target("https://backend.invalid/s3cret-path") };
    let between = super::tests::proxy(&proxy.url().replace("http:", "https:"));
    failure(Poster::through(&backend, between).unwrap().post(b"{}"));
    assert!(proxy.request().0.starts_with("CONNECT backend.invalid:443 "));
    // the first byte of a TLS handshake
    assert_eq!(proxy.request().1, [0x16]);
}

#[test]
fn proxies_that_refuse() {
    let backend = target("http://backend.invalid/s3cret-path");
    for (said, expected) in [
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "the proxy 127.0.0.1:PORT refused to connect us: it answered 403"),
        ("HTTP/1.1 407 Wanted\r\n\r\n", "the proxy 127.0.0.1:PORT wants a user and a password: write them into its URL"),
        ("", "the proxy 127.0.0.1:PORT gave no answer"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "the answer that came through the proxy 127.0.0.1:PORT is not HTTP: invalid HTTP version"),
    ] {
        let proxy = Server::start(move |peer| {
            peer.request()?;
            peer.send(said)
        });
        let text = failure(Poster::through(&backend, proxy.proxy()).unwrap().post(b"{}"));
        assert_eq!(text, expected.replace("PORT", &proxy.port.to_string()));
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = failure(Poster::through(&backend, proxy(&format!("http://127.0.0.1:{port}"))).unwrap().post(b"{}"));
    assert_eq!(text, format!("proxy 127.0.0.1:{port}: connection refused"));
}

#[test]
fn proxies_that_cannot_be_used_are_what_comes_of_each_post() {
    let backend = target("http://backend.invalid/s3cret-path");
    for (proxy, expected) in [
        (proxy("socks5://user:s3cret@127.0.0.1:1"), SOCKS_PROXY),
        (proxy("http://user:s3cret@127.0.0.1:99999"), BROKEN_PROXY),
        (proxy("http://[::1]:x"), BROKEN_PROXY),
        (Err(BROKEN_PROXY), BROKEN_PROXY),
    ] {
        let mut poster = Poster::through(&backend, proxy).unwrap();
        assert_eq!(poster.obstacle().as_deref(), Some(expected));
        for _ in 0..2 {
            assert_eq!(poster.post(b"{}"), Outcome::Failed(expected.into()));
        }
    }
    for good in ["http://user:s3cret@proxy.test", "http://[::1]", "http://[::1]:3128", "proxy.test:3128"] {
        assert_eq!(Poster::through(&backend, proxy(good)).unwrap().obstacle(), None, "{good}");
    }
}

#[test]
fn how_long_to_stay_away() {
    // 2026-11-21 12:00:00
    let now = Duration::from_secs(1_795_262_400);
    let seconds = Duration::from_secs;
    for (text, expected) in [
        ("0", Some(seconds(0))),
        ("120", Some(seconds(120))),
        ("3601", Some(seconds(3601))),
        ("99999999999999999999999", Some(seconds(u64::MAX))),
        ("Sat, 21 Nov 2026 12:01:40 GMT", Some(seconds(100))),
        ("Sat, 21 Nov 2026 11:00:00 GMT", Some(seconds(0))),
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(seconds(0))),
        ("Wed, 01 Jan 1969 00:00:00 GMT", Some(seconds(0))),
        ("Sun, 22 Nov 2026 12:00:00 GMT", Some(seconds(86_400))),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("Xxx, 99 Nov 2026 12:01:40 GMT", None),
    ] {
        assert_eq!(retry_after(text, now), expected, "{text}");
    }
}

#[test]
fn content_types() {
    for (text, expected) in [("", ""), ("Text/HTML", "text/html"), ("application/json ; charset=x", "application/json"), (";", "")] {
        assert_eq!(content_type(text), expected);
    }
    assert_eq!(content_type(&"x".repeat(1000)).chars().count(), CONTENT_TYPE_MAX + 1);
}

fn fixture(name: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

fn with_ca(server: &Server, ca: &str) -> HttpTarget {
    HttpTarget { ca_file: Some(fixture(ca)), ..target(server.url().replace("http:", "https:")) }
}

/// Files are looked for among the fixtures, unless their paths are absolute.
fn server_config(chain: impl AsRef<Path>, key: impl AsRef<Path>) -> Arc<ServerConfig> {
    let chain = vec![CertificateDer::from_pem_file(fixture(chain)).unwrap()];
    let key = PrivateKeyDer::from_pem_file(fixture(key)).unwrap();
    let builder = ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap())
}

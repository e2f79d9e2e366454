//! One connection to the backend: requests are read, and answered as the scenario wants.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;

use super::{
    Request, Shared,
    answer::{Answer, api},
};
use crate::certs::Identity;

/// No measurement is larger.
const BODY_MAX: usize = 64 << 20;
/// Many more than any client sends.
const HEADERS_MAX: usize = 64;

/// What is read and written: the socket, or TLS on it.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// How the server shows who it is.
pub fn tls(identity: &Identity) -> Result<ServerConfig> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(identity.cert.as_bytes()).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions()?;
    Ok(config.with_no_client_auth().with_single_cert(chain, key)?)
}

/// Answers until the connection ends.
pub fn serve(shared: &Shared, tcp: TcpStream, number: usize) -> Result<()> {
    let raw = tcp.try_clone()?;
    let mut stream: Box<dyn Stream> = match &shared.tls {
        Some(config) => Box::new(StreamOwned::new(ServerConnection::new(Arc::clone(config))?, tcp)),
        None => Box::new(tcp),
    };
    let mut unread = Vec::new();
    loop {
        if unread.is_empty() && raw.peek(&mut [0])? > 0 && unread_reset(shared) {
            return reset(shared, stream, raw, number);
        }
        let Some(request) = read(&mut *stream, &mut unread, number)? else { return Ok(()) };
        let (answer, index) = note(shared, request);
        match answer {
            Answer::Reset | Answer::ResetUnread => return reset(shared, stream, raw, number),
            Answer::Hang => return Ok(swallow(&mut *stream)?),
            Answer::Close => return Ok(()),
            Answer::Raw(bytes) => return Ok(stream.write_all(bytes.as_bytes())?),
            Answer::Drip(every) => return drip(&mut *stream, "HTTP/1.1 201 Created\r\nX-More: ", every),
            Answer::DripBody(every) => {
                return drip(&mut *stream, "HTTP/1.1 201 Created\r\nContent-Length: 1000000\r\n\r\n", every);
            }
            Answer::EndlessHeaders => return endless_headers(&mut *stream),
            Answer::HugeBody => reply(shared, &mut *stream, index, 201, &[], &"x".repeat(10 << 20))?,
            Answer::Api => reply_as_api(shared, &mut *stream, index)?,
            Answer::Slow(delay) => {
                sleep(delay);
                reply_as_api(shared, &mut *stream, index)?;
            }
            Answer::Reply { status, headers, body } => reply(shared, &mut *stream, index, status, &headers, &body)?,
        }
    }
}

/// Whether the next request is not to be read.
fn unread_reset(shared: &Shared) -> bool {
    let mut state = shared.state();
    match state.plan.front() {
        Some(Answer::ResetUnread) => {
            state.plan.pop_front();
            true
        }
        Some(_) => false,
        None => matches!(state.then, Answer::ResetUnread),
    }
}

/// Keeps the request, and says what it is answered; its place among the requests.
fn note(shared: &Shared, request: Request) -> (Answer, usize) {
    let mut state = shared.state();
    let answer = state.plan.pop_front().unwrap_or_else(|| state.then.clone());
    state.requests.push(request);
    shared.changed.notify_all();
    (answer, state.requests.len() - 1)
}

/// The next request; `None` when the connection has ended between two.
fn read(stream: &mut dyn Stream, unread: &mut Vec<u8>, connection: usize) -> Result<Option<Request>> {
    let (mut request, length, start) = loop {
        match head(unread, connection) {
            Ok(Some(head)) => break head,
            Ok(None) => {}
            Err(error) => {
                stream.write_all(b"HTTP/1.1 400 No HTTP\r\nConnection: close\r\n\r\n")?;
                return Err(error);
            }
        }
        if !more(stream, unread)? {
            return Ok(None);
        }
    };
    while unread.len() < start + length {
        if !more(stream, unread)? {
            bail!("the connection has ended within a body");
        }
    }
    let rest = unread.split_off(start + length);
    let body = unread.split_off(start);
    *unread = rest;
    request.body = if request.header("content-encoding") == Some("gzip") {
        let mut plain = Vec::new();
        GzDecoder::new(&*body).read_to_end(&mut plain)?;
        plain
    } else {
        body
    };
    request.at = Instant::now();
    Ok(Some(request))
}

/// A request without its body, how long that is, and where it begins.
fn head(bytes: &[u8], connection: usize) -> Result<Option<(Request, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(start) = parsed.parse(bytes)? else { return Ok(None) };
    let headers: Vec<(String, String)> =
        parsed.headers.iter().map(|header| (header.name.to_lowercase(), String::from_utf8_lossy(header.value).into_owned())).collect();
    let request = Request {
        at: Instant::now(),
        method: parsed.method.unwrap_or_default().into(),
        path: parsed.path.unwrap_or_default().into(),
        headers,
        body: Vec::new(),
        connection,
        status: None,
    };
    let length: usize = request.header("content-length").context("a request without its length")?.parse()?;
    if length > BODY_MAX {
        bail!("a body of {length} bytes");
    }
    Ok(Some((request, length, start)))
}

fn more(stream: &mut dyn Stream, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    let read = stream.read(&mut buffer)?;
    bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
    Ok(read > 0)
}

fn reply_as_api(shared: &Shared, stream: &mut dyn Stream, index: usize) -> Result<()> {
    let (status, body) = {
        let state = shared.state();
        // forgotten meanwhile: then nobody wants to know
        let request = state.requests.get(index).context("the request")?;
        let authorized = state.key.is_none() || request.header("x-api-key") == state.key.as_deref();
        api(&serde_json::from_slice(&request.body).unwrap_or(Value::Null), &state.unknown, authorized)
    };
    reply(shared, stream, index, status, &[("Content-Type".into(), "application/json".into())], &body)
}

fn reply(shared: &Shared, stream: &mut dyn Stream, index: usize, status: u16, headers: &[(String, String)], body: &str) -> Result<()> {
    let mut head = format!("HTTP/1.1 {status} As Ordered\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n")?;
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
    stream.flush()?;
    // only what has been sent was answered
    if let Some(request) = shared.state().requests.get_mut(index) {
        request.status = Some(status);
    }
    shared.changed.notify_all();
    Ok(())
}

fn reset(shared: &Shared, stream: Box<dyn Stream>, raw: TcpStream, number: usize) -> Result<()> {
    setsockopt(&raw, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    // the last copy of it makes the reset
    shared.state().open.remove(&number);
    drop(raw);
    drop(stream);
    Ok(())
}

/// Until the other side has had enough.
fn swallow(stream: &mut dyn Stream) -> io::Result<()> {
    while more(stream, &mut Vec::new())? {}
    Ok(())
}

fn drip(stream: &mut dyn Stream, start: &str, every: Duration) -> Result<()> {
    stream.write_all(start.as_bytes())?;
    loop {
        stream.write_all(b"x")?;
        stream.flush()?;
        sleep(every);
    }
}

fn endless_headers(stream: &mut dyn Stream) -> Result<()> {
    stream.write_all(b"HTTP/1.1 201 Created\r\n")?;
    loop {
        stream.write_all(format!("X-More: {}\r\n", "x".repeat(1000)).as_bytes())?;
    }
}

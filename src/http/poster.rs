//! The HTTP client of one target: a measurement in, what came of it out.
//!
//! Promises: an exchange ends by the target's `timeout`, whatever the backend does (a proxy that drips can make it longer); what is kept
//! of its answer is bounded; the text of a failure is for a person, and holds neither a secret nor more of the URL than the host.
//! Redirects are not followed, nor is there a switch against the check of certificates. Refuses what is wrong in the configuration;
//! what is wrong around it, in the environment or with the system's roots, is what comes of each post, until it is mended. It blocks:
//! the worker of the target and `venus-mqtt http test` call it where that costs nobody else anything.

mod names;
mod secure;

use std::fmt;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::fmt::rfc2822;
use rustls::ClientConfig;
use ureq::http::header::{CONTENT_ENCODING, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Response, Uri};
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, TcpConnector};
use ureq::{Agent, Body, Error, Proxy, ProxyProtocol, Timeout};

use crate::config::{HttpTarget, Secret, Tls};
use crate::files::why;
use crate::measure::{Answer, Outcome};
use crate::text::{escape, escape_to};
use crate::tls::words::{OwnCertificate, Server, tls_error};
use crate::tls::{self, TlsError};

use names::Names;
use secure::{Handshake, Secure};

/// What we call ourselves.
const USER_AGENT: &str = concat!("venus-mqtt/", env!("CARGO_PKG_VERSION"));

/// Most bytes kept of an answer's body: results of a hundred devices fit many times.
const BODY_MAX: u64 = 64 << 10;

/// Most bytes of an answer's head.
const HEAD_MAX: usize = 12 << 10;

/// Room for what is read and what is written at a time, in bytes; with TLS there is twice as much. A head must fit.
const BUFFER: usize = 16 << 10;

/// How long a connection is kept for the next measurement: less than the 5 s after which common servers close theirs.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// Most characters of a `Content-Type`.
const CONTENT_TYPE_MAX: usize = 100;

/// Where the environment names a proxy: the first of them that is one is taken.
const PROXY_VARIABLES: [&str; 6] = ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

const SOCKS_PROXY: &str =
    "the environment names a SOCKS proxy, which cannot be used: unset ALL_PROXY, or name one of HTTP, and start again";
const BROKEN_PROXY: &str =
    "the environment names a proxy that cannot be used: correct ALL_PROXY, HTTPS_PROXY or HTTP_PROXY (http://host:port), and start again";

/// Posts to one target.
pub struct Poster {
    /// From the first post on for which nothing was in the way.
    agent: Option<Agent>,
    uri: Uri,
    key: Option<(HeaderName, HeaderValue)>,
    /// What no answer may bring into a log, should the backend repeat it.
    secrets: Vec<Vec<u8>>,
    gzip: bool,
    ca_file: Option<PathBuf>,
    /// TLS with what is in `ca_file`.
    own_tls: Option<Arc<ClientConfig>>,
    timeout: Duration,
    connect_timeout: Duration,
    /// The one in between, or why none can be.
    proxy: Result<Option<Proxy>, &'static str>,
    /// When an answer came last: its connection may serve again.
    answered: Option<Instant>,
}

impl Poster {
    /// The client of `target`, through the proxy that the environment names. Fails where the configuration is wrong.
    pub fn new(target: &HttpTarget) -> Result<Self, PosterError> {
        Self::through(target, proxy_of_environment()).map_err(|why| PosterError { target: target.options.name.clone(), why })
    }

    fn through(target: &HttpTarget, proxy: Result<Option<Proxy>, &'static str>) -> Result<Self, Why> {
        let uri: Uri = target.url.parse().map_err(|_| Why::Url)?;
        let own_tls = target.ca_file.as_ref().map(|file| tls::client_config(&trusting(Some(file)))).transpose().map_err(Why::Tls)?;
        Ok(Self {
            agent: None,
            proxy: proxy.and_then(|proxy| usable(proxy, &uri)),
            uri,
            key: target.api_key.as_ref().map(|key| secret_header(&target.api_key_header, key.reveal())).transpose()?,
            secrets: secrets(target),
            gzip: target.gzip,
            ca_file: target.ca_file.clone(),
            own_tls,
            timeout: target.timeout,
            connect_timeout: target.connect_timeout,
            answered: None,
        })
    }

    /// Posts `body`, and waits for what comes of it.
    pub fn post(&mut self, body: &[u8]) -> Outcome {
        let compressed;
        let body = if self.gzip {
            compressed = gzip(body);
            &compressed
        } else {
            body
        };
        let agent = match self.agent() {
            Ok(agent) => agent,
            Err(obstacle) => return obstacle,
        };
        let start = Instant::now();
        let was_warm = self.answered.take().is_some_and(|at| at.elapsed() < IDLE_MAX);
        let exchanged = match self.exchange(&agent, body, None) {
            // a kept connection that ended just now says nothing about the backend
            Err(error) if was_warm && was_closed(&error) => self.exchange(&agent, body, self.timeout.checked_sub(start.elapsed())),
            other => other,
        };
        match exchanged {
            Ok(response) => {
                let answer = self.answer(response);
                self.answered = Some(Instant::now());
                Outcome::Answer(answer)
            }
            Err(error) if is_tls(&error) => Outcome::Untrusted(self.failure(&error)),
            Err(error) => Outcome::Failed(self.failure(&error)),
        }
    }

    /// Host and port of the proxy in between, if there is one.
    pub fn proxy(&self) -> Option<String> {
        self.proxy.as_ref().ok()?.as_ref().map(|proxy| format!("{}:{}", proxy.host(), proxy.port()))
    }

    /// What is in the way of a post, though the configuration is right.
    pub fn obstacle(&mut self) -> Option<String> {
        match self.agent() {
            Err(Outcome::Failed(why) | Outcome::Untrusted(why)) => Some(why),
            _ => None,
        }
    }

    fn agent(&mut self) -> Result<Agent, Outcome> {
        let agent = match self.agent.take() {
            Some(agent) => agent,
            None => self.set_up()?,
        };
        Ok(self.agent.insert(agent).clone())
    }

    fn set_up(&self) -> Result<Agent, Outcome> {
        let proxy = self.proxy.clone().map_err(|why| Outcome::Failed(why.into()))?;
        let proxy_is_https = proxy.as_ref().is_some_and(|proxy| proxy.protocol() == ProxyProtocol::Https);
        let config = match &self.own_tls {
            Some(own) => Some(own.clone()),
            None if self.uri.scheme_str() == Some("https") || proxy_is_https => {
                let untrusted = |error: TlsError| Outcome::Untrusted(escape(&error.to_string()).to_string());
                Some(tls::client_config(&trusting(None)).map_err(untrusted)?)
            }
            None => None,
        };
        let connector = ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default()).chain(Secure { config });
        let config = Agent::config_builder()
            .proxy(proxy)
            .user_agent(USER_AGENT)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_response_header_size(HEAD_MAX)
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
            .max_idle_connections(1)
            .max_idle_age(IDLE_MAX)
            .timeout_resolve(Some(self.connect_timeout))
            .timeout_connect(Some(self.connect_timeout))
            .timeout_global(Some(self.timeout))
            .build();
        Ok(Agent::with_parts(config, connector, Names::default()))
    }

    /// One request and the head of its answer; within `limit`, unless the target's own holds.
    fn exchange(&self, agent: &Agent, body: &[u8], limit: Option<Duration>) -> Result<Response<Body>, Error> {
        let mut request = agent.post(self.uri.clone()).header(CONTENT_TYPE, "application/json");
        if self.gzip {
            request = request.header(CONTENT_ENCODING, "gzip");
        }
        if let Some((name, value)) = &self.key {
            request = request.header(name, value);
        }
        if limit.is_some() {
            request = request.config().timeout_global(limit).build();
        }
        request.send(body)
    }

    /// The status decides: of a body that does not come whole, what came is taken.
    fn answer(&self, response: Response<Body>) -> Answer {
        let (head, body) = response.into_parts();
        let mut bytes = Vec::new();
        let _ = body.into_reader().take(BODY_MAX).read_to_end(&mut bytes);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Answer {
            status: head.status.as_u16(),
            retry_after: text_of(&head.headers, RETRY_AFTER).and_then(|text| retry_after(text, now)),
            content_type: text_of(&head.headers, CONTENT_TYPE).map(|text| content_type(&self.hushed_text(text))).unwrap_or_default(),
            location: text_of(&head.headers, LOCATION).and_then(|text| self.origin_of(text)),
            body: self.hushed(bytes),
        }
    }

    fn hushed_text(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.hushed(text.into())).into_owned()
    }

    /// `text` without secrets.
    fn hushed(&self, mut text: Vec<u8>) -> Vec<u8> {
        for secret in &self.secrets {
            while let Some(at) = text.windows(secret.len()).position(|part| part == secret.as_slice()) {
                text.splice(at..at + secret.len(), *b"***");
            }
        }
        text
    }

    /// Scheme and host that `location` points to; our own, when it names none.
    fn origin_of(&self, location: &str) -> Option<String> {
        let uri: Uri = self.hushed_text(location).parse().ok()?;
        let scheme = uri.scheme_str().or(self.uri.scheme_str())?;
        let authority = uri.authority().or(self.uri.authority())?;
        let port = authority.port().map(|port| format!(":{port}")).unwrap_or_default();
        Some(escape(&format!("{scheme}://{}{port}", authority.host())).to_string())
    }

    /// Why there is no answer.
    fn failure(&self, error: &Error) -> String {
        match error {
            Error::Timeout(Timeout::Resolve) => format!("{} was not looked up within {}", self.host(), seconds(self.connect_timeout)),
            Error::Timeout(Timeout::Connect) => format!("{}no connection within {}", self.by_proxy(), seconds(self.connect_timeout)),
            Error::Timeout(_) => format!("no answer within {}", seconds(self.timeout)),
            Error::HostNotFound => format!("{} has no address", self.host()),
            Error::Io(error) => self.io_failure(error),
            Error::Protocol(error) => {
                let text = error.to_string();
                let by = self.proxy().map(|proxy| format!(" that came through the proxy {proxy}")).unwrap_or_default();
                format!("the answer{by} is not HTTP: {}", escape(text.strip_prefix("http parse fail: ").unwrap_or(&text)))
            }
            Error::LargeResponseHeader(..) => format!("the answer's head is larger than {HEAD_MAX} bytes"),
            Error::ConnectProxyFailed(text) => self.proxy_failure(text),
            // it quotes the URL
            Error::BadUri(_) => "the URL cannot be used".into(),
            error => escape(&error.to_string()).to_string(),
        }
    }

    fn io_failure(&self, error: &io::Error) -> String {
        if let Some(error) = tls_error(error) {
            return self.server().explain(error);
        }
        if let Some(Handshake(error)) = handshake(error) {
            return self.server().explain_handshake(error);
        }
        let text = why(error);
        if let Some(reason) = text.strip_prefix("failed to lookup address information: ") {
            return format!("{} was not found: {}", self.host(), escape(reason));
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => "the connection was closed before there was an answer".into(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                "the connection was reset before there was an answer".into()
            }
            _ => format!("{}{}", self.by_proxy(), escape(&text)),
        }
    }

    fn server(&self) -> Server<'_> {
        Server {
            role: "backend",
            host: self.uri.host().unwrap_or_default(),
            ca_file: self.ca_file.as_deref(),
            own: OwnCertificate::Unsupported,
            port_hint: "the port of http, not https",
        }
    }

    /// `text` ends in the status twice, as in "responded 403/403".
    fn proxy_failure(&self, text: &str) -> String {
        let proxy = self.proxy().unwrap_or_else(|| "?".into());
        match text.rsplit('/').next().filter(|status| status.parse::<u16>().is_ok()) {
            Some("407") => format!("the proxy {proxy} wants a user and a password: write them into its URL"),
            Some(status) => format!("the proxy {proxy} refused to connect us: it answered {status}"),
            None => format!("the proxy {proxy} gave no answer"),
        }
    }

    /// Whose name is looked up: the proxy looks up the backend's.
    fn host(&self) -> String {
        match self.proxy() {
            Some(proxy) => format!("the proxy {proxy}"),
            None => self.uri.host().unwrap_or_default().into(),
        }
    }

    /// Stands before what happened on the way to the next hop.
    fn by_proxy(&self) -> String {
        self.proxy().map(|proxy| format!("proxy {proxy}: ")).unwrap_or_default()
    }
}

/// Whose client there is not, and why.
#[derive(Debug)]
pub struct PosterError {
    target: Box<str>,
    why: Why,
}

impl std::error::Error for PosterError {}

impl fmt::Display for PosterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http {}: {}", self.target, self.why)
    }
}

#[derive(Debug)]
enum Why {
    Tls(TlsError),
    Url,
    Key,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(error) => error.fmt(f),
            Self::Url => f.write_str("the URL cannot be used"),
            Self::Key => f.write_str("the key cannot be sent: a header takes printable characters only"),
        }
    }
}

/// `Err`: there is one that cannot be used. To go past it would be what nobody wanted.
fn proxy_of_environment() -> Result<Option<Proxy>, &'static str> {
    match Proxy::try_from_env() {
        None if PROXY_VARIABLES.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) => Err(BROKEN_PROXY),
        proxy => Ok(proxy),
    }
}

/// `proxy`, if `uri` is behind it and it is one that we can use.
fn usable(proxy: Option<Proxy>, uri: &Uri) -> Result<Option<Proxy>, &'static str> {
    let Some(proxy) = proxy.filter(|proxy| !proxy.is_no_proxy(uri)) else { return Ok(None) };
    if !matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
        return Err(SOCKS_PROXY);
    }
    // one that is no number is not told from none
    let authority =
        proxy.uri().authority().map(|authority| (authority.as_str().rsplit('@').next(), authority.host(), authority.port_u16()));
    match authority {
        Some((Some(all), host, None)) if all != host => Err(BROKEN_PROXY),
        _ => Ok(Some(proxy)),
    }
}

fn trusting(ca_file: Option<&PathBuf>) -> Tls {
    Tls { ca_file: ca_file.cloned(), client: None }
}

fn secret_header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Why> {
    let name = name.parse().map_err(|_| Why::Key)?;
    let mut value = HeaderValue::from_str(value).map_err(|_| Why::Key)?;
    value.set_sensitive(true);
    Ok((name, value))
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::default());
    // a Vec takes everything
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}

/// The key, also without `Bearer`, and the query of the URL; what is shorter than this is in every other word.
fn secrets(target: &HttpTarget) -> Vec<Vec<u8>> {
    const SHORTEST: usize = 6;
    let key = target.api_key.as_ref().map(Secret::reveal);
    let parts =
        key.into_iter().chain(key.and_then(|key| key.split_whitespace().last())).chain(target.url.split_once('?').map(|(_, query)| query));
    parts.filter(|part| part.len() >= SHORTEST).map(|part| part.as_bytes().to_vec()).collect()
}

/// Whether TLS is at fault, and not the connection below it.
fn is_tls(error: &Error) -> bool {
    matches!(error, Error::Io(error) if tls_error(error).is_some() || handshake(error).is_some())
}

fn handshake(error: &io::Error) -> Option<&Handshake> {
    error.get_ref()?.downcast_ref()
}

/// Whether the backend ended the connection instead of answering.
fn was_closed(error: &Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error, Error::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof))
}

fn text_of(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Seconds or a date, as a span from `now`, the time since 1970. How much of it is waited is the core's business.
fn retry_after(text: &str, now: Duration) -> Option<Duration> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // more digits than fit are more than we wait anyway
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let at = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?.as_second();
    Some(Duration::from_secs(at.try_into().unwrap_or(0)).saturating_sub(now))
}

fn content_type(text: &str) -> String {
    let text = text.split(';').next().unwrap_or_default().trim_end();
    escape_to(&text.to_ascii_lowercase(), CONTENT_TYPE_MAX).to_string()
}

fn seconds(span: Duration) -> String {
    format!("{} s", span.as_secs_f64())
}

#[cfg(test)]
mod tests;

//! The demo's HTTP backend: takes measurements as the Solar Backend API does, on 127.0.0.1 only.
//!
//! Promises: what it answers with 201 is in [`Backend::measurements`], in order, as long as somebody reads there; `/down` and `/up` play an
//! outage. Refuses a wrong key (401), what is no measurement (400), everything while it is down (503), and what it does not know (404).
//! One request at a time, on a connection of its own, which is bounded in size and in time.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use venus_mqtt::text::escape;

/// No secret: whoever reaches the backend sees it here.
pub const KEY: &str = "key-of-the-demo";

/// The demo's measurements are not a thousandth of it.
const MAX_REQUEST: usize = 256 * 1024;
const MAX_HEADERS: usize = 32;
const MAX_UNREAD: usize = 100;
/// Of one connection; less than the bridge waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

pub struct Backend {
    pub port: u16,
    pub measurements: mpsc::Receiver<Measurement>,
}

impl Backend {
    /// Listens on any free port, and serves until the runtime ends.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (taken, measurements) = mpsc::channel(MAX_UNREAD);
        let mut server = Server { up: true, taken };
        tokio::spawn(async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    // what goes wrong on it is the sender's to see
                    let _ = tokio::time::timeout(PATIENCE, server.serve(stream)).await;
                }
            }
        });
        Ok(Self { port, measurements })
    }
}

/// What the demo shows of a measurement, and checks.
#[derive(Debug, Deserialize)]
pub struct Measurement {
    timestamp: String,
    cerbo_serial: String,
    devices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
struct Device {
    device_instance: i64,
    serial: String,
    name: String,
    reachable: bool,
    yield_power_w: f64,
}

impl Measurement {
    pub fn has(&self, instance: i64) -> bool {
        self.devices.iter().any(|device| device.device_instance == instance && device.reachable)
    }

    /// What the API says of a measurement that it has taken.
    fn results(&self) -> Value {
        let taken = |(id, device): (usize, &Device)| json!({"device_identifier": device.serial, "status": "ok", "inverter_id": id + 1, "yield_power_w": device.yield_power_w});
        let results: Vec<_> = self.devices.iter().enumerate().map(taken).collect();
        json!({
            "cerbo_serial": self.cerbo_serial, "timestamp": self.timestamp, "total_devices": results.len(),
            "success_count": results.len(), "error_count": 0, "results": results,
        })
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", escape(&self.timestamp))?;
        for (n, device) in self.devices.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma} {} ", escape(&device.name))?;
            if device.reachable { write!(f, "{:.0} W", device.yield_power_w)? } else { f.write_str("has left")? }
        }
        Ok(())
    }
}

struct Server {
    up: bool,
    taken: mpsc::Sender<Measurement>,
}

/// Status line and body.
type Answer = (&'static str, Value);

impl Server {
    async fn serve(&mut self, mut stream: TcpStream) -> io::Result<()> {
        let (status, body) = match read(&mut stream).await? {
            Some(request) => self.answer(&request),
            None => refusal("400 Bad Request", "this is no request, or it is too large"),
        };
        let body = format!("{body}\n");
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all((head + &body).as_bytes()).await?;
        stream.shutdown().await
    }

    fn answer(&mut self, request: &Request) -> Answer {
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/down") => self.switch(false),
            ("POST", "/up") => self.switch(true),
            ("POST", "/api/victron/measurements") => self.take(request),
            _ => refusal("404 Not Found", "there is POST to /api/victron/measurements, /down and /up"),
        }
    }

    fn switch(&mut self, up: bool) -> Answer {
        self.up = up;
        ("200 OK", json!({"up": up}))
    }

    fn take(&self, request: &Request) -> Answer {
        if !self.up {
            return refusal("503 Service Unavailable", "the backend is down, until somebody posts to /up");
        }
        if request.key.as_deref() != Some(KEY.as_bytes()) {
            return refusal("401 Unauthorized", "wrong API key");
        }
        let Ok(measurement) = serde_json::from_slice::<Measurement>(&request.body) else {
            return refusal("400 Bad Request", "this is no measurement");
        };
        let results = measurement.results();
        // where nobody reads there is nobody to miss it
        let _ = self.taken.try_send(measurement);
        ("201 Created", results)
    }
}

fn refusal(status: &'static str, why: &str) -> Answer {
    (status, json!({"detail": why}))
}

struct Request {
    method: String,
    path: String,
    key: Option<Vec<u8>>,
    body: Vec<u8>,
}

/// `None`: it is none, or it is too large.
async fn read(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Option<Request>> {
    let mut bytes = Vec::with_capacity(4_096);
    while bytes.len() < MAX_REQUEST {
        match parse(&bytes) {
            Ok(Some(request)) => return Ok(Some(request)),
            Ok(None) if stream.read_buf(&mut bytes).await? > 0 => {}
            _ => break,
        }
    }
    Ok(None)
}

/// `None`: not all of it is there.
fn parse(bytes: &[u8]) -> Result<Option<Request>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(bytes)? else { return Ok(None) };
    let header = |name: &str| head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value);
    // a length that is no number leaves a body that is no measurement
    let wanted = header("Content-Length").and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()).unwrap_or(0);
    let Some(body) = bytes.get(length..).and_then(|body| body.get(..wanted)) else { return Ok(None) };
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    let key = header("X-API-Key").map(<[u8]>::to_vec);
    Ok(Some(Request { method: text(head.method), path: text(head.path), key, body: body.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASUREMENT: &str = r#"{"timestamp":"2026-11-21T16:43:00.000250+00:00","cerbo_serial":"c0619ab1c2d3","devices":[
        {"device_instance":278,"serial":"HQ1","name":"Roof south","reachable":true,"yield_power_w":2727.4},
        {"device_instance":279,"serial":"HQ2","name":"Roof\nwest","reachable":false,"yield_power_w":1.0}]}"#;

    fn post(path: &str, key: &str, body: &str) -> String {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nx-api-key: {key}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    async fn exchange(port: u16, request: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        // as it may come: head and body on their own
        let (first, rest) = request.split_at(request.len() - request.len() / 3);
        stream.write_all(first.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let _ = stream.write_all(rest.as_bytes()).await;
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn answers_as_the_api_does() {
        let measurements = "/api/victron/measurements";
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut backend = Backend::start().await.unwrap();
            for (request, status) in [
                (post(measurements, KEY, MEASUREMENT), 201),
                (post(measurements, "other", MEASUREMENT), 401),
                (post(measurements, KEY, r#"{"timestamp":1}"#), 400),
                (post("/down", "", ""), 200),
                (post(measurements, KEY, MEASUREMENT), 503),
                ("POST /up HTTP/1.1\r\n\r\n".into(), 200),
                (post(measurements, KEY, MEASUREMENT), 201),
                (post("/", KEY, MEASUREMENT), 404),
                (format!("GET {measurements} HTTP/1.1\r\n\r\n"), 404),
                ("\u{1}".into(), 400),
                ("POST /up HTTP/1.1\r\nContent-Length: 9\r\n\r\nshort".into(), 400),
            ] {
                let answer = exchange(backend.port, &request).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
                if status == 201 {
                    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
                    let results: Value = serde_json::from_str(body).unwrap();
                    assert_eq!((&results["success_count"], &results["results"][1]["device_identifier"]), (&json!(2), &json!("HQ2")));
                    let measurement = backend.measurements.try_recv().unwrap();
                    assert_eq!(measurement.to_string(), r"2026-11-21T16:43:00.000250+00:00  Roof south 2727 W, Roof\nwest has left");
                    assert_eq!([278, 279, 280].map(|instance| measurement.has(instance)), [true, false, false]);
                }
                assert!(backend.measurements.try_recv().is_err());
            }
        });
    }

    #[test]
    fn a_request_without_an_end_is_not_read_for_ever() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endless = &mut tokio::io::repeat(b'a');
        assert!(runtime.block_on(read(endless)).unwrap().is_none());
        let endless = post("/up", "", "").replace("content-length: 0", "content-length: 18446744073709551615");
        let endless = &mut endless.as_bytes().chain(tokio::io::repeat(b'a'));
        assert!(runtime.block_on(read(endless)).unwrap().is_none());
    }
}

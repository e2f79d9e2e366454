//! The control socket: how `venus-mqtt devices` talks to the daemon that runs.
//!
//! One connection is one request line and one answer line, both bounded, and closed then: `devices` or `forget "<client ID>"`, the ID
//! as a JSON string; the answer is `{"ok": …}` or `{"error": "…"}`.
//!
//! Promises: only the daemon's own user can connect; a peer that is slow, silent or talks nonsense costs a place for some seconds and
//! nothing else; the socket of a daemon that was killed is replaced, that of one that runs is left alone; it is gone when the daemon
//! ends. Called by the daemon ([`Control`]) and by `cli` ([`ask`]).

use std::fmt;
use std::fs::{self, Permissions};
use std::future::pending;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::files::{self, why};
use crate::text::escape;

const SOCKET: &str = "control.sock";

/// Connections at once; those that come meanwhile wait in the kernel's queue.
const CONNECTIONS: usize = 8;

/// A peer has so long to send its line, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The daemon has so long to answer: a call on the bus, which takes up to ten seconds, and some.
const ANSWER: Duration = Duration::from_secs(15);

/// The client waits longer than the daemon may take for all of it.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// Longest request line and longest answer line, in bytes.
const REQUEST_MAX: u64 = 4 << 10;
const ANSWER_MAX: u64 = 1 << 20;

/// After an accept that failed, because descriptors have run out, say.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// What can be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// The registered devices, as a JSON array.
    List,
    /// To forget the device with this client ID; the answer is a text for a person.
    Forget(String),
}

impl Command {
    fn parse(line: &str) -> Result<Self, String> {
        let (word, argument) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        match (word, argument) {
            ("devices", "") => Ok(Self::List),
            ("forget", id) => serde_json::from_str(id).map(Self::Forget).map_err(|_| "forget what? write: forget \"<client ID>\"".into()),
            _ => Err(format!("unknown request \"{}\"; there are `devices` and `forget \"<client ID>\"`", escape(line.trim_end()))),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List => f.write_str("devices"),
            Self::Forget(id) => write!(f, "forget {}", Value::from(id.as_str())),
        }
    }
}

/// Somebody asks.
#[derive(Debug)]
pub struct Request {
    pub command: Command,
    pub answer: Answer,
}

/// Takes the answer to one request; dropped, the one who asked is told that there is none.
#[derive(Debug)]
pub struct Answer(oneshot::Sender<Result<Value, String>>);

impl Answer {
    /// Never waits. `Err` is the reason why it cannot be done, for a person.
    pub fn send(self, result: Result<Value, String>) {
        // whoever has gone away needs none
        let _ = self.0.send(result);
    }
}

/// The daemon's end.
pub struct Control(Option<Listening>);

struct Listening {
    requests: mpsc::Receiver<Request>,
    server: JoinHandle<()>,
    socket: PathBuf,
    /// Which file the socket is: only our own is taken away.
    inode: u64,
}

impl Control {
    /// Listens in `dir`, the state folder. Where that cannot be, it says so and the daemon goes on without.
    /// Must be called inside a runtime.
    pub fn listen(dir: &Path) -> Self {
        let socket = dir.join(SOCKET);
        let listening = Listening::start(dir, socket.clone()).map_err(|error| match error {
            // said by who keeps the note there
            Deaf::NoFolder => {}
            Deaf::InUse => log::warn!(
                "`venus-mqtt devices` asks another daemon, which listens on {}; give each a `state_dir` of its own in [devices]",
                socket.display()
            ),
            Deaf::Failed(error) => {
                log::warn!("`venus-mqtt devices` cannot ask this daemon: no socket {}: {}", socket.display(), why(&error));
            }
        });
        Self(listening.ok())
    }

    /// The next request; never, where nothing listens. Cancel-safe.
    pub async fn next(&mut self) -> Request {
        if let Some(listening) = &mut self.0
            && let Some(request) = listening.requests.recv().await
        {
            return request;
        }
        pending().await
    }
}

/// Why nothing listens.
enum Deaf {
    NoFolder,
    InUse,
    Failed(io::Error),
}

impl From<io::Error> for Deaf {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Listening {
    fn start(dir: &Path, socket: PathBuf) -> Result<Self, Deaf> {
        if !dir.is_dir() {
            return Err(Deaf::NoFolder);
        }
        if is_live(&socket) {
            return Err(Deaf::InUse);
        }
        // made beside and renamed: it is never there with the rights of others, and a stale one is replaced
        let new = dir.join(format!("{SOCKET}.new"));
        let _ = fs::remove_file(&new);
        if fs::symlink_metadata(&socket).is_ok_and(|meta| !meta.file_type().is_socket()) {
            let aside = files::set_aside(&socket)?;
            log::warn!("{} is not a socket: it is now {}", socket.display(), aside.display());
        }
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, Permissions::from_mode(0o600)).and_then(|()| fs::rename(&new, &socket)).inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })?;
        let inode = fs::symlink_metadata(&socket)?.ino();
        let (sender, requests) = mpsc::channel(CONNECTIONS);
        Ok(Self { requests, server: tokio::spawn(accept(listener, sender)), socket, inode })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.server.abort();
        if fs::symlink_metadata(&self.socket).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.socket);
        }
    }
}

/// Whether somebody listens there; never waits.
fn is_live(path: &Path) -> bool {
    let Ok(address) = UnixAddr::new(path) else { return false };
    let Ok(probe) = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None) else {
        return false;
    };
    // EAGAIN: there is a queue, and it is full
    matches!(connect(probe.as_raw_fd(), &address), Ok(()) | Err(Errno::EAGAIN))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<Request>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, requests.clone()));
                }
                Err(error) => {
                    log::debug!("no connection taken on the control socket: {}", why(&error));
                    sleep(ACCEPT_RETRY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut stream: UnixStream, requests: mpsc::Sender<Request>) {
    let Ok(line) = timeout(PATIENCE, request_line(&mut stream)).await else { return };
    let result = match line.and_then(|line| Command::parse(&line)) {
        Ok(command) => carry_out(command, &requests).await,
        Err(error) => Err(error),
    };
    let line = answer_line(&result);
    // whoever has gone away needs none
    let _ = timeout(PATIENCE, stream.write_all(line.as_bytes())).await;
}

async fn request_line(stream: &mut UnixStream) -> Result<String, String> {
    let mut line = Vec::new();
    let mut reader = tokio::io::BufReader::new(stream.take(REQUEST_MAX));
    reader.read_until(b'\n', &mut line).await.map_err(|error| why(&error))?;
    if line.last() != Some(&b'\n') {
        return Err(format!("a request is one line of at most {REQUEST_MAX} bytes"));
    }
    String::from_utf8(line).map_err(|_| "a request is UTF-8 text".into())
}

async fn carry_out(command: Command, requests: &mpsc::Sender<Request>) -> Result<Value, String> {
    let ending = || "the daemon is ending; try again".to_owned();
    let (answer, result) = oneshot::channel();
    let asked = async {
        requests.send(Request { command, answer: Answer(answer) }).await.map_err(|_| ending())?;
        result.await.map_err(|_| ending())?
    };
    timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(format!("the daemon did not answer within {} s; try again", ANSWER.as_secs())))
}

fn answer_line(result: &Result<Value, String>) -> String {
    let line = match result {
        Ok(value) => json!({"ok": value}),
        Err(error) => json!({"error": error}),
    };
    let line = format!("{line}\n");
    if line.len() as u64 > ANSWER_MAX {
        return answer_line(&Err(format!("the answer is longer than {ANSWER_MAX} bytes")));
    }
    line
}

/// Why there is no good answer.
#[derive(Debug)]
pub enum AskError {
    /// No daemon listens there.
    NotRunning,
    /// The daemon's own words.
    Refused(String),
    /// Something went wrong on the way; for a person, and complete.
    Failed(String),
}

/// Asks the daemon whose state folder is `dir`. Blocks until it has answered.
pub fn ask(dir: &Path, command: &Command) -> Result<Value, AskError> {
    let line = format!("{command}\n");
    if line.len() as u64 > REQUEST_MAX {
        return Err(AskError::Refused("no device has an ID as long as that".into()));
    }
    let socket = dir.join(SOCKET);
    let failed = |what: &str, error: &io::Error| AskError::Failed(format!("{what} the daemon on {}: {}", socket.display(), why(error)));
    let mut stream = BlockingStream::connect(&socket).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => AskError::NotRunning,
        _ if is_absent(&error) => AskError::NotRunning,
        io::ErrorKind::PermissionDenied => {
            AskError::Failed(format!("cannot ask the daemon on {}: permission denied; run this as the daemon's user", socket.display()))
        }
        _ => failed("cannot ask", &error),
    })?;
    let answer = exchange(&mut stream, &line).map_err(|error| failed("no answer from", &error))?;
    let mut answer = match serde_json::from_slice(&answer) {
        Ok(Value::Object(answer)) => answer,
        _ => return Err(AskError::Failed(format!("what listens on {} is not venus-mqtt", socket.display()))),
    };
    match (answer.remove("ok"), answer.remove("error")) {
        (Some(value), None) => Ok(value),
        (_, Some(Value::String(error))) => Err(AskError::Refused(error)),
        _ => Err(AskError::Failed(format!("what listens on {} is not venus-mqtt", socket.display()))),
    }
}

fn exchange(stream: &mut BlockingStream, request: &str) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(CLIENT_PATIENCE))?;
    stream.set_write_timeout(Some(CLIENT_PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut line = Vec::new();
    BufReader::new(stream.take(ANSWER_MAX)).read_until(b'\n', &mut line).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::TimedOut, format!("it said nothing for {} s", CLIENT_PATIENCE.as_secs()))
        }
        _ => error,
    })?;
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up"));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::{in_time, odd_files};
    use crate::scratch::Scratch;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(Duration::from_secs(20), test).await.unwrap() });
    }

    /// Asks as another process would.
    async fn asked(dir: &Scratch, command: Command) -> Result<Value, AskError> {
        let dir = dir.path().to_owned();
        tokio::task::spawn_blocking(move || ask(&dir, &command)).await.unwrap()
    }

    /// Sends `bytes` as they are, and takes what comes until the daemon hangs up.
    async fn said(dir: &Scratch, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(dir.path().join(SOCKET)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    async fn answer(control: &mut Control, result: Result<Value, String>) -> Command {
        let request = control.next().await;
        request.answer.send(result);
        request.command
    }

    #[test]
    fn what_is_asked_is_answered() {
        let dir = Scratch::new();
        run(async {
            let mut control = Control::listen(dir.path());
            let list = json!([{"clientId": "fe001"}]);
            let (got, command) = tokio::join!(asked(&dir, Command::List), answer(&mut control, Ok(list.clone())));
            assert_eq!((got.unwrap(), command), (list, Command::List));
            for id in ["fe001", "a b", "\"\\\n\u{0}ä", ""] {
                let forget = Command::Forget(id.into());
                let (got, command) = tokio::join!(asked(&dir, forget.clone()), answer(&mut control, Err("no such device".into())));
                assert!(matches!(got, Err(AskError::Refused(text)) if text == "no such device"));
                assert_eq!(command, forget);
            }
        });
    }

    #[test]
    fn nonsense_is_refused_and_reaches_nobody() {
        let dir = Scratch::new();
        run(async {
            let _control = Control::listen(dir.path());
            for (bytes, expected) in [
                (&b"\n"[..], r#"{"error":"unknown request \"\"; there are `devices` and `forget \"<client ID>\"`"}"#),
                (b"devices all\n", r#"{"error":"unknown request \"devices all\"; there are `devices` and `forget \"<client ID>\"`"}"#),
                (b"forget\n", r#"{"error":"forget what? write: forget \"<client ID>\""}"#),
                (b"forget fe001\n", r#"{"error":"forget what? write: forget \"<client ID>\""}"#),
                (b"forget 5\n", r#"{"error":"forget what? write: forget \"<client ID>\""}"#),
                (b"devices", r#"{"error":"a request is one line of at most 4096 bytes"}"#),
                (b"dev\xffces\n", r#"{"error":"a request is UTF-8 text"}"#),
                (b"", r#"{"error":"a request is one line of at most 4096 bytes"}"#),
                (&[b'x'; 4096], r#"{"error":"a request is one line of at most 4096 bytes"}"#),
            ] {
                assert_eq!(said(&dir, bytes).await, format!("{expected}\n"));
            }
        });
    }

    #[test]
    fn an_endless_line_is_hung_up_on() {
        let dir = Scratch::new();
        run(async {
            let _control = Control::listen(dir.path());
            let mut stream = UnixStream::connect(dir.path().join(SOCKET)).await.unwrap();
            while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
        });
    }

    #[test]
    fn an_answer_that_was_dropped_and_one_that_is_too_long() {
        let dir = Scratch::new();
        run(async {
            let mut control = Control::listen(dir.path());
            let (got, ()) = tokio::join!(asked(&dir, Command::List), async { drop(control.next().await) });
            assert!(matches!(got, Err(AskError::Refused(text)) if text == "the daemon is ending; try again"));
            let long = Value::from("x".repeat(1 << 20));
            let (got, _) = tokio::join!(asked(&dir, Command::List), answer(&mut control, Ok(long)));
            assert!(matches!(got, Err(AskError::Refused(text)) if text == "the answer is longer than 1048576 bytes"));
            let longest = Value::from("x".repeat((1 << 20) - 10));
            let (got, _) = tokio::join!(asked(&dir, Command::List), answer(&mut control, Ok(longest.clone())));
            assert!(got.unwrap() == longest);
        });
    }

    #[test]
    fn a_request_that_is_too_long_is_not_sent() {
        let id = "x".repeat(4096);
        assert!(matches!(ask(Path::new("/nowhere"), &Command::Forget(id)), Err(AskError::Refused(_))));
    }

    #[test]
    fn waiting_may_be_given_up() {
        let dir = Scratch::new();
        run(async {
            let mut control = Control::listen(dir.path());
            let asking = tokio::spawn({
                let dir = dir.path().to_owned();
                async move { tokio::task::spawn_blocking(move || ask(&dir, &Command::List)).await.unwrap() }
            });
            let request = loop {
                tokio::select! {
                    biased;
                    request = control.next() => break request,
                    () = tokio::task::yield_now() => {}
                }
            };
            request.answer.send(Ok(json!([])));
            assert_eq!(asking.await.unwrap().unwrap(), json!([]));
        });
    }

    #[test]
    fn those_beyond_the_cap_wait_their_turn() {
        let dir = Scratch::new();
        run(async {
            let mut control = Control::listen(dir.path());
            let socket = dir.path().join(SOCKET);
            let mut silent = Vec::new();
            for _ in 0..CONNECTIONS {
                silent.push(UnixStream::connect(&socket).await.unwrap());
            }
            let mut late = UnixStream::connect(&socket).await.unwrap();
            late.write_all(b"devices\n").await.unwrap();
            assert!(timeout(Duration::from_millis(100), control.next()).await.is_err());
            silent.pop();
            assert_eq!(control.next().await.command, Command::List);
        });
    }

    #[test]
    fn nobody_listens() {
        let dir = Scratch::new();
        dir.file("plain", "");
        for folder in ["", "none", "plain"] {
            assert!(matches!(ask(&dir.path().join(folder), &Command::List), Err(AskError::NotRunning)), "{folder}");
        }
        run(async { drop(Control::listen(dir.path())) });
        assert!(!dir.path().join(SOCKET).exists());
        assert!(matches!(ask(dir.path(), &Command::List), Err(AskError::NotRunning)));
    }

    #[test]
    fn without_a_folder_nothing_is_ever_asked() {
        let dir = Scratch::new();
        run(async {
            let mut control = Control::listen(&dir.path().join("none"));
            assert!(timeout(Duration::from_millis(20), control.next()).await.is_err());
        });
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = Scratch::new();
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        dir.file("control.sock.new", "left by a life that was cut short");
        assert!(matches!(ask(dir.path(), &Command::List), Err(AskError::NotRunning)));
        run(async {
            let mut first = Control::listen(dir.path());
            let mode = fs::metadata(dir.path().join(SOCKET)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            drop(Control::listen(dir.path()));
            let (got, _) = tokio::join!(asked(&dir, Command::List), answer(&mut first, Ok(json!([1]))));
            assert_eq!(got.unwrap(), json!([1]));
        });
    }

    #[test]
    fn what_is_no_socket_is_set_aside() {
        for odd in 0..7 {
            in_time(move || {
                let dir = Scratch::new();
                let odd = odd_files(&dir).swap_remove(odd);
                let is_socket = odd.ends_with("socket");
                fs::rename(odd, dir.path().join(SOCKET)).unwrap();
                run(async {
                    let mut control = Control::listen(dir.path());
                    let (got, _) = tokio::join!(asked(&dir, Command::List), answer(&mut control, Ok(json!([1]))));
                    assert_eq!(got.unwrap(), json!([1]));
                });
                assert_eq!(dir.path().join("control.sock.corrupt").symlink_metadata().is_ok(), !is_socket);
            });
        }
    }

    #[test]
    fn a_socket_that_is_anothers_by_now_is_left() {
        let dir = Scratch::new();
        run(async {
            let control = Control::listen(dir.path());
            let socket = dir.path().join(SOCKET);
            fs::rename(&socket, dir.path().join("ours")).unwrap();
            let _other = UnixListener::bind(&socket).unwrap();
            drop(control);
            assert!(socket.exists());
        });
    }

    #[test]
    fn another_program_behind_the_socket() {
        for (answer, expected) in [
            ("{\"ok\":5,\"error\":\"x\"}\n", "x"),
            ("{}\n", "is not venus-mqtt"),
            ("hello\n", "is not venus-mqtt"),
            ("{\"ok\":5}", "it hung up"),
        ] {
            let dir = Scratch::new();
            let listener = std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap();
            let other = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                BufReader::new(&stream).read_line(&mut String::new()).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            });
            let (AskError::Refused(text) | AskError::Failed(text)) = ask(dir.path(), &Command::List).unwrap_err() else { panic!() };
            assert!(text.ends_with(expected), "{text}");
            other.join().unwrap();
        }
    }
}

//! A TCP proxy on loopback that can be cut off: connections stay open, bytes stop, and nobody is told. What a pulled cable looks like.
//! It can also carry no more than so many bytes a second, each way.
//! It leads to one address, or, as HTTP proxies do, to where each client asks it to connect.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

/// Forwards to one address until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    cut: bool,
    over: bool,
    /// connections made so far, and how many of them carry nothing any more
    connections: usize,
    frozen: usize,
    /// bytes a second of a connection, each way; 0 for as many as there are
    rate: usize,
    streams: Vec<TcpStream>,
    /// what clients asked to be connected to
    asked: Vec<String>,
}

impl Proxy {
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        Self::dialling(move |_, _| TcpStream::connect(target))
    }

    /// An HTTP proxy: `CONNECT`, and nothing else. Every name leads to this machine.
    pub fn connect() -> io::Result<Self> {
        Self::dialling(dial)
    }

    /// What clients of an HTTP proxy asked for: `backend.example:443`, or the first line of what else they wanted.
    pub fn asked(&self) -> Vec<String> {
        self.state.0.lock().map(|state| state.asked.clone()).unwrap_or_default()
    }

    fn dialling(dial: impl Fn(&Mutex<State>, &mut TcpStream) -> io::Result<TcpStream> + Send + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                if wait_while_cut(&shared, usize::MAX) {
                    return;
                }
                let Ok(server) = dial(&shared.0, &mut client) else { continue };
                // a connection that fails here is the same as one that is closed at once
                let _ = forward(&shared, client, server);
            }
        });
        Ok(Self { address, state })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn cut_off(&self) {
        if let Ok(mut state) = self.state.0.lock() {
            state.cut = true;
        }
    }

    /// The connections that there are carry nothing any more; new ones do.
    pub fn freeze(&self) {
        if let Ok(mut state) = self.state.0.lock() {
            state.frozen = state.connections;
        }
    }

    /// From now on a connection carries so many bytes a second, each way.
    pub fn limit(&self, rate: usize) {
        if let Ok(mut state) = self.state.0.lock() {
            state.rate = rate;
        }
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.state.0.lock().map_or(0, |state| state.connections)
    }

    pub fn reconnect(&self) {
        if let Ok(mut state) = self.state.0.lock() {
            state.cut = false;
        }
        self.state.1.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Ok(mut state) = self.state.0.lock() {
            state.over = true;
            for stream in state.streams.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        self.state.1.notify_all();
        // wakes the listener's thread, which then ends
        let _ = TcpStream::connect(self.address);
    }
}

/// Where a client asks to be connected to; it is told that it is.
fn dial(state: &Mutex<State>, client: &mut TcpStream) -> io::Result<TcpStream> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head);
    let line = text.lines().next().unwrap_or_default();
    let target = line.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    if let Ok(mut state) = state.lock() {
        state.asked.push(target.unwrap_or(line).to_owned());
    }
    let port = target.and_then(|target| target.rsplit_once(':')?.1.parse().ok());
    let Some(port) = port else {
        client.write_all(b"HTTP/1.1 405 CONNECT only\r\nContent-Length: 0\r\n\r\n")?;
        return Err(io::ErrorKind::Unsupported.into());
    };
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    client.write_all(if server.is_ok() { b"HTTP/1.1 200 OK\r\n\r\n" } else { b"HTTP/1.1 502 no way there\r\n\r\n" })?;
    server
}

fn forward(shared: &Arc<(Mutex<State>, Condvar)>, client: TcpStream, server: TcpStream) -> io::Result<()> {
    let mut number = 0;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        if let Ok(mut state) = shared.0.lock() {
            state.streams.push(stream.try_clone()?);
            number = state.connections;
        }
    }
    if let Ok(mut state) = shared.0.lock() {
        state.connections += 1;
    }
    for (mut from, mut to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let rate = shared.0.lock().map_or(0, |state| state.rate);
                // a limited one takes turns of a twentieth of a second
                let most = if rate == 0 { buffer.len() } else { (rate / 20).clamp(1, buffer.len()) };
                let read = from.read(buffer.get_mut(..most).unwrap_or_default()).unwrap_or_default();
                if rate > 0 {
                    std::thread::sleep(Duration::from_secs_f64(read as f64 / rate as f64));
                }
                if wait_while_cut(&shared, number) || read == 0 || to.write_all(buffer.get(..read).unwrap_or_default()).is_err() {
                    let _ = from.shutdown(Shutdown::Both);
                    let _ = to.shutdown(Shutdown::Both);
                    return;
                }
            }
        });
    }
    Ok(())
}

/// Waits as long as this connection carries nothing. Returns whether the proxy is over.
fn wait_while_cut(shared: &(Mutex<State>, Condvar), number: usize) -> bool {
    let Ok(state) = shared.0.lock() else { return true };
    shared.1.wait_while(state, |state| (state.cut || number < state.frozen) && !state.over).map_or(true, |state| state.over)
}

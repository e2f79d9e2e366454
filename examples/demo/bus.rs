//! The demo's D-Bus bus: the crate `busd` on a thread of its own, listening on a socket in the demo's folder.
//!
//! `busd` runs on a runtime of its own (`zruntime`), which belongs to the thread that calls it: hence the thread. It ends, and
//! the socket is removed, when [`Bus::stop`] is called.

use std::path::Path;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use tokio::sync::oneshot;

pub struct Bus {
    pub address: String,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Bus {
    pub async fn start(socket: &Path) -> anyhow::Result<Self> {
        let address = format!("unix:path={}", socket.display());
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = oneshot::channel();
        let listen_on = address.clone();
        let thread = std::thread::Builder::new().name("bus".into()).spawn(move || zruntime::block_on(serve(listen_on, ready, stopped)))?;
        if listening.await.is_err() {
            let error = thread.join().map_err(|_| anyhow!("its thread panicked")).flatten().err();
            return Err(error.unwrap_or_else(|| anyhow!("it ended"))).context("the bus did not start");
        }
        Ok(Self { address, stop, thread })
    }

    pub fn stop(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow!("the bus panicked"))?
    }
}

async fn serve(address: String, ready: oneshot::Sender<()>, stopped: oneshot::Receiver<()>) -> anyhow::Result<()> {
    let mut bus = busd::bus::Bus::for_address(Some(&address)).await?;
    let _ = ready.send(());
    let ended = tokio::select! {
        ended = bus.run() => ended,
        _ = stopped => Ok(()),
    };
    bus.cleanup().await?;
    ended
}

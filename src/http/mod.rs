//! Measurements on their way: one worker for each target, with its queue on disk and its client.
//!
//! Promises: neither the disk nor the net is ever waited for by the loop; what a target is told to keep is kept in the order in which
//! it was told, also while a post is under way; a target that hangs costs the others nothing. Called by the daemon; what is to be done
//! is the core's business ([`crate::measure`]).

mod client;
pub mod poster;
pub mod spool;

use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use crate::config::HttpTarget;
use crate::measure::{Command, Entry, Event};

use client::Client;
use poster::{Poster, PosterError};
use spool::{Spool, Unread};

/// A queue that somebody uses is waited for so long, and looked at again after each pause.
const OTHERS: Duration = Duration::from_secs(5);
const OTHERS_PAUSE: Duration = Duration::from_millis(100);

/// Not every step on the way through a proxy is bounded by the target's `timeout`: so much later a post is given up.
const GRACE: Duration = Duration::from_secs(2);

/// In the state folder.
const FOLDER: &str = "http";

/// The workers of all targets.
pub struct Http {
    workers: Vec<(mpsc::UnboundedSender<Command>, JoinHandle<()>)>,
    events: mpsc::UnboundedReceiver<(usize, Event)>,
}

impl Http {
    /// Must be called inside a runtime. Fails where a target cannot be posted to as it is configured.
    pub fn start(targets: &[HttpTarget], state_dir: &Path) -> Result<Self, PosterError> {
        let posters = targets.iter().map(Poster::new).collect::<Result<Vec<_>, _>>()?;
        // the core has a few commands at once under way and waits for their events: neither channel grows
        let (sender, events) = mpsc::unbounded_channel();
        let workers = targets.iter().zip(posters).enumerate().map(|(n, (target, poster))| {
            let (commands, receiver) = mpsc::unbounded_channel();
            let client = Client::new(poster, target.timeout + GRACE);
            let worker = Worker { client, commands: receiver, events: sender.clone(), number: n };
            let dir = queue_dir(state_dir, target);
            (commands, tokio::spawn(worker.run(dir, format!("http {}", target.options.name))))
        });
        Ok(Self { workers: workers.collect(), events })
    }

    pub fn command(&self, target: usize, command: Command) {
        if let Some((commands, _)) = self.workers.get(target) {
            // it ends only when it is told to
            let _ = commands.send(command);
        }
    }

    /// What the target with that number, from 0, has to say; never, where there are none. Cancel-safe.
    pub async fn next(&mut self) -> (usize, Event) {
        // where there are none, looking at the channel would be a cost of every turn
        match if self.workers.is_empty() { None } else { self.events.recv().await } {
            Some(event) => event,
            None => pending().await,
        }
    }

    /// What there is to say already.
    pub fn try_next(&mut self) -> Option<(usize, Event)> {
        if self.workers.is_empty() { None } else { self.events.try_recv().ok() }
    }

    /// Does what is still to be done on disk, and returns when it is done. A post that is under way is not waited for.
    pub async fn finish(self) {
        for (commands, worker) in self.workers {
            drop(commands);
            let _ = worker.await;
        }
    }
}

/// Whether there has ever been a target that keeps its queue in this folder.
pub fn was_used(state_dir: &Path) -> bool {
    state_dir.join(FOLDER).is_dir()
}

/// Where the queue of a target is; measurements of one shape never get into the queue of another.
fn queue_dir(state_dir: &Path, target: &HttpTarget) -> PathBuf {
    state_dir.join(FOLDER).join(format!("{}.{}", target.options.name, target.options.format.name()))
}

struct Worker {
    client: Client,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::UnboundedSender<(usize, Event)>,
    number: usize,
}

impl Worker {
    async fn run(mut self, dir: PathBuf, what: String) {
        self.wait_for_others(&dir).await;
        let Ok((mut spool, entries, next_seq)) = spawn_blocking(move || Spool::open(&dir, &what)).await else { return };
        let entries = entries.into_iter().map(|entry| Entry { seq: entry.seq, len: entry.len }).collect();
        self.tell(Event::Opened { entries, next_seq });
        loop {
            let command = tokio::select! {
                biased;
                outcome = self.client.outcome() => {
                    self.tell(Event::Posted(outcome));
                    continue;
                }
                command = self.commands.recv() => command,
            };
            let Some(command) = command else { return };
            // on a thread of its own: flash can take seconds
            let Ok((done, returned)) = spawn_blocking(move || (carry_out(&mut spool, command), spool)).await else { return };
            spool = returned;
            match done {
                Done::Nothing => {}
                Done::Event(event) => self.tell(event),
                Done::Read(body) => {
                    if let Err(outcome) = self.client.post(body) {
                        self.tell(Event::Posted(outcome));
                    }
                }
            }
        }
    }

    /// The life before may still be busy with its last words.
    async fn wait_for_others(&self, dir: &Path) {
        let began = Instant::now();
        while began.elapsed() < OTHERS {
            let dir = dir.to_owned();
            if !spawn_blocking(move || Spool::is_taken(&dir)).await.unwrap_or(false) {
                return;
            }
            sleep(OTHERS_PAUSE).await;
        }
    }

    fn tell(&self, event: Event) {
        // at the end nobody listens any more
        let _ = self.events.send((self.number, event));
    }
}

/// What came of a command.
enum Done {
    Nothing,
    Event(Event),
    /// To be posted.
    Read(Vec<u8>),
}

fn carry_out(spool: &mut Spool, command: Command) -> Done {
    match command {
        Command::Append { seq, body } => {
            spool.append(seq, &body);
            return Done::Event(Event::Stored(seq));
        }
        Command::Post(seq) => match spool.read(seq) {
            Ok(body) => return Done::Read(body),
            Err(Unread::Lost) => return Done::Event(Event::Lost(seq)),
            Err(Unread::Now(why)) => return Done::Event(Event::Unreadable(why)),
        },
        Command::Forget { through } => spool.forget(through),
        Command::Sync => spool.sync(),
    }
    Done::Nothing
}

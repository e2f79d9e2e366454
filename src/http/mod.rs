//! Measurements on their way: one worker for each target, with its queue on disk and its client.
//!
//! Promises: neither the disk nor the net is ever waited for by the loop; what a target is told to keep is kept in the order in which
//! it was told, also while a post is under way; a target that hangs costs the others nothing. Called by the daemon; what is to be done
//! is the core's business ([`crate::measure`]).

pub mod poster;
pub mod spool;

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::config::HttpTarget;
use crate::measure::{Command, Entry, Event, Outcome};

use poster::{Poster, PosterError};
use spool::Spool;

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
            let worker = Worker { poster: Arc::new(poster), commands: receiver, events: sender.clone(), number: n };
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

    /// Does what is still to be done on disk, and returns when it is done. A post that is under way is not waited for.
    pub async fn finish(self) {
        for (commands, worker) in self.workers {
            drop(commands);
            let _ = worker.await;
        }
    }
}

/// Where the queue of a target is; measurements of one shape never get into the queue of another.
fn queue_dir(state_dir: &Path, target: &HttpTarget) -> PathBuf {
    state_dir.join("http").join(format!("{}.{}", target.options.name, target.options.format.name()))
}

struct Worker {
    poster: Arc<Poster>,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::UnboundedSender<(usize, Event)>,
    number: usize,
}

impl Worker {
    async fn run(mut self, dir: PathBuf, what: String) {
        let Ok((mut spool, entries, next_seq)) = spawn_blocking(move || Spool::open(&dir, &what)).await else { return };
        let entries = entries.into_iter().map(|entry| Entry { seq: entry.seq, len: entry.len }).collect();
        self.tell(Event::Opened { entries, next_seq });
        let mut posting = None;
        loop {
            let command = tokio::select! {
                biased;
                outcome = answer(&mut posting) => {
                    posting = None;
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
                    let poster = Arc::clone(&self.poster);
                    posting = Some(spawn_blocking(move || poster.post(&body)));
                }
            }
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
        Command::Post(seq) => return spool.read(seq).map_or(Done::Event(Event::Lost(seq)), Done::Read),
        Command::Forget { through } => spool.forget(through),
        Command::Sync => spool.sync(),
    }
    Done::Nothing
}

/// Of the post that is under way; never, if none is.
async fn answer(posting: &mut Option<JoinHandle<Outcome>>) -> Outcome {
    match posting {
        // a thread that the system does not give is tried for again like a net that is not there
        Some(post) => post.await.unwrap_or_else(|error| Outcome::Failed(format!("it could not be posted: {error}"))),
        None => pending().await,
    }
}

//! Measurements on their way: one worker for each target, with its queue on disk and its client.
//!
//! Promises: neither the disk nor the net is ever waited for by the loop; what a target is told to keep is kept in the order in which
//! it was told, also while a post is under way; a target that hangs costs the others nothing; what the disk does not take goes from one
//! life to the next ([`Unwritten`]). Called by the daemon; what is to be done is the core's business ([`crate::measure`]).

mod client;
pub mod poster;
pub mod spool;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// Bodies that the disk did not take, oldest first, by the name of their queue: for the next life. What nobody takes over is lost,
/// and that is said.
#[derive(Default, Debug)]
pub struct Unwritten(BTreeMap<String, Vec<Box<[u8]>>>);

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.0.iter().for_each(|(queue, bodies)| say_lost(queue, bodies.len()));
    }
}

/// The workers of all targets.
pub struct Http {
    workers: Vec<Running>,
    events: mpsc::UnboundedReceiver<(usize, Event)>,
}

impl Http {
    /// Goes on with what waits on disk, and then with what an earlier life could not write. Must be called inside a runtime. Fails
    /// where a target cannot be posted to as it is configured.
    pub fn start(targets: &[HttpTarget], state_dir: &Path, mut unwritten: Unwritten) -> Result<Self, PosterError> {
        let posters = targets.iter().map(Poster::new).collect::<Result<Vec<_>, _>>()?;
        // the core has a few commands at once under way and waits for their events: neither channel grows
        let (sender, events) = mpsc::unbounded_channel();
        let workers = targets.iter().zip(posters).enumerate().map(|(n, (target, poster))| {
            let (commands, receiver) = mpsc::unbounded_channel();
            let client = Client::new(poster, target.timeout + GRACE);
            let queue = queue_name(target);
            let bodies = unwritten.0.remove(&queue).unwrap_or_default();
            let in_memory = Arc::new(AtomicUsize::new(bodies.len()));
            let worker = Worker { client, commands: receiver, events: sender.clone(), number: n, in_memory: Arc::clone(&in_memory) };
            let dir = state_dir.join(FOLDER).join(&queue);
            let task = tokio::spawn(worker.run(dir, format!("http {}", target.options.name), bodies));
            Running { queue, commands, task, in_memory }
        });
        Ok(Self { workers: workers.collect(), events })
    }

    pub fn command(&self, target: usize, command: Command) {
        if let Some(worker) = self.workers.get(target) {
            // it ends only when it is told to
            let _ = worker.commands.send(command);
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

    /// Does what is still to be done on disk, as far as that goes until the time is `over`, and gives what the disk does not take. A
    /// post that is under way is not waited for.
    pub async fn finish(self, over: impl Future<Output = ()>) -> Unwritten {
        let (mut over, mut is_over) = (pin!(over), false);
        let mut unwritten = Unwritten::default();
        // told to end all at once: one disk that hangs takes no time from the others
        let ending: Vec<_> = self.workers.into_iter().map(|worker| (worker.queue, worker.task, worker.in_memory)).collect();
        for (queue, task, in_memory) in ending {
            let time = async {
                if !is_over {
                    over.as_mut().await;
                    is_over = true;
                }
            };
            tokio::select! {
                biased;
                bodies = task => drop(unwritten.0.insert(queue, bodies.unwrap_or_default())),
                // it keeps them to its end
                () = time => say_lost(&queue, in_memory.load(Ordering::Relaxed)),
            }
        }
        unwritten
    }
}

/// Whether there has ever been a target that keeps its queue in this folder.
pub fn was_used(state_dir: &Path) -> bool {
    state_dir.join(FOLDER).is_dir()
}

fn say_lost(queue: &str, count: usize) {
    if count > 0 {
        let name = queue.split('.').next().unwrap_or_default();
        log::warn!("http {name}: measurements that were kept in memory only are lost: {count}");
    }
}

/// What the folder of a target's queue is called; measurements of one shape never get into the queue of another.
fn queue_name(target: &HttpTarget) -> String {
    format!("{}.{}", target.options.name, target.options.format.name())
}

/// A worker, seen from outside.
struct Running {
    queue: String,
    /// Without them, it ends.
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<Vec<Box<[u8]>>>,
    /// How many measurements only it has.
    in_memory: Arc<AtomicUsize>,
}

struct Worker {
    client: Client,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::UnboundedSender<(usize, Event)>,
    number: usize,
    in_memory: Arc<AtomicUsize>,
}

impl Worker {
    /// Until it is told to end. Gives what the disk did not take.
    async fn run(mut self, dir: PathBuf, what: String, unwritten: Vec<Box<[u8]>>) -> Vec<Box<[u8]>> {
        self.wait_for_others(&dir).await;
        let Ok((mut spool, opened)) = spawn_blocking(move || open(&dir, &what, unwritten)).await else { return Vec::new() };
        self.tell(opened);
        loop {
            self.in_memory.store(spool.unwritten(), Ordering::Relaxed);
            let command = tokio::select! {
                biased;
                outcome = self.client.outcome() => {
                    self.tell(Event::Posted(outcome));
                    continue;
                }
                command = self.commands.recv() => command,
            };
            let Some(command) = command else { break };
            // on a thread of its own: flash can take seconds
            let Ok((done, returned)) = spawn_blocking(move || (carry_out(&mut spool, command), spool)).await else { return Vec::new() };
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
        spawn_blocking(move || spool.finish()).await.unwrap_or_default()
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

/// The queue with what is in it, and at its end what an earlier life could not write.
fn open(dir: &Path, what: &str, unwritten: Vec<Box<[u8]>>) -> (Spool, Event) {
    let (mut spool, mut entries, mut next_seq) = Spool::open(dir, what);
    for body in unwritten {
        spool.append(next_seq, &body);
        entries.push(Entry { seq: next_seq, len: u32::try_from(body.len()).unwrap_or(u32::MAX) });
        next_seq += 1;
    }
    (spool, Event::Opened { entries, next_seq })
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

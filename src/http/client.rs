//! The client of a worker: it posts on a thread of its own, one measurement after the other.
//!
//! Promises: a post has an outcome in time, also if its thread has none; there is never more than one thread. Called by the worker.

use std::future::pending;
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout_at;

use super::poster::Poster;
use crate::measure::Outcome;

/// Posts, one after the other.
pub struct Client {
    /// While a post is under way, its thread has it.
    poster: Option<Poster>,
    posting: Option<Posting>,
    /// How long a post takes at most.
    patience: Duration,
}

/// A post that is under way.
struct Posting {
    thread: JoinHandle<(Poster, Outcome)>,
    deadline: Instant,
    /// It was given up; another one has to wait until it has come to its end all the same.
    given_up: bool,
}

impl Client {
    pub fn new(poster: Poster, patience: Duration) -> Self {
        Self { poster: Some(poster), posting: None, patience }
    }

    /// Begins to post; what comes of it is [`Self::outcome`]. Only when that is there, the next one.
    pub fn post(&mut self, body: Vec<u8>) -> Result<(), Outcome> {
        let Some(mut poster) = self.poster.take() else {
            return Err(Outcome::Failed("the post before has not come to its end yet".into()));
        };
        let thread = spawn_blocking(move || {
            let outcome = poster.post(&body);
            (poster, outcome)
        });
        self.posting = Some(Posting { thread, deadline: Instant::now() + self.patience, given_up: false });
        Ok(())
    }

    /// What came of the post that is under way; never, if none is. Cancel-safe.
    pub async fn outcome(&mut self) -> Outcome {
        loop {
            let Some(Posting { thread, deadline, given_up }) = &mut self.posting else { return pending().await };
            if *given_up {
                self.poster = thread.await.map(|(poster, _)| poster).ok();
                self.posting = None;
                continue;
            }
            match timeout_at((*deadline).into(), thread).await {
                Ok(ended) => {
                    self.posting = None;
                    // a runtime that ends takes no more posts
                    let Ok((poster, outcome)) = ended else { return pending().await };
                    self.poster = Some(poster);
                    return outcome;
                }
                Err(_) => {
                    *given_up = true;
                    return Outcome::Failed(format!("no answer within {} s", self.patience.as_secs_f64()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::config::{Given, Source};
    use crate::scratch::Scratch;

    #[tokio::test]
    async fn a_post_that_does_not_end_is_given_up_and_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = Scratch::new();
        let config = format!("[http]\nurl = \"http://{}\"\n", listener.local_addr().unwrap());
        let target = Source::new(Some(dir.file("c.toml", config)), Given::default()).load().unwrap().config.http.remove(0);
        let mut client = Client::new(Poster::new(&target).unwrap(), Duration::from_millis(50));
        client.post(b"1".to_vec()).unwrap();
        assert_eq!(client.outcome().await, Outcome::Failed("no answer within 0.05 s".into()));
        assert!(matches!(client.post(b"2".to_vec()), Err(Outcome::Failed(why)) if why.contains("not come to its end")));
        // now it does
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        client.patience = Duration::from_secs(20);
        let answered = timeout_at((Instant::now() + client.patience).into(), async {
            // what came of the first is nothing any more; the third is looked after
            while client.poster.is_none() {
                let _ = tokio::time::timeout(Duration::from_millis(5), client.outcome()).await;
            }
            drop((stream, listener));
            client.post(b"3".to_vec()).unwrap();
            client.outcome().await
        });
        let Outcome::Failed(why) = answered.await.unwrap() else { panic!("nobody listens") };
        assert!(why.contains("refused"), "{why}");
    }
}

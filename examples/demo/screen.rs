//! What the demo shows of the topics: as `mosquitto_sub -v` would, but no faster than a person reads.
//!
//! Promises: at most eight lines a second; of a topic that changes faster, the latest value; every topic gets its turn, and
//! one that was quiet for a while (somebody wrote it) goes first.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::time::{Duration, Instant};

use rumqttc::Publish;

use crate::client::topic;

pub const LINE_EVERY: Duration = Duration::from_millis(125);
const QUIET: Duration = Duration::from_secs(10);
const WIDTH: usize = 160;

#[derive(Default)]
pub struct Screen {
    /// Payload and last change of each topic.
    topics: HashMap<String, (String, Instant)>,
    /// Changed after a while of quiet: first.
    rare: VecDeque<String>,
    busy: VecDeque<String>,
}

impl Screen {
    pub fn changed(&mut self, publish: &Publish, now: Instant) {
        let topic = topic(publish);
        let payload = if publish.payload.is_empty() { "(null)".into() } else { String::from_utf8_lossy(&publish.payload) };
        let line: String = payload.chars().map(|c| if c.is_control() { '.' } else { c }).take(WIDTH).collect();
        match self.topics.insert(topic.clone(), (line.clone(), now)) {
            Some((before, _)) if before == line => {}
            Some((_, at)) if now.duration_since(at) < QUIET => {
                if !self.rare.contains(&topic) && !self.busy.contains(&topic) {
                    self.busy.push_back(topic);
                }
            }
            _ => {
                self.rare.retain(|waiting| *waiting != topic);
                self.busy.retain(|waiting| *waiting != topic);
                self.rare.push_back(topic);
            }
        }
    }

    /// Everything seen so far counts as shown.
    pub fn skip(&mut self) {
        self.rare.clear();
        self.busy.clear();
    }

    pub fn len(&self) -> usize {
        self.topics.len()
    }

    /// Writes the next line, if one waits.
    pub fn write_next(&mut self) -> io::Result<()> {
        let Some(topic) = self.rare.pop_front().or_else(|| self.busy.pop_front()) else {
            return Ok(());
        };
        let payload = self.topics.get(&topic).map_or("", |(payload, _)| payload);
        writeln!(io::stdout(), "{topic} {payload}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::QoS;

    #[test]
    fn a_quiet_topic_goes_first_and_a_busy_one_shows_its_latest_value() {
        let mut screen = Screen::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let message = |topic: &str, payload: &str| Publish::new(topic, QoS::AtMostOnce, payload);
        screen.changed(&message("a", "1"), start);
        screen.changed(&message("b", "1"), start);
        screen.changed(&message("mode", "3"), start);
        screen.skip();
        screen.changed(&message("a", "2"), at(1));
        screen.changed(&message("b", "2"), at(1));
        screen.changed(&message("a", "3"), at(2));
        screen.changed(&message("mode", "3"), at(19));
        screen.changed(&message("mode", "4"), at(30));
        assert_eq!((screen.rare, screen.busy), (VecDeque::from(["mode".into()]), VecDeque::from(["a".into(), "b".into()])));
        assert_eq!(screen.topics["a"].0, "3");
    }
}

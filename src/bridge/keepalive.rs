//! Keep-alives: what a payload asks for, which items are awake and until when, and how often everything may be published again.

use std::time::Duration;

use serde_json::Value as Json;

use super::filter::{Filter, FilterIndex, ServiceFilters};
use super::limits;
use super::options::AlwaysOn;
use super::time::Time;

/// What one keep-alive asks for.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    pub scope: Scope,
    /// Keep awake, but publish nothing now and confirm nothing.
    pub suppress: bool,
    pub echo: Option<Box<str>>,
    /// Why some of the payload was not taken, for a debug line.
    pub odd: Option<String>,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Scope {
    Everything,
    Only(Vec<Filter>),
}

/// Whatever is not understood counts as an empty payload: all of it is in the field.
pub fn parse(payload: &[u8]) -> Request {
    let mut request = Request { scope: Scope::Everything, suppress: false, echo: None, odd: None };
    if payload.len() > limits::KEEPALIVE_PAYLOAD {
        request.odd = Some(format!("{} bytes; at most {} are read", payload.len(), limits::KEEPALIVE_PAYLOAD));
        return request;
    }
    if payload.iter().all(u8::is_ascii_whitespace) {
        return request;
    }
    match serde_json::from_slice::<Json>(payload) {
        Ok(Json::Array(entries)) => request.take_filters(&entries),
        Ok(Json::Object(map)) => match map.get("keepalive-options") {
            Some(Json::Array(options)) => options.iter().for_each(|option| request.take_option(option)),
            _ => request.odd = Some("an object without a list of \"keepalive-options\"".into()),
        },
        Ok(_) => request.odd = Some("neither a list nor an object".into()),
        Err(error) => request.odd = Some(format!("no JSON ({error})")),
    }
    request
}

impl Request {
    fn take_filters(&mut self, entries: &[Json]) {
        if entries.len() > limits::KEEPALIVE_FILTERS {
            self.odd = Some(format!("{} filters; at most {} are read", entries.len(), limits::KEEPALIVE_FILTERS));
            return;
        }
        let mut filters = Vec::new();
        for entry in entries {
            match entry.as_str().map(Filter::parse) {
                Some(Ok(filter)) => filters.push(filter),
                Some(Err(error)) => self.odd = Some(format!("a filter of the list was left out: {error}")),
                None => self.odd = Some("an entry of the list that is no text was left out".into()),
            }
        }
        // a list of nothing but mistakes is not a list of filters
        if !filters.is_empty() || entries.is_empty() {
            self.scope = Scope::Only(filters);
        }
    }

    fn take_option(&mut self, option: &Json) {
        const SUPPRESS: &str = "suppress-republish";
        match option {
            Json::String(word) if word == SUPPRESS => self.suppress = true,
            Json::Object(map) => {
                self.suppress |= map.get(SUPPRESS).is_some_and(|wanted| *wanted != Json::Bool(false));
                match map.get("full-publish-completed-echo") {
                    Some(Json::String(echo)) if echo.len() <= limits::ECHO => self.echo = Some(echo.as_str().into()),
                    Some(_) => self.odd = Some(format!("an echo must be a string of at most {} bytes", limits::ECHO)),
                    None if map.contains_key(SUPPRESS) => {}
                    None => self.odd = Some("an unknown option".into()),
                }
            }
            _ => self.odd = Some("an unknown option".into()),
        }
    }
}

/// What is awake. `everything` and each filter run out on their own.
#[derive(Debug)]
pub struct KeepAlives {
    interval: Duration,
    always: bool,
    everything_until: Time,
    filters: FilterIndex,
    /// The first of all of these, kept because it is asked for at every turn.
    next_expiry: Option<Time>,
    /// The last of the filters' times.
    filters_until: Time,
}

impl KeepAlives {
    pub fn new(interval: Duration, always_on: &AlwaysOn) -> Self {
        let mut filters = FilterIndex::default();
        if let AlwaysOn::Only(wanted) = always_on {
            for filter in wanted {
                filters.insert(filter.clone(), Time::MAX, usize::MAX, usize::MAX);
            }
        }
        let always = *always_on == AlwaysOn::Everything;
        let mut alive =
            Self { interval, always, everything_until: Time::default(), filters, next_expiry: None, filters_until: Time::default() };
        alive.take_times();
        alive
    }

    /// Takes a keep-alive. False when there is no room for its filters: then it counts as one for everything.
    pub fn extend(&mut self, now: Time, scope: &Scope) -> bool {
        let until = now + self.interval;
        let mut room = true;
        match scope {
            Scope::Everything => self.everything_until = until,
            Scope::Only(wanted) => {
                for filter in wanted {
                    room &= self.filters.insert(filter.clone(), until, limits::FILTERS, limits::FILTER_BYTES);
                }
                if !room {
                    self.everything_until = until;
                }
            }
        }
        self.take_times();
        room
    }

    /// Removes what has run out; true when there was any.
    pub fn expire(&mut self, now: Time) -> bool {
        if self.next_expiry.is_none_or(|at| at > now) {
            return false;
        }
        let mut expired = self.filters.expire(now);
        if self.everything_until != Time::default() && self.everything_until <= now {
            self.everything_until = Time::default();
            expired = true;
        }
        self.take_times();
        expired
    }

    /// Ends everything, for good.
    pub fn stop(&mut self) {
        self.always = false;
        self.everything_until = Time::default();
        self.filters = FilterIndex::default();
        self.take_times();
    }

    fn take_times(&mut self) {
        let everything = Some(self.everything_until).filter(|until| *until != Time::default());
        self.next_expiry = self.filters.times().filter(|until| *until != Time::MAX).chain(everything).min();
        self.filters_until = self.filters.times().max().unwrap_or_default();
    }

    pub fn next_expiry(&self) -> Option<Time> {
        self.next_expiry
    }

    /// Whether everything is awake, whatever the filters say.
    pub fn everything(&self, now: Time) -> bool {
        self.always || now < self.everything_until
    }

    /// Whether anything is.
    pub fn any(&self, now: Time) -> bool {
        self.everything(now) || now < self.filters_until
    }

    /// What the filters keep awake of a service.
    pub fn of_service(&self, service_type: &str, instance: &str) -> ServiceFilters<'_> {
        self.filters.of_service(service_type, instance)
    }

    pub fn has_filters(&self) -> bool {
        !self.filters.is_empty()
    }
}

/// A republish that has been asked for and not yet been done: all who asked since the last one, joined.
#[derive(Debug, Default)]
pub struct Republish {
    pub everything: bool,
    pub filters: FilterIndex,
    /// One per `full_publish_completed` to send.
    pub completions: Vec<Option<Box<str>>>,
    /// Echoes there was no room for.
    pub dropped: usize,
}

impl Republish {
    fn join(&mut self, request: Request) {
        match request.scope {
            Scope::Everything => self.everything = true,
            Scope::Only(filters) => {
                for filter in filters {
                    self.everything |= !self.filters.insert(filter, Time::MAX, limits::FILTERS, limits::FILTER_BYTES);
                }
            }
        }
        // one answer without an echo serves all who gave none
        if request.echo.is_none() && self.completions.contains(&None) {
            return;
        }
        if self.completions.len() < limits::COMPLETIONS {
            self.completions.push(request.echo);
        } else {
            self.dropped += 1;
        }
    }
}

/// At most so many republishes in any second.
#[derive(Debug, Default)]
pub struct Republishes {
    waiting: Option<Republish>,
    done: [Time; limits::REPUBLISHES],
}

impl Republishes {
    pub fn ask(&mut self, request: Request) {
        self.waiting.get_or_insert_default().join(request);
    }

    /// When the one that waits may be done.
    pub fn due(&self) -> Option<Time> {
        let oldest = self.done.iter().min().copied().unwrap_or_default();
        self.waiting.as_ref().map(|_| if oldest == Time::default() { oldest } else { oldest + limits::REPUBLISH_WINDOW })
    }

    pub fn take(&mut self, now: Time) -> Option<Republish> {
        if self.due()? > now {
            return None;
        }
        if let Some(oldest) = self.done.iter_mut().min() {
            *oldest = now.max(Time::default() + Duration::from_micros(1));
        }
        self.waiting.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::since_start(Duration::from_millis(millis))
    }

    #[test]
    fn payloads() {
        let everything = |suppress, echo: Option<&str>| (Scope::Everything, suppress, echo.map(Into::into));
        let only = |filters: &[&str]| (Scope::Only(filters.iter().map(|f| Filter::parse(f).unwrap()).collect()), false, None);
        let long = format!("{{\"keepalive-options\":[{{\"full-publish-completed-echo\":\"{}\"}}]}}", "x".repeat(257));
        type Expected = (Scope, bool, Option<Box<str>>);
        let table: Vec<(&str, Expected, bool)> = vec![
            ("", everything(false, None), false),
            (" \n", everything(false, None), false),
            ("[\"vebus/#\", \"solarcharger/+/Dc/0/Voltage\"]", only(&["vebus/#", "solarcharger/+/Dc/0/Voltage"]), false),
            ("[]", only(&[]), false),
            ("[\"vebus/#\", 5, \"a#\"]", only(&["vebus/#"]), true),
            ("[1, 2]", everything(false, None), true),
            ("1", everything(false, None), true),
            ("hello", everything(false, None), true),
            ("{\"keepalive-options\": [", everything(false, None), true),
            ("{\"x\": 1}", everything(false, None), true),
            ("{\"keepalive-options\": 5}", everything(false, None), true),
            ("{\"keepalive-options\": [\"unheard-of\"]}", everything(false, None), true),
            ("{\"keepalive-options\": []}", everything(false, None), false),
            ("{\"keepalive-options\": [{\"full-publish-completed-echo\": \"me\"}]}", everything(false, Some("me")), false),
            ("{\"keepalive-options\": [\"suppress-republish\"]}", everything(true, None), false),
            (
                "{\"keepalive-options\": [\"suppress-republish\", {\"full-publish-completed-echo\": \"me\"}]}",
                everything(true, Some("me")),
                false,
            ),
            (&long, everything(false, None), true),
            ("\u{ff}", everything(false, None), true),
        ];
        for (payload, (scope, suppress, echo), odd) in table {
            let request = parse(payload.as_bytes());
            assert_eq!((request.scope, request.suppress, request.echo, request.odd.is_some()), (scope, suppress, echo, odd), "{payload}");
        }
        parse(&[b'['; 100_000]);
    }

    /// What is beyond the limits counts as an empty payload, so that its sender misses no value.
    #[test]
    fn limits_of_payloads() {
        let list = |filters: usize, filter: &str| format!("[{}]", vec![format!("\"{filter}\""); filters].join(","));
        let largest = parse(list(limits::KEEPALIVE_FILTERS, "tank/+/Level").as_bytes());
        assert!(matches!(largest.scope, Scope::Only(filters) if filters.len() == limits::KEEPALIVE_FILTERS));
        let longer = format!("{}{}", list(1, "#"), " ".repeat(limits::KEEPALIVE_PAYLOAD));
        for payload in [list(limits::KEEPALIVE_FILTERS + 1, "tank/#"), longer] {
            let Request { scope, odd, .. } = parse(payload.as_bytes());
            assert_eq!((scope, odd.unwrap().contains("at most")), (Scope::Everything, true));
        }
    }

    #[test]
    fn filters_beyond_the_limit_count_as_everything() {
        let mut alive = KeepAlives::new(Duration::from_secs(60), &AlwaysOn::No);
        let mut republishes = Republishes::default();
        let mut ask = |first: usize, filters: usize| {
            let filters = (first..first + filters).map(|n| Filter::parse(&format!("tank/{n}/Level")).unwrap()).collect();
            let request = Request { scope: Scope::Only(filters), suppress: false, echo: None, odd: None };
            let room = alive.extend(at(0), &request.scope);
            republishes.ask(request);
            (room, alive.everything(at(1)), republishes.waiting.as_ref().unwrap().everything)
        };
        assert_eq!(ask(0, limits::FILTERS), (true, false, false));
        assert_eq!(ask(0, limits::FILTERS), (true, false, false), "the same again");
        assert_eq!(ask(limits::FILTERS, 1), (false, true, true));
    }

    #[test]
    fn each_filter_runs_out_on_its_own() {
        let mut alive = KeepAlives::new(Duration::from_secs(60), &AlwaysOn::No);
        let only = |text: &str| Scope::Only(vec![Filter::parse(text).unwrap()]);
        alive.extend(at(0), &only("vebus/#"));
        alive.extend(at(30_000), &only("battery/#"));
        assert_eq!(alive.of_service("vebus", "257").until("/Mode"), Some(at(60_000)));
        assert_eq!(alive.next_expiry(), Some(at(60_000)));
        assert!(alive.expire(at(60_000)));
        assert_eq!(alive.of_service("vebus", "257").until("/Mode"), None);
        assert!(alive.any(at(60_000)) && !alive.everything(at(60_000)));
        assert!(alive.expire(at(90_000)) && !alive.any(at(90_000)));
        assert_eq!(alive.next_expiry(), None);
    }

    #[test]
    fn three_a_second_and_no_echo_lost() {
        let mut republishes = Republishes::default();
        let ask = |republishes: &mut Republishes, n: u32| {
            republishes.ask(parse(format!("{{\"keepalive-options\":[{{\"full-publish-completed-echo\":\"{n}\"}}]}}").as_bytes()));
        };
        for n in 0..3 {
            ask(&mut republishes, n);
            assert_eq!(republishes.take(at(10)).unwrap().completions.len(), 1);
        }
        for n in 3..8 {
            ask(&mut republishes, n);
            assert!(republishes.take(at(500)).is_none());
        }
        assert_eq!(republishes.due(), Some(at(1010)));
        let joined = republishes.take(at(1010)).unwrap();
        assert_eq!(joined.completions, (3..8).map(|n| Some(n.to_string().into())).collect::<Vec<_>>());
        assert!(republishes.due().is_none());
    }
}

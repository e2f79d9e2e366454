//! `venus-mqtt http test`: one measurement, taken now and posted to the backends, without the daemon and its queue.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::{CONFIG, GONE, LoadError, OK, REFUSED, USAGE, Usable, load, print, say};
use crate::config::{Config, HttpTarget, Source};
use crate::daemon::{self, Ended};
use crate::http::poster::Poster;
use crate::log as logger;
use crate::measure::answer::{Refused, Verdict};
use crate::measure::options::Format;
use crate::measure::{Outcome, Sample};
use crate::text::{escape, escape_bytes, escape_to};

/// What a configuration without targets lacks.
const HINT: &str = "\
there is no [[http]] in the configuration, and so nowhere to post to; one is written like this:
  [[http]]
  url = \"https://backend.example\"
  api_key_file = \"/data/conf/api-key\"";

/// Posts a measurement to every target, or to the one of that name; `show` prints what is posted.
pub(super) fn test(source: &Source, name: Option<&str>, show: bool) -> u8 {
    let posted = prepared(source, name).and_then(|config| {
        // what is told at `info` is of the daemon's life
        logger::install(if config.log_level == log::LevelFilter::Info { log::LevelFilter::Warn } else { config.log_level });
        run(&config, show)
    });
    match posted {
        Ok(true) => OK,
        Ok(false) => REFUSED,
        Err(failed) => {
            failed.text.lines().for_each(|line| say("error", line));
            failed.code
        }
    }
}

/// What did not work before anything was posted, and the exit code.
#[derive(Debug)]
struct Failed {
    code: u8,
    text: String,
}

impl From<LoadError> for Failed {
    fn from(error: LoadError) -> Self {
        Self { code: CONFIG, text: error.to_string() }
    }
}

impl From<Ended> for Failed {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Unusable(text) => Self { code: CONFIG, text },
            Ended::Unready(text) => Self { code: GONE, text },
            Ended::Stopped | Ended::Reload(_) => Self { code: GONE, text: "it ended early: try again".into() },
        }
    }
}

fn prepared(source: &Source, name: Option<&str>) -> Result<Config, Failed> {
    // what is in the way of a post is what comes of it
    let Usable { loaded, obstacles: _ } = load(source)?;
    loaded.warnings.iter().for_each(|warning| say("warn", &warning.to_string()));
    chosen(loaded.config, name)
}

/// Whether every measurement was delivered.
fn run(config: &Config, show: bool) -> Result<bool, Failed> {
    let posters = config.http.iter().map(Poster::new).collect::<Result<Vec<_>, _>>();
    let posters = posters.map_err(|error| Failed { code: CONFIG, text: error.to_string() })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failed { code: GONE, text: format!("the runtime does not start: {error}") })?;
    let samples = runtime.block_on(daemon::sample_once(config))?;
    let mut all = true;
    for ((target, mut poster), sample) in config.http.iter().zip(posters).zip(samples) {
        print(&heading(target, poster.proxy().as_deref()));
        let Some(sample) = sample else {
            print(nothing(&target.options.format));
            all = false;
            continue;
        };
        print(&sent(target, &sample, show));
        let start = Instant::now();
        let outcome = poster.post(&sample.body);
        let (delivered, text) = came_back(&outcome, &target.options.format, start.elapsed());
        print(&text);
        all &= delivered;
    }
    Ok(all)
}

/// The configuration with only the targets that are asked for.
fn chosen(mut config: Config, name: Option<&str>) -> Result<Config, Failed> {
    if config.http.is_empty() {
        return Err(Failed { code: CONFIG, text: HINT.into() });
    }
    let Some(name) = name else { return Ok(config) };
    let names: Vec<_> = config.http.iter().map(|target| target.options.name.to_string()).collect();
    config.http.retain(|target| *target.options.name == *name);
    if config.http.is_empty() {
        let text = format!("no [[http]] has the name \"{}\"; there are: {}", escape(name), names.join(", "));
        return Err(Failed { code: USAGE, text });
    }
    Ok(config)
}

fn heading(target: &HttpTarget, proxy: Option<&str>) -> String {
    let by = proxy.map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default();
    // what is behind the path may be a secret
    let (url, query) = target.url.split_once('?').map_or((target.url.as_str(), ""), |(url, _)| (url, "?***"));
    format!("{}: {url}{query}{by}\n", target.options.name)
}

fn nothing(format: &Format) -> &'static str {
    match format {
        Format::VictronMeasurements => "  nothing to send: there is no solar charger on the bus\n",
        Format::JsonLines(_) => "  nothing to send: there is no value that `filters` take\n",
    }
}

fn sent(target: &HttpTarget, sample: &Sample, show: bool) -> String {
    let compressed = if target.gzip { " before compression" } else { "" };
    let key = if target.api_key.is_some() { "" } else { ", without an API key" };
    let mut text = format!("  sent: {}, {} bytes{compressed}{key}\n", sample.count, sample.body.len());
    if show {
        for line in String::from_utf8_lossy(&sample.body).lines() {
            // a String takes everything
            let _ = writeln!(text, "{}", escape_to(line, usize::MAX));
        }
    }
    text
}

/// Whether it was delivered, and what to tell.
fn came_back(outcome: &Outcome, format: &Format, took: Duration) -> (bool, String) {
    let (meaning, refused) = match outcome.judge(format) {
        Verdict::Delivered { refused } => (None, refused),
        Verdict::Rejected { why, refused, .. } => (Some(format!("{why}; the daemon would drop it")), refused),
        Verdict::Kept { why, .. } => (Some(format!("{why}; the daemon would keep it, and try again")), Vec::new()),
    };
    let delivered = meaning.is_none();
    let status = if let Outcome::Answer(answer) = outcome { answer.status } else { 0 };
    let meaning = meaning.unwrap_or_else(|| match refused.is_empty() {
        true => format!("HTTP {status}: delivered"),
        false => format!("HTTP {status}: delivered, but not all of it was taken"),
    });
    let mut text = format!("  after {:.2} s: {meaning}\n", took.as_secs_f64());
    refused.iter().for_each(|refused: &Refused| {
        let _ = writeln!(text, "  refused: {refused}");
    });
    if let Outcome::Answer(answer) = outcome
        && !delivered
        && refused.is_empty()
        && !answer.body.is_empty()
    {
        let _ = writeln!(text, "  it said: {}", escape_bytes(answer.body.trim_ascii()));
    }
    (delivered, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Given;
    use crate::measure::Answer;
    use crate::scratch::Scratch;

    fn told(status: u16, body: &str) -> (bool, String) {
        let answer = Answer { status, body: body.into(), ..Answer::default() };
        came_back(&Outcome::Answer(answer), &Format::VictronMeasurements, Duration::from_millis(1234))
    }

    #[test]
    fn what_came_back() {
        assert_eq!(told(201, "{}"), (true, "  after 1.23 s: HTTP 201: delivered\n".into()));
        let results = r#"{"results":[{"device_identifier":"HQ1","status":"ok"},
            {"device_identifier":"HQ2","status":"error","error":"Device HQ2\u001b not found"}]}"#;
        let (delivered, text) = told(207, results);
        assert!(delivered);
        assert_eq!(
            text,
            "  after 1.23 s: HTTP 207: delivered, but not all of it was taken\n  refused: HQ2 (Device HQ2\\u{1b} not found)\n"
        );
        let (delivered, text) = told(404, results);
        assert!(!delivered);
        assert!(text.contains("the daemon would drop it\n  refused: HQ2 (") && !text.contains("it said"), "{text}");
        let (delivered, text) = told(500, "\n<b>\u{1b}broken</b>\n");
        assert!(!delivered);
        assert!(text.ends_with("; the daemon would keep it, and try again\n  it said: <b>\\u{1b}broken</b>\n"), "{text}");
        let failed = Outcome::Failed("connection refused".into());
        let (delivered, text) = came_back(&failed, &Format::JsonLines(Vec::new()), Duration::ZERO);
        assert!(!delivered);
        assert_eq!(text, "  after 0.00 s: connection refused; the daemon would keep it, and try again\n");
    }

    #[test]
    fn where_it_is_posted_to() {
        let scratch = Scratch::new();
        let text = "[[http]]\nurl = \"https://a.example:444/b/\"\n[[http]]\nname = \"c\"\nurl = \"https://a.example/d?e=s3cret\"\n\
                    format = \"json-lines\"\nfilters = [\"#\"]\n";
        let source = Source::new(Some(scratch.file("c.toml", text)), Given::default());
        let targets = source.load().unwrap().config.http;
        assert_eq!(heading(&targets[0], Some("p:1")), "1: https://a.example:444/b/api/victron/measurements through the proxy p:1\n");
        assert_eq!(heading(&targets[1], None), "c: https://a.example/d?***\n");
    }

    #[test]
    fn what_ends_it_before_anything_is_posted() {
        let scratch = Scratch::new();
        let bus = format!("[dbus]\naddress = \"unix:path={}\"\n", scratch.path().join("nowhere").display());
        let backend = "[[http]]\nurl = \"http://127.0.0.1:1\"\n[[http]]\nname = \"roof\"\nurl = \"http://127.0.0.1:1\"\n";
        let with_ca = "[[http]]\nurl = \"https://127.0.0.1:1\"\nca_file = \"/nowhere/ca.pem\"\n";
        for (text, name, code, expected) in [
            (bus.clone(), None, CONFIG, "there is no [[http]] in the configuration"),
            ("[[http]]\n".into(), None, CONFIG, ""),
            (with_ca.into(), None, CONFIG, "/nowhere/ca.pem: "),
            (format!("{bus}{backend}"), Some("2"), USAGE, "no [[http]] has the name \"2\"; there are: 1, roof"),
            (format!("{bus}{backend}"), Some("roof"), GONE, "the bus unix:path="),
            (format!("{bus}{backend}"), None, GONE, "the bus unix:path="),
        ] {
            let source = Source::new(Some(scratch.file("c.toml", &text)), Given::default());
            let failed = prepared(&source, name).and_then(|config| run(&config, false)).unwrap_err();
            assert_eq!(failed.code, code, "{text}: {}", failed.text);
            assert!(failed.text.contains(expected), "{text}: {}", failed.text);
        }
    }
}

//! What the players of transcripts share: finding them, going through them, telling which line failed, what is expected, and the words for time.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Where a transcript is played.
pub trait Play: Sized {
    /// What its first lines choose.
    type Chosen: Clone + Default;

    fn choose(chosen: &mut Self::Chosen, setting: &str) -> Result<(), String>;

    fn begin(chosen: Self::Chosen) -> Self;

    fn line(&mut self, line: &str) -> Result<(), String>;

    /// Everything that came was expected.
    fn nothing_left(&self) -> Result<(), String>;
}

/// Plays every transcript in a folder below `tests`, and fails with what is wrong in any of them.
pub fn play_all<Stage: Play>(folder: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|of| of == "txt"));
    files.sort();
    assert!(files.len() > 10, "the transcripts are missing");
    let mut failed = String::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        if let Err(error) = play::<Stage>(&text) {
            writeln!(failed, "{}: {error}", file.display()).unwrap();
        }
    }
    assert!(failed.is_empty(), "\n{failed}");
}

fn play<Stage: Play>(text: &str) -> Result<(), String> {
    let mut stage = None;
    let mut chosen = Stage::Chosen::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = |error: String| format!("line {}: {line}\n    {error}", number + 1);
        if let Some(settings) = line.strip_prefix("setup ") {
            settings.split_whitespace().try_for_each(|setting| Stage::choose(&mut chosen, setting)).map_err(at)?;
            continue;
        }
        stage.get_or_insert_with(|| Stage::begin(chosen.clone())).line(line).map_err(at)?;
    }
    stage.ok_or("nothing happens")?.nothing_left()
}

/// Takes what came first, which must be what is expected.
pub fn expect(queue: &mut VecDeque<String>, expected: &str) -> Result<(), String> {
    match queue.pop_front() {
        Some(came) if is_like(&came, expected) => Ok(()),
        Some(came) => Err(format!("came instead: {came}\n    then: {queue:#?}")),
        None => Err("nothing came".into()),
    }
}

/// Whether a text is what is expected, where a `…` stands for anything.
pub fn is_like(text: &str, expected: &str) -> bool {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut parts: Vec<&str> = expected.split('…').map(str::trim).collect();
    let last = parts.pop().unwrap();
    let Some((first, middle)) = parts.split_first() else { return text == expected };
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// `61s`, `200ms`, `58us`, `15min`, `1h`
pub fn span(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).ok_or("a unit is missing")?);
    let number: u64 = number.parse().map_err(|_| "no number")?;
    match unit {
        "h" => Ok(Duration::from_secs(number * 3600)),
        "min" => Ok(Duration::from_secs(number * 60)),
        "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "us" => Ok(Duration::from_micros(number)),
        _ => Err(format!("no unit: {unit}")),
    }
}

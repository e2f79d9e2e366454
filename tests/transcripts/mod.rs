//! What the players of transcripts share: finding them, telling which line failed, and the words for time.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Plays every transcript in a folder below `tests`, and fails with what is wrong in any of them.
pub fn play_all(folder: &str, play: impl Fn(&str) -> Result<(), String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|of| of == "txt"));
    files.sort();
    assert!(files.len() > 10, "the transcripts are missing");
    let mut failed = String::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        if let Err(error) = play(&text) {
            writeln!(failed, "{}: {error}", file.display()).unwrap();
        }
    }
    assert!(failed.is_empty(), "\n{failed}");
}

/// `61s`, `200ms`
pub fn span(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).ok_or("a unit is missing")?);
    let number: u64 = number.parse().map_err(|_| "no number")?;
    match unit {
        "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        _ => Err(format!("no unit: {unit}")),
    }
}

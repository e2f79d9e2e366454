//! The user's own types of devices: the YAML files of the catalogue folder, read and given to the catalogue.
//!
//! Promises: whatever is in the folder, there is a catalogue; what cannot be used is a message with file, reason and what to do, and
//! costs nothing but itself. Called by the daemon, which logs the messages, and by `cli`, which prints them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::device::catalogue::Catalogue;
use crate::files::{read_bounded, why};

/// Largest file taken, in bytes: a type of 500 items has 50,000.
const FILE_MAX: u64 = 256 << 10;

/// Most files taken.
const FILES_MAX: usize = 64;

/// What ships with the daemon and what the files of `dir` add, and what is wrong with them.
pub fn load(dir: &Path) -> (Catalogue, Vec<String>) {
    let mut catalogue = Catalogue::shipped();
    let (texts, mut messages) = texts(dir);
    for (file, text) in texts {
        messages.extend(catalogue.add_file(&file, &text).iter().map(ToString::to_string));
    }
    (catalogue, messages)
}

/// What can be read of the files of `dir`, by name, and what is wrong with the others. No folder is no mistake.
fn texts(dir: &Path) -> (Vec<(String, String)>, Vec<String>) {
    let mut messages = Vec::new();
    let mut files = match files(dir) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            messages.push(format!(
                "{}: cannot read the folder: {}; make it readable, or correct `catalogue_dir` in [devices]",
                dir.display(),
                why(&error)
            ));
            Vec::new()
        }
    };
    if files.len() > FILES_MAX {
        let first = files.get(FILES_MAX).map(|file| file.display().to_string()).unwrap_or_default();
        messages.push(format!("{}: more than {FILES_MAX} files: {first} and what comes after it is left out; join some", dir.display()));
        files.truncate(FILES_MAX);
    }
    let mut texts = Vec::new();
    for file in files {
        match text(&file) {
            Ok(text) => texts.push((file.display().to_string(), text)),
            Err(message) => messages.push(message),
        }
    }
    (texts, messages)
}

/// The YAML files of `dir`, by name; hidden ones are what editors and copying leave.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml") {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn text(file: &Path) -> Result<String, String> {
    let name = file.display();
    let unreadable = |error: io::Error| format!("{name}: cannot read it: {}; make it readable, or take it away", why(&error));
    let bytes = read_bounded(file, FILE_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => format!("{name}: it is larger than {FILE_MAX} bytes; split it"),
        _ => unreadable(error),
    })?;
    String::from_utf8(bytes).map_err(|_| format!("{name}: not UTF-8; save the file as UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn relative(dir: &Scratch, text: &str) -> String {
        text.replace(&dir.path().display().to_string(), "DIR")
    }

    #[test]
    fn good_types_count_beside_bad_files() {
        let dir = Scratch::new();
        dir.file("a.yml", "rain:\n  Rainfall:\n    min: x\nsnow:\n  Depth:\n");
        dir.file("b.yml", b"\xff");
        let (catalogue, messages) = load(dir.path());
        assert!(catalogue.service_type("snow").is_some() && catalogue.service_type("tank").is_some());
        assert!(catalogue.service_type("rain").is_none());
        let messages: Vec<_> = messages.iter().map(|message| relative(&dir, message)).collect();
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(messages[0].starts_with("DIR/b.yml: ") && messages[1].starts_with("DIR/a.yml:3: "), "{messages:?}");
    }

    #[test]
    fn files_are_taken_by_name_and_bad_ones_are_named() {
        let dir = Scratch::new();
        for (name, content) in [
            ("b.yml", &b"b:"[..]),
            ("a.yaml", b"a:"),
            ("c.txt", b"c:"),
            ("no", b""),
            ("._b.yml", b""),
            ("latin1.yml", b"\xfc"),
            ("z.yml", b""),
        ] {
            dir.file(name, content);
        }
        dir.file("folder.yml/x", "");
        dir.file("large.yml", vec![b'#'; 1 + FILE_MAX as usize]);
        dir.file("largest.yml", vec![b'#'; FILE_MAX as usize]);
        std::os::unix::fs::symlink("/nowhere", dir.path().join("link.yml")).unwrap();
        let (texts, messages) = texts(dir.path());
        let names: Vec<_> = texts.iter().map(|(file, text)| (relative(&dir, file), text.len())).collect();
        let expected = [("DIR/a.yaml", 2), ("DIR/b.yml", 2), ("DIR/largest.yml", FILE_MAX as usize), ("DIR/z.yml", 0)];
        assert_eq!(names, expected.map(|(name, length)| (name.to_owned(), length)));
        assert_eq!(
            messages.iter().map(|message| relative(&dir, message)).collect::<Vec<_>>(),
            [
                "DIR/folder.yml: cannot read it: it is a directory; make it readable, or take it away",
                "DIR/large.yml: it is larger than 262144 bytes; split it",
                "DIR/latin1.yml: not UTF-8; save the file as UTF-8",
                "DIR/link.yml: cannot read it: it is a symbolic link that leads nowhere; make it readable, or take it away",
            ]
        );
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let dir = Scratch::new();
        let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("a.yml")).unwrap();
        let (_, messages) = texts(dir.path());
        assert_eq!(
            messages.iter().map(|message| relative(&dir, message)).collect::<Vec<_>>(),
            ["DIR/a.yml: cannot read it: it is not a regular file, but a socket; make it readable, or take it away"]
        );
    }

    #[test]
    fn no_folder_is_no_mistake_and_a_file_instead_is_one() {
        let dir = Scratch::new();
        assert_eq!(texts(&dir.path().join("none")), (Vec::new(), Vec::new()));
        let file = dir.file("plain", "");
        let (_, messages) = texts(&file);
        let expected = "DIR/plain: cannot read the folder: not a directory; make it readable, or correct `catalogue_dir` in [devices]";
        assert_eq!(messages.iter().map(|message| relative(&dir, message)).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn there_is_an_end_to_files() {
        let dir = Scratch::new();
        for number in 0..FILES_MAX + 2 {
            dir.file(&format!("{number:02}.yml"), "");
        }
        let (texts, messages) = texts(dir.path());
        assert_eq!(texts.len(), FILES_MAX);
        let expected = "DIR: more than 64 files: DIR/64.yml and what comes after it is left out; join some";
        assert_eq!(messages.iter().map(|message| relative(&dir, message)).collect::<Vec<_>>(), [expected]);
    }
}

//! The note of the registered devices on disk: `devices.json` in the state folder. What is in it is the core's business.
//!
//! Promises: the file is the old one or the new one, never a part (written beside, synced, renamed); the loop never waits for the
//! disk; the latest text wins, and flash is spared: one write in five seconds, none for a text that is there already. What cannot be
//! written costs one warning and is tried again once a minute. A folder that another daemon uses is left alone. Called by the daemon;
//! `cli` reads the file when no daemon runs.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::Level;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::bridge::limits::REGISTRY_BYTES;
use crate::files::{self, beside, why};
use crate::log::Repeated;

const FILE: &str = "devices.json";

/// Largest file read or written, in bytes.
pub(crate) const FILE_MAX: u64 = REGISTRY_BYTES as u64;

/// Between two writes: flash wears out, and devices that flap would write for ever.
const PAUSE: Duration = Duration::from_secs(5);

/// Between a write that failed and the next: a full disk does not empty itself.
const RETRY: Duration = Duration::from_secs(60);

/// The file, and what is to be written into it.
pub struct Store {
    file: PathBuf,
    wanted: watch::Sender<Option<Arc<str>>>,
    keeper: JoinHandle<()>,
    /// The folder, locked as long as this lives; `None`: a file system that knows no locks.
    _lock: Option<File>,
    /// Another daemon keeps its devices there: nothing is read and nothing written.
    taken: bool,
}

impl Store {
    /// Makes the last folder of `dir` where it is not there. What cannot be written is said, and tried again later.
    /// Must be called inside a runtime.
    pub fn open(dir: &Path) -> Self {
        Self::with_pauses(dir, PAUSE, RETRY)
    }

    fn with_pauses(dir: &Path, pause: Duration, retry: Duration) -> Self {
        let file = dir.join(FILE);
        let made = make_folder(&file);
        let lock = lock(dir);
        let taken = matches!(lock, Err(TryLockError::WouldBlock));
        let writable = made.and_then(|()| if taken { Ok(()) } else { probe(&file) });
        if taken {
            log::warn!(
                "another daemon keeps its devices in {}: those of this one will be forgotten at the next start; give it a `state_dir` of its own in [devices]",
                dir.display()
            );
        }
        if let Err(error) = &writable {
            log::warn!("{}", forgotten(dir, error));
        }
        let (sender, wanted) = watch::channel(None);
        let keeper = Keeper { file: file.clone(), wanted, pause, retry, failing: writable.is_err(), said: Repeated::new() };
        Self { file, wanted: sender, keeper: tokio::spawn(keeper.run()), _lock: lock.ok(), taken }
    }

    /// What was written last, by an earlier life too. A file that is no text is set aside. Blocks: for the start only.
    pub fn load(&self) -> Option<String> {
        if self.taken {
            return None;
        }
        read_text(&self.file).unwrap_or_else(|error| {
            self.set_aside(&why(&error));
            None
        })
    }

    /// Keeps a file that cannot be used where a person can look at it; the next [`Store::save`] makes a new one.
    pub fn set_aside(&self, reason: &str) {
        let what = format!("the note of the registered devices, {}, cannot be used: {reason}", self.file.display());
        match files::set_aside(&self.file) {
            Ok(corrupt) => log::warn!("{what}; it is now {}, and devices come back when they register again", corrupt.display()),
            Err(error) => log::warn!("{what}; it cannot be renamed either: {}", why(&error)),
        }
    }

    /// Has `text` written soon, in place of whatever waits still.
    pub fn save(&mut self, text: String) {
        if !self.taken {
            self.wanted.send_replace(Some(text.into()));
        }
    }

    /// Writes what waits at once, and returns when it is there or cannot be. Dropped half way, the write goes on.
    pub async fn finish(self) {
        drop(self.wanted);
        // it ends by itself: nobody else holds the other end
        let _ = self.keeper.await;
    }
}

/// What the daemon has written into `dir`; `None`: nothing. Refuses what is too large and what is not UTF-8.
pub fn read(dir: &Path) -> io::Result<Option<String>> {
    read_text(&dir.join(FILE))
}

/// Where the file is.
pub fn file_in(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

fn read_text(file: &Path) -> io::Result<Option<String>> {
    match files::read_own(file, FILE_MAX) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text")),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The task that writes.
struct Keeper {
    file: PathBuf,
    wanted: watch::Receiver<Option<Arc<str>>>,
    pause: Duration,
    retry: Duration,
    /// The last attempt failed, and that was said.
    failing: bool,
    said: Repeated,
}

impl Keeper {
    async fn run(mut self) {
        let mut written = None;
        loop {
            let last = self.wanted.has_changed().is_err();
            let text = self.wanted.borrow_and_update().clone();
            if text != written
                && let Some(text) = text
            {
                let pause = if self.write(Arc::clone(&text)).await {
                    written = Some(text);
                    self.pause
                } else {
                    self.retry
                };
                if last {
                    return;
                }
                // newer text waits, the end does not
                let _ = timeout(pause, closed(&mut self.wanted)).await;
            } else if self.wanted.changed().await.is_err() {
                return;
            }
        }
    }

    async fn write(&mut self, text: Arc<str>) -> bool {
        let file = self.file.clone();
        let result = tokio::task::spawn_blocking(move || replace(&file, &text)).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        match (&result, self.failing) {
            (Ok(()), true) => self.said.say(Level::Info, &format!("registered devices are remembered again, in {}", self.file.display())),
            (Err(error), false) => self.said.say(Level::Warn, &forgotten(&self.file, error)),
            _ => {}
        }
        self.failing = result.is_err();
        !self.failing
    }
}

async fn closed(wanted: &mut watch::Receiver<Option<Arc<str>>>) {
    while wanted.changed().await.is_ok() {}
}

fn forgotten(place: &Path, error: &io::Error) -> String {
    format!(
        "registered devices will be forgotten at the next start: cannot write {}: {}; set `state_dir` in [devices] to a folder that can be written",
        place.display(),
        why(error)
    )
}

fn lock(dir: &Path) -> Result<File, TryLockError> {
    let folder = files::open_folder(dir).map_err(TryLockError::Error)?;
    folder.try_lock().map(|()| folder)
}

/// Whether a file can be made where `file` shall be.
fn probe(file: &Path) -> io::Result<()> {
    let new = beside(file, ".new");
    create(&new)?;
    fs::remove_file(new)
}

/// Brings `text` into `file`, or leaves it as it was.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    if text.len() as u64 > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it would be larger than {FILE_MAX} bytes")));
    }
    if read_text(file).is_ok_and(|old| old.as_deref() == Some(text)) {
        return Ok(());
    }
    make_folder(file)?;
    let new = beside(file, ".new");
    let written = (|| {
        let mut out = create(&new)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&new, file)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&new);
        return written;
    }
    // the rename is in the folder: without this a power cut could undo it
    file.parent().map_or(Ok(()), |folder| files::open_folder(folder)?.sync_all())
}

/// The folder of `file`; what it lies in is for the person to make: a path that was mistyped is no reason for new folders.
fn make_folder(file: &Path) -> io::Result<()> {
    let Some(folder) = file.parent() else { return Ok(()) };
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// An empty file that only we can read, in place of what a life that was cut short has left.
fn create(file: &Path) -> io::Result<File> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => OpenOptions::new().write(true).create_new(true).mode(0o600).open(file),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::files::tests::{in_time, odd_files};
    use crate::scratch::Scratch;

    const LONG: Duration = Duration::from_secs(3600);

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(Duration::from_secs(20), test).await.unwrap() });
    }

    /// Returns when the file holds `text`.
    async fn until(dir: &Path, text: &str) {
        while read(dir).unwrap().as_deref() != Some(text) {
            tokio::task::yield_now().await;
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_saved_is_loaded_and_nobody_else_reads_it() {
        let scratch = Scratch::new();
        let dir = scratch.path().join("state");
        run(async {
            let mut store = Store::open(&dir);
            assert_eq!(store.load(), None);
            store.save("{}".into());
            store.finish().await;
            assert_eq!(Store::open(&dir).load().as_deref(), Some("{}"));
        });
        assert_eq!(names(&dir), ["devices.json"]);
        assert_eq!((mode(&dir), mode(&dir.join("devices.json"))), (0o700, 0o600));
    }

    #[test]
    fn the_first_is_written_at_once_then_the_latest_of_those_that_wait() {
        let dir = Scratch::new();
        run(async {
            let mut store = Store::with_pauses(dir.path(), LONG, LONG);
            store.save("first".into());
            until(dir.path(), "first").await;
            store.save("second".into());
            store.save("third".into());
            store.finish().await;
        });
        assert_eq!(read(dir.path()).unwrap().as_deref(), Some("third"));
    }

    #[test]
    fn between_writes_is_a_pause() {
        let dir = Scratch::new();
        run(async {
            let (sender, wanted) = watch::channel(None);
            let keeper = Keeper { file: file_in(dir.path()), wanted, pause: LONG, retry: LONG, failing: false, said: Repeated::new() };
            let mut keeper = Box::pin(keeper.run());
            sender.send_replace(Some("first".into()));
            tokio::select! {
                () = &mut keeper => panic!("it has ended"),
                () = until(dir.path(), "first") => {}
            }
            sender.send_replace(Some("second".into()));
            assert!(timeout(Duration::from_millis(100), &mut keeper).await.is_err());
            assert_eq!(read(dir.path()).unwrap().as_deref(), Some("first"));
            drop(sender);
            keeper.await;
        });
        assert_eq!(read(dir.path()).unwrap().as_deref(), Some("second"));
    }

    #[test]
    fn after_the_pause_the_latest_goes_out_by_itself() {
        let dir = Scratch::new();
        run(async {
            let mut store = Store::with_pauses(dir.path(), Duration::from_millis(20), LONG);
            for text in ["first", "second", "third"] {
                store.save(text.into());
                until(dir.path(), text).await;
            }
        });
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_is_tried_again() {
        let dir = Scratch::new();
        dir.file("devices.json", "old");
        // nothing can be written beside it
        let blocker = dir.file("devices.json.new/x", "");
        run(async {
            let mut store = Store::with_pauses(dir.path(), LONG, Duration::from_millis(10));
            assert!(replace(&file_in(dir.path()), "new").is_err());
            store.save("new".into());
            tokio::task::yield_now().await;
            assert_eq!(store.load().as_deref(), Some("old"));
            fs::remove_dir_all(blocker.parent().unwrap()).unwrap();
            until(dir.path(), "new").await;
        });
        assert_eq!(names(dir.path()), ["devices.json"]);
    }

    #[test]
    fn what_is_no_file_is_set_aside() {
        for odd in 0..7 {
            in_time(move || {
                let dir = Scratch::new();
                fs::rename(odd_files(&dir).swap_remove(odd), dir.path().join(FILE)).unwrap();
                run(async {
                    let mut store = Store::open(dir.path());
                    assert_eq!(store.load(), None);
                    assert!(dir.path().join("devices.json.corrupt").symlink_metadata().is_ok());
                    store.save("{}".into());
                    store.finish().await;
                });
                assert_eq!(read(dir.path()).unwrap().as_deref(), Some("{}"));
            });
        }
    }

    #[test]
    fn what_is_no_state_folder_is_never_waited_for() {
        for odd in [0, 2, 3, 4, 5, 6] {
            in_time(move || {
                let dir = Scratch::new();
                let odd = odd_files(&dir).swap_remove(odd);
                run(async {
                    let mut store = Store::open(&odd);
                    assert_eq!(store.load(), None);
                    store.save("{}".into());
                    store.finish().await;
                });
                assert!(!odd.is_dir());
            });
        }
    }

    #[test]
    fn a_failed_rename_leaves_nothing_behind() {
        let dir = Scratch::new();
        dir.file("devices.json/x", "");
        assert!(replace(&file_in(dir.path()), "new").is_err());
        assert_eq!(names(dir.path()), ["devices.json"]);
    }

    #[test]
    fn without_a_folder_it_goes_on() {
        let dir = Scratch::new();
        dir.file("plain", "");
        for folder in ["plain", "plain/below", "not/there"] {
            run(async {
                let mut store = Store::open(&dir.path().join(folder));
                store.save("{}".into());
                store.finish().await;
            });
        }
        assert_eq!(names(dir.path()), ["plain"]);
    }

    #[test]
    fn the_folder_of_another_daemon_is_left_alone() {
        let dir = Scratch::new();
        run(async {
            let mut first = Store::open(dir.path());
            first.save("first".into());
            until(dir.path(), "first").await;
            let mut second = Store::open(dir.path());
            assert_eq!(second.load(), None);
            second.save("second".into());
            second.finish().await;
            assert_eq!(first.load().as_deref(), Some("first"));
            first.finish().await;
            assert_eq!(Store::open(dir.path()).load().as_deref(), Some("first"));
        });
    }

    #[test]
    fn a_folder_that_comes_later_is_used() {
        let dir = Scratch::new();
        let state = dir.path().join("mount/state");
        run(async {
            let mut store = Store::with_pauses(&state, LONG, Duration::from_millis(10));
            store.save("{}".into());
            fs::create_dir(dir.path().join("mount")).unwrap();
            until(&state, "{}").await;
        });
    }

    #[test]
    fn what_is_no_text_is_set_aside() {
        let dir = Scratch::new();
        dir.file("devices.json.corrupt", "older");
        for bytes in [b"\xff{}".to_vec(), vec![b' '; 1 + FILE_MAX as usize]] {
            dir.file("devices.json", &bytes);
            run(async { assert_eq!(Store::open(dir.path()).load(), None) });
            assert_eq!(names(dir.path()), ["devices.json.corrupt"]);
            assert!(fs::read(dir.path().join("devices.json.corrupt")).unwrap() == bytes);
        }
    }

    #[test]
    fn the_same_text_is_not_written_again_and_too_much_is_not_written() {
        let dir = Scratch::new();
        let file = file_in(dir.path());
        replace(&file, "{}").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&file, "{}").unwrap();
        assert_eq!(mode(&file), 0o640, "it is the same file");
        replace(&file, "{ }").unwrap();
        assert_eq!(mode(&file), 0o600, "it is a new one");
        let error = replace(&file, &" ".repeat(1 + FILE_MAX as usize)).unwrap_err();
        assert_eq!(error.to_string(), "it would be larger than 1048576 bytes");
        assert_eq!(read(dir.path()).unwrap().as_deref(), Some("{ }"));
    }
}

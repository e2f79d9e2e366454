//! Opens and reads files, whatever is at their paths: a FIFO, a device, a socket, a folder, a symbolic link that leads nowhere, gigabytes.
//!
//! Promises: nothing here waits for another process, and what is no regular file (or no folder, where one is asked for) is an error
//! that says so. Every file and folder of the daemon is opened here: what the configuration names may be reached by symbolic links, what
//! the daemon has made itself may not.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{O_DIRECTORY, O_NOCTTY, O_NOFOLLOW, O_NONBLOCK};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What writes the configuration to a pipe has this long: a loop that reloads it stands still meanwhile.
const PIPE: Duration = Duration::from_secs(2);

/// An I/O error in the words of a message: lower case, without a number, and the same whatever C library the program is built with.
pub(crate) fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::IsADirectory => "it is a directory".into(),
        _ => match error.raw_os_error().map(Errno::from_raw) {
            // one error in another, or one that came after the table was written
            None | Some(Errno::UnknownErrno) => error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase(),
            Some(errno) => errno.desc().to_lowercase(),
        },
    }
}

/// What is in `file`, refused when it is more than `max` bytes.
pub(crate) fn read_bounded(file: &Path, max: u64) -> io::Result<Vec<u8>> {
    read_at_most(open(file)?, max)
}

/// The same of a file that the daemon has made.
pub(crate) fn read_own(file: &Path, max: u64) -> io::Result<Vec<u8>> {
    read_at_most(open_own(file, OpenOptions::new().read(true))?, max)
}

/// The configuration, which may come out of a pipe (`--config <(…)` of a shell) that is written to, and may be `/dev/null`.
pub(crate) fn read_configuration(file: &Path, max: u64) -> io::Result<Vec<u8>> {
    if file == Path::new("/dev/null") {
        return Ok(Vec::new());
    }
    if fs::metadata(file).is_ok_and(|meta| meta.file_type().is_fifo()) {
        return read_pipe(OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(file)?, max);
    }
    read_bounded(file, max)
}

/// What comes out of a pipe until [`PIPE`] is over; refused when that is nothing, because nothing writes to it.
fn read_pipe(file: File, max: u64) -> io::Result<Vec<u8>> {
    let began = Instant::now();
    let (mut bytes, mut pipe) = (Vec::new(), file.take(max + 1));
    loop {
        match pipe.read_to_end(&mut bytes) {
            Ok(_) if bytes.is_empty() => return Err(io::Error::other("it is a named pipe that nothing is written to")),
            Ok(_) if bytes.len() as u64 > max => return Err(too_large(max)),
            Ok(_) => return Ok(bytes),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) => {}
        }
        let left = PollTimeout::try_from(PIPE.saturating_sub(began.elapsed())).unwrap_or(PollTimeout::ZERO);
        if poll(&mut [PollFd::new(pipe.get_ref().as_fd(), PollFlags::POLLIN)], left)? == 0 {
            return Err(io::Error::other(format!(
                "it is a named pipe, and what is written to it does not end within {} s",
                PIPE.as_secs()
            )));
        }
    }
}

fn too_large(max: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {max} bytes"))
}

fn read_at_most(file: File, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(too_large(max));
    }
    Ok(bytes)
}

/// Opens a regular file for reading.
pub(crate) fn open(file: &Path) -> io::Result<File> {
    // opening a device can do something
    match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_symlink() => {
            return Err(io::Error::other("it is a symbolic link that leads nowhere"));
        }
        meta => regular(&meta?)?,
    }
    opened(OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(file)?)
}

/// Opens a regular file that the daemon has made.
pub(crate) fn open_own(file: &Path, options: &mut OpenOptions) -> io::Result<File> {
    regular(&fs::symlink_metadata(file)?)?;
    opened(options.custom_flags(O_NONBLOCK | O_NOCTTY | O_NOFOLLOW).open(file)?)
}

/// Another file may have taken the path since it was looked at.
fn opened(file: File) -> io::Result<File> {
    regular(&file.metadata()?)?;
    Ok(file)
}

fn regular(meta: &Metadata) -> io::Result<()> {
    match meta.file_type() {
        of if of.is_file() => Ok(()),
        of if of.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        of if of.is_fifo() => Err(io::Error::other("it is not a regular file, but a named pipe")),
        of if of.is_symlink() => Err(io::Error::other("it is not a regular file, but a symbolic link")),
        of if of.is_socket() => Err(io::Error::other("it is not a regular file, but a socket")),
        _ => Err(io::Error::other("it is not a regular file, but a device")),
    }
}

/// Opens a folder, to lock it or to bring what is in it to the disk.
pub(crate) fn open_folder(folder: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_DIRECTORY | O_NONBLOCK).open(folder)
}

/// Whether there is something at `path` that is not a folder, nor leads to one.
pub(crate) fn is_no_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_dir()) && !path.is_dir()
}

/// Renames what is in the way where the daemon keeps its own files. Gives its new name.
pub(crate) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = beside(path, ".corrupt");
    fs::rename(path, &aside).map(|()| aside)
}

/// `path` with a suffix.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc;
    use std::time::Duration;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::scratch::Scratch;

    /// What can be where a file is expected, by its name in the folder. None of it is a regular file.
    pub(crate) fn odd_files(dir: &Scratch) -> Vec<PathBuf> {
        let at = |name: &str| dir.path().join(name);
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        fs::create_dir(at("folder")).unwrap();
        drop(UnixListener::bind(at("socket")).unwrap());
        symlink("nowhere", at("dangling")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("fifo", at("to-fifo")).unwrap();
        symlink("/dev/zero", at("device")).unwrap();
        ["fifo", "folder", "socket", "dangling", "loop", "to-fifo", "device"].map(at).to_vec()
    }

    /// Fails when `test` has not ended in time.
    pub(crate) fn in_time<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
        let (ended, ends) = mpsc::channel();
        std::thread::spawn(move || ended.send(test()));
        ends.recv_timeout(Duration::from_secs(30)).expect("it waits for ever, or has failed")
    }

    #[test]
    fn errors_read_alike_with_every_c_library() {
        let os = |errno: Errno| why(&io::Error::from(errno));
        assert_eq!(os(Errno::ENOSPC), "no space left on device");
        assert_eq!(os(Errno::ELOOP), "too many symbolic links encountered");
        assert_eq!(why(&io::Error::other(io::Error::from(Errno::EROFS).to_string())), "read-only file system");
        assert!(why(&io::Error::from_raw_os_error(4000)).contains("error"));
    }

    #[test]
    fn nothing_but_regular_files_is_opened_and_nothing_is_waited_for() {
        in_time(|| {
            let dir = Scratch::new();
            let expected = [
                ("it is not a regular file, but a named pipe", "it is not a regular file, but a named pipe"),
                ("it is a directory", "it is a directory"),
                ("it is not a regular file, but a socket", "it is not a regular file, but a socket"),
                ("it is a symbolic link that leads nowhere", "it is not a regular file, but a symbolic link"),
                ("too many symbolic links encountered", "it is not a regular file, but a symbolic link"),
                ("it is not a regular file, but a named pipe", "it is not a regular file, but a symbolic link"),
                ("it is not a regular file, but a device", "it is not a regular file, but a symbolic link"),
            ];
            for (file, (given, own)) in odd_files(&dir).iter().zip(expected) {
                let said = |result: io::Result<Vec<u8>>| why(&result.unwrap_err());
                assert_eq!((said(read_bounded(file, 10)), said(read_own(file, 10))), (given.into(), own.into()), "{}", file.display());
                assert!(open_own(file, OpenOptions::new().write(true)).is_err());
            }
        });
    }

    #[test]
    fn a_configuration_from_a_pipe() {
        in_time(|| {
            let dir = Scratch::new();
            let fifo = odd_files(&dir).swap_remove(0);
            let read = |max| read_configuration(&fifo, max).map_err(|error| why(&error));
            assert_eq!(read(10), Err("it is a named pipe that nothing is written to".into()));
            let mut writer = File::options().read(true).write(true).open(&fifo).unwrap();
            assert_eq!(read(10), Err("it is a named pipe, and what is written to it does not end within 2 s".into()));
            std::io::Write::write_all(&mut writer, b"0123456789a").unwrap();
            assert_eq!(read(10), Err("it is larger than 10 bytes".into()));
            assert_eq!(read_configuration(Path::new("/dev/null"), 10).unwrap(), b"");
            assert!(read_configuration(Path::new("/dev/zero"), 10).is_err());
        });
    }

    #[test]
    fn the_size_is_bounded() {
        let dir = Scratch::new();
        let file = dir.file("file", "0123456789");
        symlink("file", dir.path().join("link")).unwrap();
        assert_eq!(read_bounded(&dir.path().join("link"), 10).unwrap(), b"0123456789");
        assert_eq!(read_own(&file, 10).unwrap(), b"0123456789");
        assert_eq!(why(&read_bounded(&file, 9).unwrap_err()), "it is larger than 9 bytes");
        let huge = File::options().write(true).open(&file).unwrap();
        huge.set_len(1 << 40).unwrap();
        assert_eq!(why(&read_own(&file, 9).unwrap_err()), "it is larger than 9 bytes");
    }

    #[test]
    fn folders() {
        in_time(|| {
            let dir = Scratch::new();
            symlink("folder", dir.path().join("link")).unwrap();
            for file in odd_files(&dir) {
                assert_eq!(open_folder(&file).is_ok(), file.ends_with("folder"), "{}", file.display());
                assert_eq!(is_no_folder(&file), !file.ends_with("folder"), "{}", file.display());
            }
            assert!(open_folder(&dir.path().join("link")).is_ok());
            assert!(!is_no_folder(&dir.path().join("link")) && !is_no_folder(&dir.path().join("none")));
            let aside = set_aside(&dir.path().join("fifo")).unwrap();
            assert!(aside.ends_with("fifo.corrupt") && aside.exists() && !dir.path().join("fifo").exists());
        });
    }
}

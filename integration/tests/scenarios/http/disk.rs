//! The queue's disk: torn, full, not there.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use venus_mqtt_integration::{Backend, DEADLINE, Part, Rig, Setup, eventually, item, items, parts::Signal};

use super::{FAST, assert_in_order, await_all, await_measured, charger, measured, running, said};

const QUEUE: &str = "state/http/1.victron-measurements";

/// The files of a queue, the newest last.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| size(path) > 0).collect();
    files.sort_by_key(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok());
    files
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |data| data.len())
}

/// Measurements wait, and the bridge is gone.
fn killed_with_a_queue() -> (Rig, Backend, Vec<String>) {
    let backend = Backend::start();
    backend.down();
    let mut rig = running(Setup::default().http(&backend.section(FAST)));
    await_measured(&rig, 10);
    rig.kill(Part::Bridge);
    let stamps = measured(&rig, "1");
    (rig, backend, stamps)
}

/// A power cut in the middle of writing: the rest is cut off, with a line that says so, and everything before is delivered.
#[test]
fn a_torn_end() {
    for garbage in [&b"\x00\x01"[..], &[0xff; 100], &[0; 5000], b"\x10\x00\x00\x00half a record"] {
        let (mut rig, backend, stamps) = killed_with_a_queue();
        let newest = files(&rig.dir().join(QUEUE)).pop().expect("a file");
        let mut file = std::fs::OpenOptions::new().append(true).open(&newest).expect("it can be written");
        file.write_all(garbage).expect("written");
        backend.up();
        rig.start_bridge();
        let name = newest.file_name().and_then(|name| name.to_str()).expect("a name");
        let line = rig.await_log(Part::Bridge, name);
        assert!(line.starts_with("warn: http 1: ") && line.contains(&format!("{} bytes", garbage.len())), "{line}");
        let taken = await_all(&rig, &backend);
        assert_eq!(taken[..stamps.len()], stamps[..], "{garbage:?}");
        assert_in_order(&taken);
    }
}

/// The last record is torn: it is lost, and nothing else.
#[test]
fn a_torn_last_record() {
    let (mut rig, backend, mut stamps) = killed_with_a_queue();
    let newest = files(&rig.dir().join(QUEUE)).pop().expect("a file");
    let file = std::fs::OpenOptions::new().write(true).open(&newest).expect("it can be written");
    file.set_len(size(&newest) - 3).expect("cut");
    // one may have been on disk whose line was not in the log yet
    stamps.pop();
    backend.up();
    rig.start_bridge();
    let taken = backend.wait("what was before", DEADLINE, |requests| {
        let taken = super::firsts(requests);
        stamps.iter().all(|stamp| taken.contains(stamp)).then_some(taken)
    });
    assert_in_order(&taken);
    rig.await_log(Part::Bridge, "warn: http 1");
}

/// Somebody has left other things there.
#[test]
fn a_queue_with_foreign_files() {
    let (mut rig, backend, stamps) = killed_with_a_queue();
    std::fs::write(rig.dir().join(QUEUE).join("README"), "mine").expect("written");
    std::fs::create_dir(rig.dir().join(QUEUE).join("folder")).expect("made");
    backend.up();
    rig.start_bridge();
    assert_eq!(await_all(&rig, &backend)[..stamps.len()], stamps[..]);
    assert!(rig.dir().join(QUEUE).join("README").is_file());
}

/// Online, the flash is left in peace: a record is forgotten a moment after it was appended.
#[test]
fn online_nothing_stays_on_disk() {
    let backend = Backend::start();
    let rig = running(Setup::default().http(&backend.section("update_interval = 0.3\ncatch_up_rate = 1000")));
    backend.await_delivered(5);
    eventually("the queue is empty", DEADLINE, || files(&rig.dir().join(QUEUE)).is_empty().then_some(()));
}

/// A full disk: one line, and it works on from memory; when there is room again, the disk has it all.
#[test]
fn a_full_disk() {
    let backend = Backend::start();
    backend.down();
    let mut rig = Rig::new(Setup::default().disk(64).http(&backend.section(FAST)));
    for n in 0..20 {
        let mut all = charger();
        all.extend(items([("/DeviceInstance", item(n)), ("/Serial", item(format!("HQ{n}")))]));
        rig.fake().add(&format!("com.victronenergy.solarcharger.n{n}"), all);
    }
    rig.start_bridge();
    // a few fit
    await_measured(&rig, 3);
    let filler = rig.bridge_dir("state").join("filler");
    let mut file = std::fs::File::create(&filler).expect("its disk can be written");
    while file.write_all(&[1; 1024]).is_ok() {}
    let line = rig.await_log(Part::Bridge, "warn: http 1: ");
    let full = eventually("a line about the disk", DEADLINE, || said(&rig, "warn: ").into_iter().find(|line| line.contains("space")));
    assert!(full.contains("http 1"), "{line} {full}");
    await_measured(&rig, 15);
    assert_eq!(said(&rig, "warn: ").iter().filter(|line| line.contains("space")).count(), 1, "one line: {:#?}", said(&rig, "warn: "));
    drop(file);
    std::fs::remove_file(&filler).expect("removed");
    await_measured(&rig, 5);
    backend.up();
    assert_in_order(&await_all(&rig, &backend));
    assert_eq!(said(&rig, "dropped").len(), 0);
}

/// Somebody tidies up below it: one line at most for each change, and nothing that was measured is missing from then on.
#[test]
fn the_folder_goes() {
    let backend = Backend::start();
    backend.down();
    let mut rig = running(Setup::default().http(&backend.section(FAST)));
    await_measured(&rig, 5);
    std::fs::remove_dir_all(rig.dir().join("state/http")).expect("removed");
    let since = await_measured(&rig, 1).len();
    await_measured(&rig, 10);
    backend.up();
    let wanted = measured(&rig, "1").split_off(since);
    let taken = backend.wait("what was measured since", DEADLINE, |requests| {
        let taken = super::firsts(requests);
        wanted.iter().all(|stamp| taken.contains(stamp)).then_some(taken)
    });
    assert_in_order(&taken);
    assert!(said(&rig, "warn: ").len() <= 4, "{:#?}", said(&rig, "warn: "));
    rig.stop(Part::Bridge);
}

/// Two that are to share a folder: the second one says so, and neither takes from the other.
#[test]
fn two_with_one_folder() {
    let (first, second) = (Backend::start(), Backend::start());
    first.down();
    second.down();
    let mut rig = running(Setup::default().http(&first.section(FAST)));
    await_measured(&rig, 3);
    let stamps = measured(&rig, "1");
    let config = rig.dir().join("second.toml");
    let text = std::fs::read_to_string(rig.config()).expect("the rig wrote it").replace(&first.url(), &second.url());
    std::fs::write(&config, text).expect("written");
    let log = rig.dir().join("second.log");
    let program = venus_mqtt_integration::parts::binary("VENUS_MQTT_BIN", "venus-mqtt").expect("built");
    let child = std::process::Command::new(program)
        .arg("--config")
        .arg(config)
        .args(["--client-id", "second"])
        .stderr(std::fs::File::create(&log).expect("a file"))
        .spawn();
    let mut child = child.expect("it runs");
    let line = eventually("it says so", DEADLINE, || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.lines().find(|line| line.starts_with("warn: http 1: ")).map(ToOwned::to_owned)
    });
    second.up();
    second.await_delivered(3);
    child.kill().and_then(|()| child.wait()).expect("ended");
    assert!(line.contains("state_dir") || line.contains("another"), "{line}");
    assert!(second.delivered().iter().all(|request| !stamps.contains(&request.stamp())), "it took what was not its own");
    first.up();
    assert_eq!(await_all(&rig, &first)[..stamps.len()], stamps[..]);
    rig.stop(Part::Bridge);
}

/// No place at all: one line, and it works from memory.
#[test]
fn no_disk() {
    let backend = Backend::start();
    backend.down();
    let rig = running(Setup::default().device("state_dir = \"{dir}/bus.conf/state\"").http(&backend.section(FAST)));
    await_measured(&rig, 10);
    let lines: Vec<_> = said(&rig, "warn: http 1: ").into_iter().filter(|line| line.contains("state_dir")).collect();
    assert_eq!(lines.len(), 1, "{:#?}", said(&rig, "warn: "));
    backend.up();
    assert_in_order(&await_all(&rig, &backend));
}

/// Does what the line about the disk says: what was in memory only is on disk afterwards.
#[test]
fn a_folder_that_can_be_written_at_sighup() {
    let backend = Backend::start();
    backend.down();
    let setup = |folder: &str| Setup::default().device(&format!("state_dir = \"{{dir}}/{folder}\"")).http(&backend.section(FAST));
    let mut rig = running(setup("bus.conf/state"));
    await_measured(&rig, 10);
    rig.configure(setup("other"));
    rig.signal(Part::Bridge, Signal::SIGHUP);
    rig.await_log(Part::Bridge, " of an earlier time wait");
    await_measured(&rig, 3);
    rig.kill(Part::Bridge);
    let stamps = measured(&rig, "1");
    assert_eq!(said(&rig, " are lost"), [""; 0]);
    backend.up();
    rig.start_bridge();
    assert_eq!(await_all(&rig, &backend)[..stamps.len()], stamps[..]);
}

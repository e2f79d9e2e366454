//! Root acts on nothing that the daemon's user can put into the state folder, and what root runs lies elsewhere; also on a device
//! that comes from the older layout, in which both shared a folder.

use std::path::Path;

use venus_mqtt_integration::{DEADLINE, Gx, Rig, eventually};

use crate::{
    MINE, TOP, device, package, rig, serves, serves_anew,
    setup::{HOOK, SETUP, install, unpack},
};

/// A device with an installed copy in the older layout, which serves, and a queue of measurements.
fn older(rig: &Rig) -> (Gx, u32) {
    let mut gx = device(rig);
    unpack(&gx);
    gx.copy(&Path::new(TOP).join("integration/tests/packaging/older/venus-mqtt-setup"), "download/venus-mqtt-setup");
    gx.boot();
    install(&gx);
    let first = serves(&gx, rig);
    // its end writes what it persists
    gx.run("rm -r /data/download; kill $(pidof venus-mqtt)");
    let process = serves_anew(&gx, rig, Some(first));
    as_daemon(&gx, "mkdir -p /data/venus-mqtt/http/backend.json-lines && echo kept > /data/venus-mqtt/http/backend.json-lines/1");
    assert!(gx.run("ls -nd /data/venus-mqtt").starts_with("drwxrwx--T"));
    assert!(gx.run("cat /data/rc.local").contains("/data/venus-mqtt/venus-mqtt-setup boot"));
    (gx, process)
}

/// A command by the daemon's user. It has to succeed.
fn as_daemon(gx: &Gx, line: &str) {
    gx.run(&format!("setuidgid venus-mqtt sh -c '{line}'"));
}

fn assert_newer(gx: &Gx, registry: &str) {
    assert_eq!(gx.run("cat /data/rc.local"), format!("#!/bin/sh\n{HOOK}\n"));
    assert_eq!(gx.run("find /data/venus-mqtt-setup ! -user 0 -o -perm -020 -o -perm -002"), "");
    assert!(gx.run("ls -nd /data/venus-mqtt").starts_with("drwx------"));
    assert_eq!(gx.run("find /data/venus-mqtt ! -user 811"), "");
    assert_eq!(gx.run("ls -A /data/venus-mqtt"), "control.sock\ndevices.json\nhttp\n");
    assert_eq!(gx.run("cat /data/venus-mqtt/devices.json"), registry);
    assert_eq!(gx.run("cat /data/venus-mqtt/http/backend.json-lines/1"), "kept\n");
    assert!(gx.run("cat /data/conf/venus-mqtt.toml").starts_with(MINE));
}

/// The older layout becomes the newer one by `step`, and outlives the next firmware update.
fn upgraded(step: impl FnOnce(&mut Gx)) {
    let rig = rig();
    let (mut gx, old) = older(&rig);
    let registry = gx.run("cat /data/venus-mqtt/devices.json");
    step(&mut gx);
    serves_anew(&gx, &rig, Some(old));
    assert_newer(&gx, &registry);
    gx.update_firmware();
    serves(&gx, &rig);
    assert!(gx.run("cat /service/venus-mqtt/run").contains(" /data/venus-mqtt-setup/venus-mqtt\n"));
    assert_newer(&gx, &registry);
}

#[test]
#[ignore = "needs root: integration/test"]
fn an_older_copy_is_upgraded_by_an_installation() {
    upgraded(|gx| {
        unpack(gx);
        install(gx);
    });
}

#[test]
#[ignore = "needs root: integration/test"]
fn an_older_copy_is_upgraded_after_a_firmware_update() {
    upgraded(|gx| {
        gx.update_firmware();
        unpack(gx);
        install(gx);
    });
}

#[test]
#[ignore = "needs root: integration/test"]
fn an_older_copy_is_upgraded_by_the_package() {
    upgraded(|gx| {
        gx.remount_rw();
        let said = gx.dpkg(&format!("--install {}", package("armv7ahf-vfp").display()));
        assert!(said.success, "{}", said.text);
    });
}

/// Nothing is called but `prepare`, by the service that the image has.
#[test]
#[ignore = "needs root: integration/test"]
fn an_older_copy_is_upgraded_by_an_image() {
    upgraded(|gx| gx.update_firmware_with(&package("armv7ahf-vfp")));
}

/// A line that calls the older script and is read after the state folder could have become the daemon's.
#[test]
#[ignore = "needs root: integration/test"]
fn the_folder_stays_root_s_while_an_older_rc_local_runs() {
    let rig = rig();
    let (mut gx, _) = older(&rig);
    let hook = gx.run("tail -n 1 /data/rc.local");
    gx.write("rc.local", &format!("#!/bin/sh\n( until [ -e /run/go ]; do sleep 1; done ) > /dev/null\n{hook}id -u > /run/end\n"));
    gx.update_firmware_without_waiting(&package("armv7ahf-vfp"));
    serves(&gx, &rig);
    assert!(gx.run("cat /data/rc.local").contains(HOOK), "the next boot is by the new script");
    assert!(gx.run("ls -nd /data/venus-mqtt").starts_with("drwxrwx--T    4 0        811 "));
    assert!(!gx.sh("setuidgid venus-mqtt mv /data/venus-mqtt/venus-mqtt-setup /data/venus-mqtt/other").success);
    gx.run(": > /run/go");
    eventually("the older rc.local has ended", DEADLINE, || gx.sh("test -s /run/end").success.then_some(()));
    let (old, _) = gx.process("venus-mqtt").expect("it runs");
    gx.run("kill $(pidof venus-mqtt)");
    serves_anew(&gx, &rig, Some(old));
    assert!(gx.run("ls -nd /data/venus-mqtt").starts_with("drwx------    3 811      811 "));
    assert_eq!(gx.run("ls /data/venus-mqtt"), "control.sock\ndevices.json\nhttp\n");
}

/// The service's older `run` calls the older script at each start, until it is replaced.
#[test]
#[ignore = "needs root: integration/test"]
fn the_folder_stays_root_s_while_the_service_is_the_older_one() {
    let rig = rig();
    let (gx, old) = older(&rig);
    unpack(&gx);
    gx.run("sh /data/download/venus-mqtt-setup prepare");
    assert!(gx.run("ls -nd /data/venus-mqtt").starts_with("drwxrwx--T"));
    assert!(gx.run("cat /data/rc.local").contains(HOOK));
    gx.run("kill $(pidof venus-mqtt)");
    serves_anew(&gx, &rig, Some(old));
}

/// A device on which no service is started any more, and a file and a folder of root's.
fn resting() -> Gx {
    let mut gx = Gx::new();
    unpack(&gx);
    gx.boot();
    install(&gx);
    gx.run(&format!("until svok /service/venus-mqtt; do sleep 0.1; done; kill -STOP $(pidof svscan); {SETUP} stop"));
    gx.run("echo secret > /data/secret; mkdir /data/keep; echo secret > /data/keep/file; chmod 600 /data/secret /data/keep/file");
    gx
}

/// The state folder as it was before, in the older or the newer layout, and empty.
fn reset(gx: &Gx, older: bool) {
    gx.run("rm -rf /data/venus-mqtt; mkdir /data/venus-mqtt");
    gx.run(if older {
        "chown 0:811 /data/venus-mqtt; chmod 1770 /data/venus-mqtt"
    } else {
        "chown 811:811 /data/venus-mqtt; chmod 700 /data/venus-mqtt"
    });
}

/// Root's files are root's, and no script of another has run.
fn assert_untouched(gx: &Gx, what: &str) {
    assert_eq!(gx.run("find /data/secret /data/keep ! -user 0; cat /data/secret /data/keep/file"), "secret\nsecret\n", "{what}");
    assert!(!gx.sh("ls /data/ran").success, "{what}: root ran it");
    assert_eq!(gx.run("find /data/venus-mqtt-setup ! -user 0"), "", "{what}");
    assert!(gx.run("ls -nd /data/venus-mqtt").starts_with("drwx------"), "{what}");
    assert!(gx.run("ls -nd /data/venus-mqtt").contains(" 811      811 "), "{what}");
}

#[test]
#[ignore = "needs root: integration/test"]
fn what_the_daemon_s_user_plants_is_neither_given_away_nor_run() {
    let gx = resting();
    let script = "printf \"#!/bin/sh\\nid -u > /data/ran\\n\" >";
    let plants = [
        "ln -s /data/secret devices.json".to_owned(),
        "mkfifo devices.json http".into(),
        "mkdir devices.json && ln -s /data/secret devices.json/secret".into(),
        "ln -s /data/keep http".into(),
        "mkdir http && ln -s /data/keep http/queue".into(),
        "mkdir -p http/queue && ln -s /data/secret http/queue/1 && mkfifo http/queue/2".into(),
        "ln -s /data/keep service && ln -s /data/keep .new && ln -s /data/secret venus-mqtt.toml".into(),
        "mkfifo venus-mqtt-setup venus-mqtt venus-mqtt.toml service .new".into(),
        "mkdir -p venus-mqtt venus-mqtt.toml && ln -s /data/secret venus-mqtt/venus-mqtt".into(),
        format!("mkdir -p service/log .new/service/log && {script} service/run && {script} .new/service/run && chmod 755 service/run"),
        format!("{script} venus-mqtt-setup && {script} venus-mqtt && chmod 755 venus-mqtt-setup venus-mqtt"),
        format!("mkdir venus-mqtt-setup && {script} venus-mqtt-setup/venus-mqtt-setup && chmod 755 venus-mqtt-setup/venus-mqtt-setup"),
    ];
    // as a kernel lets anybody that does not protect hard links
    let links = [
        "ln /data/secret devices.json",
        "ln /data/secret http",
        "mkdir -p http/queue && ln /data/secret http/queue/1 && chown -h 811 http http/queue",
    ];
    for older in [true, false] {
        let plants = plants.iter().map(|line| (line.as_str(), true)).chain(links.iter().map(|line| (*line, false)));
        for (line, daemon) in plants {
            reset(&gx, older);
            let line = format!("cd /data/venus-mqtt && {line}");
            if daemon {
                as_daemon(&gx, &line);
            } else {
                gx.run(&line);
            }
            // something that is to be handed over, so that root goes through all of it
            gx.run("cd /data/venus-mqtt; [ -e devices.json ] || [ -L devices.json ] || echo > devices.json");
            gx.run(&format!("{SETUP} prepare"));
            assert_untouched(&gx, &line);
            install(&gx);
            assert_untouched(&gx, &line);
        }
    }
}

#[test]
#[ignore = "needs root: integration/test"]
fn nor_is_what_changes_while_root_looks() {
    let gx = resting();
    let change = "cd /data; until [ -e /run/stop ]; do mkdir -p venus-mqtt/venus-mqtt-setup venus-mqtt/service/log venus-mqtt/.new; \
                  rm -rf venus-mqtt/http; ln -s /data/keep venus-mqtt/http; rm -f venus-mqtt/http; mkdir -p venus-mqtt/http/queue; \
                  ln -s /data/secret venus-mqtt/http/queue/1; ln -s /data/secret venus-mqtt/devices.json; rm -f venus-mqtt/devices.json; done";
    // and from within, where the folder around it is of no concern
    let within = "until cd /data/venus-mqtt/http/queue; do :; done; until [ -e /run/stop ]; do ln -s /data/secret 2; rm -f 2; done";
    reset(&gx, true);
    for line in [change, within] {
        gx.run(&format!("setuidgid venus-mqtt sh -c '{line}' > /dev/null 2>&1 &"));
    }
    for _ in 0..20 {
        gx.run("chown 0:811 /data/venus-mqtt; chmod 1770 /data/venus-mqtt; echo > /data/venus-mqtt/left; mv /data/venus-mqtt/left /data/venus-mqtt/devices.json 2> /dev/null || :");
        gx.run(&format!("{SETUP} prepare"));
        assert_untouched(&gx, "prepare");
    }
    for _ in 0..3 {
        gx.run("chown 0:811 /data/venus-mqtt; chmod 1770 /data/venus-mqtt; sh /data/download/venus-mqtt-setup install");
        assert_untouched(&gx, "install");
    }
    gx.run(": > /run/stop");
}

#[test]
#[ignore = "needs root: integration/test"]
fn what_a_run_as_root_has_left_becomes_the_daemon_s() {
    let gx = resting();
    for older in [true, false] {
        reset(&gx, older);
        gx.run("cd /data/venus-mqtt; umask 077; mkdir -p http/queue; echo a > http/queue/1; echo b > devices.json; echo c > other");
        gx.run(&format!("{SETUP} prepare"));
        assert_eq!(gx.run("cd /data/venus-mqtt; find . ! -user 811"), "./other\n");
        as_daemon(&gx, "cd /data/venus-mqtt && cat devices.json http/queue/1 && rm -r http");
    }
}

/// The line was put back, from a backup say.
#[test]
#[ignore = "needs root: integration/test"]
fn a_line_that_leads_into_the_state_folder_does_not_stay() {
    let gx = resting();
    let old = "[ ! -x /data/venus-mqtt/venus-mqtt-setup ] || /data/venus-mqtt/venus-mqtt-setup boot # venus-mqtt";
    for (file, left) in [
        (format!("#!/bin/sh\n{old}\n"), format!("#!/bin/sh\n{HOOK}\n")),
        (format!("{HOOK}\n{old}\necho mine\n"), format!("{HOOK}\necho mine\n")),
        (format!("echo mine\n{old}"), format!("{HOOK}\necho mine\n")),
        (format!("#!/bin/sh\r\n{old}\r\n"), format!("#!/bin/sh\r\n{HOOK}\n")),
        // switched off by its owner
        (format!("#!/bin/sh\n#{old}\n"), format!("#!/bin/sh\n#{old}\n")),
    ] {
        gx.write("rc.local", &file);
        gx.run(&format!("chmod 755 /data/rc.local; {SETUP} prepare"));
        assert_eq!(gx.run("cat /data/rc.local"), left);
    }
    // switched off by the system, which switches it on again
    gx.run("mv /data/rc.local /data/rc.local.disabled");
    gx.write("rc.local.disabled", &format!("#!/bin/sh\necho mine\n{old}\n"));
    gx.run(&format!("{SETUP} prepare"));
    assert_eq!(gx.run("cat /data/rc.local.disabled"), format!("#!/bin/sh\n{HOOK}\necho mine\n"));
    assert!(!gx.data().join("rc.local").exists());
    for file in ["rc.local.disabled", "rc.local"] {
        reset(&gx, true);
        gx.write(file, &format!("#!/bin/sh\n{old} && echo mine\n"));
        assert!(gx.run(&format!("{SETUP} prepare")).contains(&format!("/data/{file} runs something in it")));
        gx.run(&format!("rm /data/{file}"));
    }
    // one of the user's own is theirs to take out
    reset(&gx, true);
    let own = "#!/bin/sh\n/data/venus-mqtt/venus-mqtt check\n";
    gx.write("rc.local", own);
    assert!(gx.run(&format!("{SETUP} prepare")).contains("/data/rc.local runs something in it"));
    assert!(gx.run("cat /data/rc.local; ls -nd /data/venus-mqtt").starts_with(&format!("{own}drwxrwx--T")));
}

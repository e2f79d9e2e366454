//! /data/rc.local in every state that people have: never made worse, and what `install` and `status` say of the next boot is what the
//! next boot does.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use venus_mqtt_integration::Gx;

use crate::setup::{HOOK, OWN_HOOK, SETUP, unpack};

/// The answers, as exit codes.
const YES: &str = "0";
const NO: &str = "1";
const UNKNOWN: &str = "2";

struct State {
    /// What it is called.
    name: &'static str,
    /// Commands that make it.
    made_by: String,
    /// What `install` answers.
    install: &'static str,
    /// What is said.
    said: &'static str,
    /// The command that is named as the way out makes the answer YES.
    mends: bool,
}

fn state(name: &'static str, made_by: impl Into<String>, install: &'static str, said: &'static str) -> State {
    State { name, made_by: made_by.into(), install, said, mends: install == NO }
}

/// With our line within something, which is in the third line or further down, and commands of the owner's around it.
fn inside(name: &'static str, content: String) -> State {
    state(
        name,
        file(&format!("#!/bin/sh\n{RAN}\n{content}{RAN}\n")),
        UNKNOWN,
        "is within something else, or behind a mistake, and is left there",
    )
}

/// A link to a file with this content, in a folder whose name means other things to a shell.
fn odd_name(name: &'static str, content: &str, said: &'static str) -> State {
    let folder = r#"'/data/mine/it'\''s "my \files"'"#;
    let made_by = format!("{}; mkdir -p {folder}; mv /data/rc.local {folder}/rc; ln -s {folder}/rc /data/rc.local", file(content));
    state(name, made_by, NO, said)
}

/// An executable rc.local with this content, as printf takes it.
fn file(content: &str) -> String {
    format!("printf '{}' > /data/rc.local; chmod 755 /data/rc.local", content.replace('%', "%%"))
}

const STARTED: &str = "it is started at each boot by /data/rc.local";
const NO_SHELL: &str = "names no shell that runs, so nothing in it does";
/// A line of the owner's own, which counts how often it runs.
const RAN: &str = "echo >> /run/mine";

fn states() -> Vec<State> {
    let old = "[ ! -x /data/venus-mqtt/venus-mqtt-setup ] || /data/venus-mqtt/venus-mqtt-setup boot # venus-mqtt";
    let former = "[ ! -x /data/venus-mqtt-setup/venus-mqtt-setup ] || /data/venus-mqtt-setup/venus-mqtt-setup boot # venus-mqtt";
    vec![
        state("none", ":", YES, STARTED),
        state("usual", file(&format!("#!/bin/sh\n{RAN}\nexit 0\n")), YES, STARTED),
        state("other rights", format!("{}; chmod 711 /data/rc.local", file(&format!("#!/bin/sh\n{RAN}\n"))), YES, STARTED),
        state("no interpreter", file(&format!("{RAN}\n")), YES, STARTED),
        state("no end of the last line", file(&format!("#!/bin/sh\n{RAN}")), YES, STARTED),
        state("a backslash at the end", file(&format!("#!/bin/sh\n{RAN}\\\\\n")), YES, STARTED),
        state("a backslash and no end", file(&format!("{RAN} \\\\")), YES, STARTED),
        state("nothing but an interpreter", file("#!/bin/sh\n"), YES, STARTED),
        state("nothing but an interpreter, without an end", file("#!/bin/sh"), YES, STARTED),
        state("empty", file(""), YES, STARTED),
        state("blank", file(" \n\t\n\n"), YES, STARTED),
        state("comments", file("# nothing yet\n"), YES, STARTED),
        state("an exit at once", file(&format!("#!/bin/sh\nexit 0\n{RAN}\n")), YES, STARTED),
        state("an exit without an end", file("#!/bin/sh\nexit 0"), YES, STARTED),
        state("set -e", file(&format!("#!/bin/sh -e\n{RAN}\nfalse\nexit 1\n")), YES, STARTED),
        state("set -eux", file(&format!("#! /bin/sh\t-eux \nset -eu\n{RAN}\n")), YES, STARTED),
        state("env", file(&format!("#!/usr/bin/env sh\n{RAN}\n")), YES, STARTED),
        state("busybox", file(&format!("#!/bin/busybox ash\n{RAN}\n")), YES, STARTED),
        state("a shell that is not in PATH", file(&format!("#!/data/shells/bash\n{RAN}\nmine=(1 2)\n{RAN}\n")), YES, STARTED),
        state(
            "a shell that is not in PATH, with our line",
            file(&format!("#!/data/shells/bash -e\n{HOOK}\nmine=(1 2)\n{RAN}\n")),
            YES,
            STARTED,
        ),
        state("env and a path", file(&format!("#!/usr/bin/env /data/shells/bash\n{RAN}\nmine=(1 2)\n{RAN}\n")), YES, STARTED),
        state("a path from the top", file(&format!("#!bin/sh\n{RAN}\n")), YES, STARTED),
        state(
            "a shell that an update takes away",
            format!("{}; cp /data/shells/bash /run/bash", file(&format!("#!/run/bash\n{RAN}\n"))),
            YES,
            "/run/bash, which a firmware update may take away",
        ),
        state("something open at the end", file(&format!("#!/bin/sh\n{RAN}\ncat <<EOF\nhalf\n")), YES, STARTED),
        state("a mistake", file(&format!("#!/bin/sh\n{RAN}\nif true; then\nfi fi (\n")), YES, STARTED),
        state("mixed ends", file(&format!("#!/bin/sh\n{RAN}\r\nexit 0\r\n")), YES, STARTED),
        state("CR LF without an interpreter", file(&format!("{RAN}\r\nexit 0\r\n")), YES, STARTED),
        state("a BOM", file(&format!("\\357\\273\\277#!/bin/sh\n{RAN}\n")), YES, STARTED),
        state("other bytes", file(&format!("#!/bin/sh\n# \\200\\377\\303\n{RAN}\n")), YES, STARTED),
        state("long", format!("{}; yes '# a line of a long file' | head -n 100000 >> /data/rc.local", file("#!/bin/sh\n")), YES, STARTED),
        state(
            "a link",
            format!(
                "{}; mkdir /data/mine; mv /data/rc.local /data/mine/rc; ln -s mine/rc /data/rc.local",
                file(&format!("#!/bin/sh\n{RAN}\n"))
            ),
            YES,
            STARTED,
        ),
        state(
            "of another user",
            format!("{}; chown 65534 /data/rc.local", file(&format!("#!/bin/sh\n{RAN}\n"))),
            YES,
            "chown root:root /data/rc.local",
        ),
        state(
            "writable by others",
            format!("{}; chmod 777 /data/rc.local", file(&format!("#!/bin/sh\n{RAN}\n"))),
            YES,
            "warning: root runs",
        ),
        // lines that are there
        state("our line", file(&format!("#!/bin/sh\n# a comment\n{HOOK}\n{RAN}\n")), YES, STARTED),
        state("our line twice", file(&format!("#!/bin/sh\n{HOOK}\n{RAN}\n{HOOK}\n")), YES, STARTED),
        state("our line with CR LF", file(&format!("#!/bin/sh\n{HOOK}\r\n{RAN}\r\n")), YES, STARTED),
        state("our line of a former version", file(&format!("#!/bin/sh\n{former}\n{RAN}\n")), YES, STARTED),
        state("our line of the older layout", file(&format!("#!/bin/sh\n{RAN}\n{old}\n")), YES, STARTED),
        state("our line behind an exit", file(&format!("#!/bin/sh\n{RAN}\nexit 0\n{HOOK}\n")), YES, STARTED),
        state("our line behind what may not end", file(&format!("#!/bin/sh\nexec sleep 1\n{HOOK}\n")), YES, STARTED),
        state("our line behind a comment with a backslash", file(&format!("#!/bin/sh\n# C:\\\\\n{HOOK}\n{RAN}\n")), YES, STARTED),
        state("our line behind two backslashes", file(&format!("#!/bin/sh\n: C:\\\\\\\\\n{HOOK}\n{RAN}\n")), YES, STARTED),
        // our line as a part of something else
        inside("if", format!("{RAN}\nif [ -f /data/no ]; then\n{HOOK}\nfi\n")),
        inside("else", format!("if true; then\n{RAN}\nelse\n{former}\nfi\n")),
        inside("if, of the older layout", format!("if true; then\n{old}\nfi\n")),
        inside("a function", format!("mq() {{\n{HOOK}\n}}\n")),
        inside("a function of the file", format!("mq()\n{{\n{OWN_HOOK}\n}}\nmq\n")),
        inside("a subshell", format!("(\n{HOOK}\n) &\n")),
        inside("a loop", format!("for turn in 1 2; do\n{RAN}\n{HOOK}\ndone\n")),
        inside("case", format!("case no in\nyes)\n{HOOK}\n;;\nesac\n")),
        inside("a substitution", format!("text=$(\n{HOOK}\n)\n")),
        inside("a text", format!("echo \"\n{HOOK}\n\" > /run/text\n")),
        inside("a here-document", format!("cat > /run/text <<END\n{HOOK}\nEND\n")),
        inside("a here-document with lines of shell", format!("cat > /run/text <<-END\n\tif true; then\n{HOOK}\n\tEND\n")),
        inside("a here-document that does not end", format!("{RAN}\ncat <<END\n{HOOK}\n")),
        inside("&&", format!("test -f /data/no &&\n{HOOK}\n")),
        inside("|| and comments", format!("true || # a comment\n\n# another\n{HOOK}\n")),
        inside("a pipe", format!("true |\n{HOOK}\n")),
        inside("&& and a backslash", format!("test -f /data/no && \\\\\n{HOOK}\n")),
        inside("a command with a backslash", format!("echo \\\\\n{HOOK}\n")),
        inside("a word with a backslash and a sign that is no comment", format!("echo a\\\\\n#b \\\\\n{HOOK}\n")),
        inside("an assignment with a backslash", format!("mine=1 \\\\\n{HOOK}\n")),
        inside("a redirection with a backslash", format!("> /run/text \\\\\n{HOOK}\n")),
        inside("what follows a mistake", format!("{RAN}\nif true; then\nfi fi (\n{HOOK}\n")),
        // not run, or not to be changed
        state(
            "not executable",
            format!("{}; chmod 644 /data/rc.local", file(&format!("#!/bin/sh\n{RAN}\n"))),
            NO,
            "/data/rc.local is not executable",
        ),
        state(
            "not executable, with our line",
            format!("{}; chmod 600 /data/rc.local", file(&format!("#!/bin/sh\n{HOOK}\n{RAN}\n"))),
            NO,
            "is not executable",
        ),
        state("CR LF", file(&format!("#!/bin/sh\r\n{RAN}\r\nexit 0\r\n")), NO, "CR LF"),
        state("CR", file(&format!("#!/bin/sh\r{RAN}\rexit 0\r")), NO, "end in CR (of old Macs)"),
        state("CR with our line", file(&format!("#!/bin/sh -e\r{RAN}\r{HOOK}\r")), NO, "end in CR (of old Macs)"),
        state("CR LF with options", file(&format!("#!/bin/sh -e\r\n{RAN}\r\n")), NO, "CR LF"),
        state(
            "our line commented out",
            file(&format!("#!/bin/sh\n #  {HOOK}\n{RAN}\n")),
            NO,
            "line 2 of /data/rc.local, which starts it, is commented out",
        ),
        State {
            mends: false,
            ..state(
                "our line commented out in a here-document",
                file(&format!("#!/bin/sh\ncat > /run/text <<END\n# {HOOK}\nEND\n{RAN}\n")),
                NO,
                "is commented out\nvenus-mqtt-setup: to change that: take it out by hand",
            )
        },
        state("no such interpreter", file(&format!("#!/bin/zsh\n{RAN}\n")), NO, NO_SHELL),
        State {
            mends: false,
            ..state(
                "no such interpreter, and nothing for /bin/sh",
                file(&format!("#!/bin/zsh\n{RAN}\nfor each (1 2) {RAN}\n")),
                NO,
                "to change that: have that line name a shell",
            )
        },
        state("a folder for a shell", file(&format!("#!/data/shells/folder/sh\n{RAN}\n")), NO, NO_SHELL),
        // the shell that starts rc.local reads it itself, where the kernel does not know what the program is
        state("a shell that does not run", file(&format!("#!/data/shells/dash\n{RAN}\n")), UNKNOWN, "names no shell that runs"),
        state("a shell of the caller's PATH only", file(&format!("#!/usr/bin/env ksh\n{RAN}\n")), NO, NO_SHELL),
        state("a shell in PATH, but not there", file(&format!("#!sh\n{RAN}\n")), NO, NO_SHELL),
        state("no applet", file(&format!("#!/bin/busybox bash\n{RAN}\n")), NO, NO_SHELL),
        state("busybox and no applet", file(&format!("#!/bin/busybox\n{RAN}\n")), NO, NO_SHELL),
        State { mends: false, ..state("a pattern", file(&format!("#!/data/shells/ba*\n{RAN}\n")), NO, "one for `ba*`") },
        state(
            "two options of a shell that is not in PATH",
            file(&format!("#!/data/shells/bash -e -u\n{RAN}\nmine=(1 2)\n{RAN}\n")),
            NO,
            "'1s|.*|#!/data/shells/bash|'",
        ),
        state("two options", file(&format!("#!/bin/sh -e -u\n{RAN}\n")), NO, "more than one word"),
        state("env with an option", file(&format!("#!/usr/bin/env sh -e\n{RAN}\n")), NO, "more than one word"),
        State { mends: false, ..state("another interpreter", file("#!/usr/bin/env python3\nprint(1)\n"), NO, "one for `python3`") },
        state(
            "another interpreter that calls it",
            file("#!/usr/bin/awk -f\nBEGIN { system(\"/data/venus-mqtt-setup/venus-mqtt-setup boot\") }\n"),
            UNKNOWN,
            "cannot be known",
        ),
        state("an option of unknown effect", file(&format!("#!/bin/sh -n\n{RAN}\n")), UNKNOWN, "options of unknown effect"),
        state(
            "a line of one's own",
            file("#!/bin/sh\nsleep 1; /data/venus-mqtt-setup/venus-mqtt-setup boot\n"),
            UNKNOWN,
            "words that are not those of install",
        ),
        state("env with an option of its own", file(&format!("#!/usr/bin/env -S sh -e\n{RAN}\n")), UNKNOWN, "have that line name a shell"),
        state(
            "a line of one's own, which begins with a form feed",
            file("#!/bin/sh\n\\014#[ ] || /data/venus-mqtt-setup/venus-mqtt-setup boot\n"),
            UNKNOWN,
            "words that are not those of install",
        ),
        state("NUL bytes", file("#!/bin/sh\n: \\000\n"), NO, "NUL bytes"),
        state("a program", "cp /bin/busybox /data/rc.local", NO, "NUL bytes"),
        state("UTF-16", file("\\377\\376#\\000!\\000/\\000\n\\000"), NO, "NUL bytes"),
        state(
            "a link to nothing",
            "ln -s /run/media/usb/rc.local /data/rc.local",
            NO,
            "a link to /run/media/usb/rc.local, which is not there",
        ),
        state(
            "a link out of /data",
            "printf '#!/bin/sh\\n' > /run/rc; chmod 755 /run/rc; ln -s /run/rc /data/rc.local",
            NO,
            "a firmware update replaces",
        ),
        state(
            "a link out of /data, to a name with a space",
            "printf '#!/bin/sh\\n' > '/run/my rc'; chmod 755 '/run/my rc'; ln -s '/run/my rc' /data/rc.local",
            NO,
            "cp -p '/run/my rc' /data/rc.local.new",
        ),
        odd_name("CR LF", &format!("#!/bin/sh\r\n{RAN}\r\n"), "CR LF"),
        odd_name("CR", &format!("#!/bin/sh\r{RAN}\r"), "end in CR (of old Macs)"),
        odd_name("two options", &format!("#!/bin/sh -e -u\n{RAN}\n"), "more than one word"),
        odd_name("our line commented out", &format!("#!/bin/sh\n# {HOOK}\n{RAN}\n"), "is commented out"),
        State {
            made_by: format!("{}; chmod o+w /data/mine/*", odd_name("", "#!/bin/sh\n", "").made_by),
            ..odd_name("others may write", "", r#"chown root:root '/data/mine/it'\''s "my \files"' && chmod go-w"#)
        },
        state("a hard link", format!("{}; ln /data/rc.local /data/backup", file(&format!("#!/bin/sh\n{RAN}\n"))), NO, "hard link"),
        state(
            "a link into a folder of others",
            format!("{}; mkdir -m 777 /data/open; mv /data/rc.local /data/open/rc; ln -s open/rc /data/rc.local", file("#!/bin/sh\n")),
            NO,
            "others than root can write to /data/open",
        ),
        state("a folder", "mkdir /data/rc.local", NO, "is not a file"),
        state("a FIFO", "mkfifo /data/rc.local", NO, "is not a file"),
        state(
            "renamed by the system",
            format!("{}; mv /data/rc.local /data/rc.local.disabled", file(&format!("#!/bin/sh\n{RAN}\n"))),
            NO,
            "renamed to /data/rc.local.disabled",
        ),
        State {
            mends: false,
            ..state("modifications off", format!("{}; {OFF}", file(&format!("#!/bin/sh\n{RAN}\n"))), NO, "Modifications enabled")
        },
        State { mends: false, ..state("modifications off, and no file", OFF, NO, "Modifications enabled") },
    ]
}

const OFF: &str =
    "echo '<AllModificationsEnabled type=\"i\" default=\"1\" min=\"0\" max=\"1\">0</AllModificationsEnabled>' > /data/conf/settings.xml";

/// What is to be seen of a file: kind, rights, owner, names, target of the link, and what is in it, without our lines.
fn seen(path: &Path) -> Option<(String, Vec<u8>)> {
    let about = fs::symlink_metadata(path).ok()?;
    let target = fs::read_link(path).ok();
    let Ok(inner) = fs::metadata(path) else { return Some((format!("{target:?}"), Vec::new())) };
    let what = format!("{:o} {:o} {} {} {} {target:?}", about.mode(), inner.mode(), inner.uid(), inner.gid(), inner.nlink());
    Some((what, if inner.is_file() { fs::read(path).unwrap_or_default() } else { Vec::new() }))
}

fn ours() -> [String; 4] {
    let old = "[ ! -x /data/venus-mqtt/venus-mqtt-setup ] || /data/venus-mqtt/venus-mqtt-setup boot # venus-mqtt";
    let former = "[ ! -x /data/venus-mqtt-setup/venus-mqtt-setup ] || /data/venus-mqtt-setup/venus-mqtt-setup boot # venus-mqtt";
    [HOOK.into(), OWN_HOOK.into(), former.into(), old.into()]
}

/// Without our lines.
fn rest(content: &[u8]) -> Vec<u8> {
    let lines = content.split_inclusive(|&byte| byte == b'\n');
    let is_ours = |line: &[u8]| ours().iter().any(|ours| String::from_utf8_lossy(line).trim_end_matches(['\r', '\n']) == ours);
    lines.filter(|line| !is_ours(line)).flatten().copied().collect()
}

fn answer(gx: &Gx, command: &str) -> (String, String) {
    let text = gx.sh(&format!("({command}) 2>&1; echo \"=$?\"")).text;
    let (text, code) = text.trim_end().rsplit_once('=').map(|(text, code)| (text.to_owned(), code.to_owned())).expect("a code");
    (code, text)
}

/// Shells that are not in the PATH of the boot: one that runs, by two names, and what is none.
fn add_shells(gx: &Gx) {
    gx.write("shells/folder/sh/.keep", "");
    gx.copy(Path::new("/bin/bash"), "shells/bash");
    gx.add_libraries(Path::new("/bin/bash")).expect("bash runs in the device");
    gx.write("shells/dash", "\x7fELF of another machine");
    // accepts everything
    gx.write("shells/sh", "#!/bin/true\n");
    for file in ["dash", "sh"] {
        fs::set_permissions(gx.data().join("shells").join(file), fs::Permissions::from_mode(0o755)).expect("its file");
    }
    symlink("bash", gx.data().join("shells/ksh")).expect("a second name");
}

/// The next boot: whether it started the service, and how often the owner's own line ran.
fn next_boot(gx: &mut Gx) -> (bool, usize) {
    gx.reboot();
    (gx.sh("test -x /service/venus-mqtt/run").success, gx.sh("cat /run/mine").text.lines().filter(|line| line.is_empty()).count())
}

/// What the state is made of lies in /run.
fn gone_at_boot(name: &str) -> bool {
    name.contains("out of /data") || name.contains("an update takes away")
}

fn try_all(mut gx: Gx, shell: &str) {
    unpack(&gx);
    add_shells(&gx);
    let path = gx.data().join("rc.local");
    gx.boot();
    let only = std::env::var("STATE").ok();
    for State { name, made_by, install, said, mends } in states() {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let what = format!("{name} ({shell})");
        // for a failure of the device's
        eprintln!("{what}");
        gx.run("rm -rf /data/rc.local* /data/mine /data/open /data/backup /data/conf/settings.xml /run/mine /data/venus-mqtt");
        gx.run(&made_by);
        let before = seen(&path);
        let (_, ran) = next_boot(&mut gx);
        // a boot renames the file
        if name.starts_with("modifications off") || gone_at_boot(name) {
            gx.run(&format!("rm -f /data/rc.local /data/rc.local.disabled; {made_by}"));
        }
        let (code, text) = answer(&gx, "sh /data/download/venus-mqtt-setup install");
        assert!(code == install && text.contains(said), "{what}: install: {code} {text}");
        assert!(text.lines().all(|line| line.starts_with("venus-mqtt-setup: ")), "{what}: {text}");
        assert_eq!(text.contains(STARTED), code == YES, "{what}: {text}");
        if let (Some((was, old)), Some((is, new))) = (&before, &seen(&path)) {
            assert_eq!(was, is, "{what}");
            let same = if code == YES { rest(old).trim_ascii_end() == rest(new).trim_ascii_end() } else { old == new };
            assert!(same, "{what}: {}", String::from_utf8_lossy(new));
        }
        let installed = seen(&path);
        // what its caller has in PATH is nothing to the boot
        let (code, text) = answer(&gx, &format!("PATH=/data/shells:$PATH {SETUP} status"));
        assert!(code == install && text.contains(said), "{what}: status: {code} {text}");
        // what lies in /run is not there after a boot
        if !gone_at_boot(name) {
            let expected = if name.starts_with("modifications off") { 0 } else { ran };
            let (started, ran) = next_boot(&mut gx);
            assert_eq!(ran, expected, "{what}: {text}\n{}", gx.console());
            assert!(code == UNKNOWN || started == (code == YES), "{what}: {text}\n{}", gx.console());
        }
        if mends {
            let way = text.lines().find_map(|line| line.split_once("to change that")?.1.split_once(": ")).expect("a way out").1;
            let (code, text) = answer(&gx, way);
            assert!(code == YES && text.contains(STARTED), "{what}: {way}: {code} {text}");
            assert!(next_boot(&mut gx).0, "{what}: {way}\n{}", gx.console());
            gx.run(&format!("{SETUP} remove"));
            continue;
        }
        let (_, text) = answer(&gx, &format!("{SETUP} remove"));
        let told = if name.contains("older") { "take that line out" } else { "it does nothing from now on" };
        assert!(!said.contains("within something else") || text.contains(told), "{what}: remove: {text}");
        let after = seen(&path);
        if name.contains("our line") && code == YES {
            assert_eq!(before.map(|(was, old)| (was, rest(&old))), after, "{what}: {text}");
        } else if code == YES {
            assert_eq!(before, after, "{what}: {text}");
        } else if !name.contains("modifications") {
            assert_eq!(installed, after, "{what}: {text}");
        }
        assert!(!gx.sh("ls -d /data/rc.local.?????? /data/mine/rc.??????").success, "{what}: left behind");
        assert!(!gx.data().join("venus-mqtt-setup").exists(), "{what}");
    }
}

/// What has come before our line since it was put there.
fn changed() -> Vec<(&'static str, String, &'static str)> {
    let with = |lines: &str| file(&format!("#!/bin/sh\n{lines}{HOOK}\n{RAN}\n"));
    vec![
        ("comments", with("\n# exit 0\n\t# exec sleep 1\n"), YES),
        ("exit", with("true\nexit\n"), NO),
        ("exit with a code", with("if true; then\n    :\nfi\nexit 1 # enough\n"), NO),
        ("exit within if", with("if false; then\nexit 0\nfi\n"), UNKNOWN),
        ("exit within a function", with("quit() {\nexit 0\n}\n"), UNKNOWN),
        ("exit within a subshell", with("(\nexit 0\n)\n"), UNKNOWN),
        ("exit within a text", with("echo \"\nexit 0\n\"\n"), UNKNOWN),
        ("exit within a here-document", with("cat <<END\nexit 0\nEND\n"), UNKNOWN),
        ("exit that belongs to the line before", with("true ||\nexit 0\n"), UNKNOWN),
        ("exit that continues the line before", with("true || \\\\\nexit 0\n"), UNKNOWN),
        ("exit with CR", with("exit\r\n"), UNKNOWN),
        ("exit in an indented line", with("  exit 0\n"), UNKNOWN),
        ("exec", with("exec true\n"), UNKNOWN),
        ("exec of a redirection", with("exec 2>&1\n"), UNKNOWN),
        ("a here-document that has ended, and exit", with("cat <<END\ntext\nEND\nexit 0\n"), NO),
        ("set -e", with("set -e\nfalse\n"), UNKNOWN),
        ("exit and a sign that is no comment", with("exit#0\nexit 0#\n"), UNKNOWN),
        ("a line of CR, and -e", file(&format!("#!/bin/sh -e\n\r\n{HOOK}\n{RAN}\n")), UNKNOWN),
        ("a line of blanks and CR, and -eu", file(&format!("#!/bin/sh -eu\n# mine\n \t\r\n{HOOK}\n{RAN}\n")), UNKNOWN),
        ("a form feed, and -e", file(&format!("#!/bin/sh -e\n\\014\n{HOOK}\n{RAN}\n")), UNKNOWN),
        ("a form feed before a sign that is no comment, and -e", file(&format!("#!/bin/sh -e\n\\014# mine\n{HOOK}\n{RAN}\n")), UNKNOWN),
        ("our line within if, and by itself", with(&format!("if false; then\n{HOOK}\nfi\n")), UNKNOWN),
    ]
}

#[test]
#[ignore = "needs root: integration/test"]
fn what_comes_before_our_line_is_told_and_left_behind() {
    for mut gx in [Gx::new(), Gx::with_bash()] {
        unpack(&gx);
        let path = gx.data().join("rc.local");
        gx.boot();
        gx.run("sh /data/download/venus-mqtt-setup install");
        for (name, made_by, expected) in changed() {
            eprintln!("{name}");
            gx.run(&made_by);
            let (_, before) = seen(&path).expect("written");
            let (code, text) = answer(&gx, &format!("{SETUP} status"));
            assert_eq!(code, expected, "{name}: {text}");
            let (started, ran) = next_boot(&mut gx);
            assert!(code == UNKNOWN || started == (code == YES), "{name}: {text}");
            let (code, text) = answer(&gx, &format!("{SETUP} install"));
            assert!(code == YES, "{name}: {text}");
            assert_eq!(next_boot(&mut gx), (true, ran), "{name}");
            let (_, after) = seen(&path).expect("written");
            assert_eq!(rest(&after), rest(&before), "{name}");
        }
    }
}

#[test]
#[ignore = "needs root: integration/test"]
fn where_data_is_read_only() {
    let mut gx = Gx::new();
    unpack(&gx);
    gx.boot();
    let read_only = "mount -o remount,bind,ro /data";
    gx.run(read_only);
    let (code, text) = answer(&gx, "sh /data/download/venus-mqtt-setup install");
    assert!(code != YES && text.contains("/data/venus-mqtt cannot be made"), "{code} {text}");
    assert!(!gx.data().join("rc.local").exists());
    gx.reboot();
    gx.run("sh /data/download/venus-mqtt-setup install");
    gx.reboot();
    gx.run(read_only);
    let (code, text) = answer(&gx, &format!("{SETUP} status"));
    assert!(code == YES && text.contains(STARTED), "{code} {text}");
    let (code, text) = answer(&gx, &format!("{SETUP} remove"));
    assert!(code != YES && text.contains("nothing is removed"), "{code} {text}");
    assert!(next_boot(&mut gx).0);
}

#[test]
#[ignore = "needs root: integration/test"]
fn a_copy_that_is_not_whole_is_told() {
    let mut gx = Gx::new();
    unpack(&gx);
    gx.boot();
    for file in ["venus-mqtt", "venus-mqtt-setup", "service/run", "service/log/run"] {
        gx.run("sh /data/download/venus-mqtt-setup install");
        gx.run(&format!("rm /data/venus-mqtt-setup/{file}"));
        let (code, text) = answer(&gx, "sh /data/download/venus-mqtt-setup status");
        assert!(code == NO && text.contains("not whole"), "{file}: {code} {text}");
    }
}

#[test]
#[ignore = "needs root: integration/test"]
fn an_installation_is_offered_from_any_folder() {
    let mut gx = Gx::new();
    unpack(&gx);
    gx.boot();
    gx.run("mv /data/download \"/data/it's my download\"");
    let (code, text) = answer(&gx, "cd /data/it*; sh venus-mqtt-setup status");
    let offered = text.split('`').nth(1).unwrap_or_default();
    assert!(code == NO && !offered.is_empty(), "{code} {text}");
    let (code, text) = answer(&gx, offered);
    assert!(code == YES && text.contains(STARTED), "{offered}: {code} {text}");
}

#[test]
#[ignore = "needs root: integration/test"]
fn the_next_boot_does_what_is_said() {
    try_all(Gx::new(), "BusyBox");
}

#[test]
#[ignore = "needs root: integration/test"]
fn so_it_does_where_the_shell_is_bash() {
    try_all(Gx::with_bash(), "bash");
}

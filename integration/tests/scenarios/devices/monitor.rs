//! A reader as dbus-systemcalc is one: a program of its own, over velib's calls (`tests/monitor.py`).

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use venus_mqtt_integration::{DEADLINE, Rig, eventually};

/// Follows one item of all services of a type.
pub struct Monitor {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    pub fn start(rig: &Rig, kind: &str, path: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/monitor.py");
        let mut command = Command::new("/usr/bin/python3");
        let mut child = command.arg(script).args([&rig.bus_address(), kind, path]).stdout(Stdio::piped()).spawn().expect("python3 runs");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (shared, stdout) = (Arc::clone(&lines), child.stdout.take().expect("piped"));
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                shared.lock().expect("nothing panics with it in hand").push(line);
            }
        });
        let monitor = Self { child, lines };
        monitor.await_line("ready");
        monitor
    }

    /// Everything it has said.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("nothing panics with it in hand").clone()
    }

    pub fn await_line(&self, line: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.lines().iter().any(|said| said == line) {
            assert!(Instant::now() < end, "not within {DEADLINE:?}: {line:?} of the monitor, which said {:?}", self.lines());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The sum it has said last.
    pub fn sum(&self) -> Option<String> {
        self.lines().into_iter().rfind(|line| line.starts_with("sum "))
    }

    /// Waits until this is the sum.
    pub fn await_sum(&self, sum: &str) {
        let wanted = format!("sum {sum}");
        eventually(&format!("{wanted:?} of the monitor"), DEADLINE, || (self.sum().as_deref() == Some(&*wanted)).then_some(()));
    }

    /// Forgets what it has said.
    pub fn mark(&self) {
        self.lines.lock().expect("nothing panics with it in hand").clear();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

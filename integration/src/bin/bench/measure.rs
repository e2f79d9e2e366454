//! What /proc tells: CPU time by process in nanoseconds, memory, and what the rest of the machine did meanwhile.

use std::fs;

use crate::clock;

/// CPU seconds of a process, its threads and its children, from the scheduler's own count.
pub fn cpu_seconds(pid: i32) -> f64 {
    family(pid).into_iter().flat_map(tasks).map(|(pid, task)| task_cpu_seconds(&format!("/proc/{pid}/task/{task}"))).sum()
}

/// CPU seconds of one thread of this process.
pub fn thread_cpu_seconds(thread: i32) -> f64 {
    task_cpu_seconds(&format!("/proc/self/task/{thread}"))
}

/// Resident memory of a process and its children, in kB.
pub fn resident_kb(pid: i32) -> f64 {
    let rollup = |pid: i32| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    family(pid).into_iter().map(|pid| field(&rollup(pid), "Rss:")).sum()
}

/// Files, sockets and the like that a process and its children have open.
pub fn open_files(pid: i32) -> usize {
    family(pid).into_iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok()).map(Iterator::count).sum()
}

/// What a process has written so far, in bytes.
#[derive(Clone, Copy)]
pub struct Written {
    /// Handed to write(2) and its like; what goes out with send(2) is not in it.
    pub handed: f64,
    /// On its way to the disk, or there.
    pub dirtied: f64,
    /// Of that, what was cut off or removed before it got there.
    pub cancelled: f64,
}

impl Written {
    pub fn by(pid: i32) -> Self {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        Self { handed: field(&io, "wchar:"), dirtied: field(&io, "write_bytes:"), cancelled: field(&io, "cancelled_write_bytes:") }
    }

    pub fn since(self, before: Self) -> Self {
        Self { handed: self.handed - before.handed, dirtied: self.dirtied - before.dirtied, cancelled: self.cancelled - before.cancelled }
    }
}

/// The process and its descendants.
pub fn family(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    for (pid, task) in tasks(pid) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{task}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|child| child.parse().ok()).flat_map(family));
    }
    all
}

/// The threads of a process, each with the process.
pub fn tasks(pid: i32) -> Vec<(i32, i32)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    entries.filter_map(|entry| Some((pid, entry.ok()?.file_name().to_str()?.parse().ok()?))).collect()
}

/// The machine's CPU time at one moment.
#[derive(Clone, Copy)]
pub struct Machine {
    busy: f64,
    stolen: f64,
    at: f64,
}

impl Machine {
    pub fn now() -> Self {
        let (busy, stolen) = machine_seconds(&fs::read_to_string("/proc/stat").unwrap_or_default());
        Self { busy, stolen, at: clock::now() }
    }

    /// What was used since by others than `ours` seconds of our own, and what the host took; both in % of one CPU.
    pub fn noise_since(&self, ours: f64) -> (f64, f64) {
        let now = Self::now();
        let elapsed = (now.at - self.at).max(1e-3);
        ((now.busy - self.busy - ours) / elapsed * 100.0, (now.stolen - self.stolen) / elapsed * 100.0)
    }
}

/// The kernel counts these in hundredths of a second, on every Linux there is.
const TICKS: f64 = 100.0;

/// Busy and stolen seconds of all CPUs, from /proc/stat.
fn machine_seconds(stat: &str) -> (f64, f64) {
    let fields: Vec<f64> = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let at = |n: usize| fields.get(n).copied().unwrap_or_default() / TICKS;
    ([0, 1, 2, 5, 6].into_iter().map(at).sum(), at(7))
}

fn task_cpu_seconds(task: &str) -> f64 {
    let text = fs::read_to_string(format!("{task}/schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or_default() / 1e9
}

fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_stat_is_split_into_busy_and_stolen() {
        let (busy, stolen) = machine_seconds("cpu  100 200 300 9999 50 10 20 70 0 0\ncpu0 1 2 3\n");
        assert!((busy - 6.3).abs() < 1e-9);
        assert!((stolen - 0.7).abs() < 1e-9);
    }

    #[test]
    fn fields_of_smaps_are_read() {
        assert_eq!(field("x\nRss:               4321 kB\nPss: 1 kB\n", "Rss:"), 4321.0);
        assert_eq!(field("", "Rss:"), 0.0);
    }

    #[test]
    fn this_process_can_be_measured() {
        let me = std::process::id() as i32;
        assert!(resident_kb(me) > 100.0);
        assert!(family(me).contains(&me));
        // not how many: other tests open and close theirs meanwhile
        assert!(open_files(me) >= 3);
    }
}

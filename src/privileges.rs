//! What the process gives up at its start: core dumps, which would hold passwords and keys, and new privileges by exec.
//!
//! Both last until the process ends and apply to its children. Called by `cli` before the configuration is read, while there is one
//! thread.

use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};

/// Sets `RLIMIT_CORE` to 0, soft and hard, and `no_new_privs`. What the system refuses is logged in one warning.
pub fn drop_unneeded() {
    let core = setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| format!("cannot set RLIMIT_CORE to 0: {error}"));
    let privileges = set_no_new_privs().map_err(|error| format!("cannot set no_new_privs: {error}"));
    let refused: Vec<_> = [core, privileges].into_iter().filter_map(Result::err).collect();
    if !refused.is_empty() {
        log::warn!("{}; continuing without", refused.join("; "));
    }
}

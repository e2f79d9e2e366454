//! `venus-mqtt health`: whether the daemon of this configuration is there, as its broker knows. For whoever starts and ends containers.

use std::time::Duration;

use super::{CONFIG, GONE, OK, REFUSED, load, print, say};
use crate::config::Source;
use crate::daemon::{self, Ended, Status};
use crate::log as logger;
use crate::text::escape;

/// Gives the exit code; `patience` is for all of it.
pub(super) fn health(source: &Source, patience: Duration) -> u8 {
    let config = match load(source) {
        Ok(usable) => usable.loaded.config,
        Err(error) => {
            error.to_string().lines().for_each(|line| say("error", line));
            return CONFIG;
        }
    };
    // why there is no connection is told at `warn`
    logger::install(config.log_level.min(log::LevelFilter::Warn));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say("error", &format!("the runtime does not start: {error}"));
            return GONE;
        }
    };
    let asked = runtime.block_on(daemon::status_once(&config, patience));
    // a name that is being looked up would hold the end up
    runtime.shutdown_background();
    let (text, code) = match asked {
        Ok(Status { said: Some(said), .. }) if said == "online" => {
            print("online\n");
            return OK;
        }
        Ok(Status { topic, said: Some(said) }) => (format!("it is not online: {} says \"{}\"", escape(&topic), escape(&said)), REFUSED),
        Ok(Status { topic, said: None }) => (format!("it is not online: nothing is retained on {}", escape(&topic)), REFUSED),
        Err(Ended::Unusable(text)) => (text, CONFIG),
        Err(Ended::Unready(text)) => (text, REFUSED),
        Err(Ended::Stopped | Ended::Reload(_)) => ("it ended early: try again".into(), REFUSED),
    };
    say("error", &text);
    code
}

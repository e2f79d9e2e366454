//! The program as its user sees it: arguments, exit codes, what is printed.
//!
//! [`main`] is all of it, and blocks until the end; the binary only calls it.

mod devices;
mod health;
mod http;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::bridge::name::PortalId;
use crate::bridge::options::Enabled;
use crate::catalogue_files;
use crate::config::{self, At, BusAddress, Config, ConfigError, Given, Loaded, Place, Source};
use crate::daemon::{self, Ended};
use crate::http::Unwritten;
use crate::http::poster::{Poster, PosterError};
use crate::log as logger;
use crate::memory;
use crate::privileges;
use crate::signals::Signals;
use crate::text::escape_to;
use crate::tls::{self, TlsError};

/// Ended politely, or did what it was asked.
pub const OK: u8 = 0;
/// What was asked for was refused, by the daemon or by a backend; or there is no daemon.
pub const REFUSED: u8 = 1;
/// Wrong arguments (`EX_USAGE` of sysexits).
pub const USAGE: u8 = 64;
/// The bus or the environment is gone: the supervisor starts us again (`EX_TEMPFAIL`).
pub const GONE: u8 = 75;
/// Wrong configuration (`EX_CONFIG`).
pub const CONFIG: u8 = 78;

/// Most characters of one message of `check`: two long paths fit.
const MESSAGE_MAX: usize = 10_000;

/// The whole program; gives the exit code. `args` begins with the program's name.
pub fn main(args: impl Iterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // --help and --version come this way too; a closed stdout is nobody's error
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { OK };
        }
    };
    let source = cli.options.source();
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => run(&source),
        Command::Check => check(&source),
        Command::Devices { command: None, json } => devices::list(&source, json),
        Command::Devices { command: Some(DevicesCommand::Forget { id }), json: false } => devices::forget(&source, id),
        Command::Devices { command: Some(DevicesCommand::Forget { .. }), json: true } => {
            say("error", "--json belongs to the list: leave it out beside forget");
            USAGE
        }
        Command::Health { timeout } => health::health(&source, timeout),
        Command::Http { command: HttpCommand::Test { name, show } } => http::test(&source, name.as_deref(), show),
    }
}

const ABOUT: &str = "\
The MQTT interface of Venus OS: every value of a GX device as a topic, on any broker.

Carries the services com.victronenergy.* of the D-Bus to an MQTT broker and back:
N/<portal ID>/<type>/<instance>/<path> tells a value, R/... asks for one, W/...
writes one. Values come while somebody wants them: an empty message on
R/<portal ID>/keepalive wakes them all for 60 seconds.";

/// What a newcomer needs stands before the options.
const TEMPLATE: &str = "\
{about-with-newline}
{usage-heading} {usage}

First steps:
  venus-mqtt check                              is the configuration right, and what is in effect?
  venus-mqtt --host 192.168.1.5                 run it, with the broker on another computer
  mosquitto_sub -h 192.168.1.5 -v -t 'N/#'      see the values, once they are awake:
  mosquitto_pub -h 192.168.1.5 -n -t R/<portal ID>/keepalive

{all-args}{after-help}";

/// A command of its own says less.
const COMMAND_TEMPLATE: &str = "\
{about-with-newline}
{usage-heading} {usage}

{all-args}";

const DEVICES_TEMPLATE: &str = "\
{about-with-newline}
A device publishes one message on device/<client ID>/Status, and is a service of the
system. The daemon that runs is asked; while none runs, its last note is read.

{usage-heading} {usage}

{all-args}{after-help}";

const DEVICES_AFTER_HELP: &str = "\
States:
  connected    it is on the bus
  provisional  it is on the bus, and leaves again unless it is heard of within 5 minutes
  silent       it is registered, but nothing was received for longer than `stale_after`
  waiting      not all of it is on the bus yet: com.victronenergy.settings may not be there
  gone         it has left; its instances and settings are kept for its return

Examples:
  venus-mqtt devices
  venus-mqtt devices --json
  venus-mqtt devices forget fe001";

const FORGET_TEMPLATE: &str = "\
{about-with-newline}
For a device that does not come back. One that does registers as a new one, and may get
other instances: what was set up with the old ones (the GX's screen, VRM) is lost.
The daemon must run: it is the one who frees them.

{usage-heading} {usage}

{all-args}";

const HEALTH_TEMPLATE: &str = "\
{about-with-newline}
The broker keeps `online` for a daemon that serves, on venus-mqtt/<portal ID>/status, and
`offline` for one that has gone. The configuration must be the daemon's own: options that
it was started with are wanted here, too.

{usage-heading} {usage}

{all-args}{after-help}";

const HEALTH_AFTER_HELP: &str = "\
Exit codes:
  0   the daemon is online
  1   it is not, or the broker gives no answer
  64  wrong arguments
  78  wrong configuration";

const HTTP_TEMPLATE: &str = "\
{about-with-newline}
Where measurements are posted to stands in the configuration, one [[http]] for each
backend. The daemon does it, every 30 seconds, and keeps what it cannot deliver.

{usage-heading} {usage}

{all-args}";

const HTTP_TEST_TEMPLATE: &str = "\
{about-with-newline}
The bus is looked at once, and what is measured there is posted to every backend of the
configuration. The daemon need not run, and its queue is left alone: the measurement is
one more, and is not kept when it cannot be delivered.

{usage-heading} {usage}

{all-args}{after-help}";

const HTTP_TEST_AFTER_HELP: &str = "\
Examples:
  venus-mqtt http test
  venus-mqtt http test roof --show

Exit codes:
  0   every measurement was delivered
  1   one was not, or there was nothing to measure
  64  wrong arguments, or no backend of that name
  75  the bus is not there, or the clock is not set
  78  wrong configuration, or no [[http]] in it";

const AFTER_HELP: &str = "\
Configuration, the first that is there:
  the file after --config
  /data/conf/venus-mqtt.toml
  /etc/venus-mqtt/config.toml
  none: the system bus, and the broker on 127.0.0.1:1883
Options given here win over the file. There is more to choose in it: what
`venus-mqtt check` prints is everything in effect, and a file to start from.

Examples:
  venus-mqtt check > venus-mqtt.toml
  venus-mqtt --config ./venus-mqtt.toml
  venus-mqtt devices
  venus-mqtt http test
  venus-mqtt health
  venus-mqtt --host broker.example --ca ca.pem --user boat --password-file password
  venus-mqtt --dbus unix:path=/tmp/bus --port 1884 --portal-id c0619ab1c2d3 --log-level debug

Exit codes:
  0   ended politely, by SIGTERM or SIGINT
  1   the daemon refused what `devices forget` asked, or a backend what `http test` posted;
      or `health` found no daemon online
  64  wrong arguments
  75  the bus is gone, or not there yet: start me again
  78  wrong configuration

Signals:
  SIGTERM, SIGINT  take back what is retained, disconnect, end
  SIGHUP           read the configuration again; the old one stays if it is wrong
  SIGUSR1          write a summary into the log";

#[derive(Parser, Debug)]
#[command(
    name = "venus-mqtt",
    version,
    about = ABOUT,
    after_help = AFTER_HELP,
    help_template = TEMPLATE,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Carry the bus to the broker until told to stop; so does no command at all
    #[command(help_template = COMMAND_TEMPLATE)]
    Run,
    /// Validate the configuration and print what is in effect, secrets hidden
    #[command(help_template = COMMAND_TEMPLATE)]
    Check,
    /// List the devices that have registered themselves, or forget one
    #[command(
        help_template = DEVICES_TEMPLATE,
        after_help = DEVICES_AFTER_HELP,
        disable_help_subcommand = true
    )]
    Devices {
        #[command(subcommand)]
        command: Option<DevicesCommand>,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Say whether the daemon is there, as its broker knows; for health checks of containers
    #[command(help_template = HEALTH_TEMPLATE, after_help = HEALTH_AFTER_HELP)]
    Health {
        /// Longest it may take
        #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = config::patience)]
        timeout: std::time::Duration,
    },
    /// Measurements for HTTP backends: try whether they arrive
    #[command(help_template = HTTP_TEMPLATE, disable_help_subcommand = true)]
    Http {
        #[command(subcommand)]
        command: HttpCommand,
    },
}

#[derive(Subcommand, Debug)]
enum DevicesCommand {
    /// Free the instances and the settings of a device, for good
    #[command(help_template = FORGET_TEMPLATE)]
    Forget {
        /// Client ID of the device, as the list has it
        #[arg(value_name = "CLIENT ID")]
        id: String,
    },
}

#[derive(Subcommand, Debug)]
enum HttpCommand {
    /// Post one measurement now, and say what came back
    #[command(help_template = HTTP_TEST_TEMPLATE, after_help = HTTP_TEST_AFTER_HELP)]
    Test {
        /// Name of the backend, else its number [default: all of them]
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// Print what is posted, too
        #[arg(long)]
        show: bool,
    },
}

#[derive(Args, Debug)]
struct Options {
    /// Configuration file; it must exist
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Bus: auto, system, session or a D-Bus address [default: auto]
    #[arg(long, global = true, value_name = "ADDRESS", value_parser = config::bus_address)]
    dbus: Option<BusAddress>,
    /// Broker's host name or IP address [default: 127.0.0.1]
    #[arg(long, global = true, value_name = "HOST", value_parser = config::host)]
    host: Option<String>,
    /// Broker's port [default: 1883, with TLS 8883]
    #[arg(long, global = true, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// User name at the broker
    #[arg(long, global = true, value_name = "NAME", value_parser = config::user)]
    user: Option<String>,
    /// File whose first line is the password
    #[arg(long, global = true, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Switch TLS on and trust the certificates in this PEM file
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Client ID at the broker [default: venus-mqtt-<portal ID>]
    #[arg(long, global = true, value_name = "ID", value_parser = config::client_id)]
    client_id: Option<String>,
    /// Portal ID of the device [default: found out]
    #[arg(long, global = true, value_name = "ID", value_parser = config::portal_id)]
    portal_id: Option<PortalId>,
    /// Publish values retained [default: true]
    #[arg(long, global = true, value_name = "true|false", hide_possible_values = true)]
    retain: Option<bool>,
    /// How long a keep-alive lasts [default: 60]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = config::keepalive_interval)]
    keepalive_interval: Option<std::time::Duration>,
    /// Serve values; auto: unless dbus-flashmq does [default: auto]
    #[arg(long, global = true, value_name = "auto|true|false", value_parser = config::enabled)]
    bridge: Option<Enabled>,
    /// Where devices and queues are kept [default: /data/venus-mqtt]
    #[arg(long, global = true, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, global = true, value_name = "LEVEL", value_parser = config::log_level)]
    log_level: Option<log::LevelFilter>,
}

impl Options {
    fn source(self) -> Source {
        let flags = Given {
            address: flag(self.dbus, "--dbus"),
            host: flag(self.host, "--host"),
            port: flag(self.port, "--port"),
            user: flag(self.user, "--user"),
            password_file: flag(absolute(self.password_file), "--password-file"),
            ca_file: flag(absolute(self.ca), "--ca"),
            client_id: flag(self.client_id, "--client-id"),
            portal_id: flag(self.portal_id, "--portal-id"),
            retain: flag(self.retain, "--retain"),
            keepalive_interval: flag(self.keepalive_interval, "--keepalive-interval"),
            enabled: flag(self.bridge, "--bridge"),
            state_dir: flag(absolute(self.state_dir), "--state-dir"),
            log_level: flag(self.log_level, "--log-level"),
            ..Given::default()
        };
        Source::new(self.config, flags)
    }
}

fn flag<T>(value: Option<T>, name: &'static str) -> Option<At<T>> {
    let place = Place::Flag(name);
    value.map(|value| At { value, place })
}

fn absolute(path: Option<PathBuf>) -> Option<PathBuf> {
    path.map(|path| std::path::absolute(&path).unwrap_or(path))
}

/// What makes a configuration unusable.
enum LoadError {
    Config(ConfigError),
    Tls(TlsError),
    Http(PosterError),
    /// An address of the bus in the environment.
    Bus(String),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
            Self::Http(error) => error.fmt(f),
            Self::Bus(error) => error.fmt(f),
        }
    }
}

/// A configuration with certificates and keys that work.
struct Usable {
    loaded: Loaded,
    /// What is in the way of measurements, and does not stand in the configuration.
    obstacles: Vec<String>,
}

fn load(source: &Source) -> Result<Usable, LoadError> {
    let loaded = source.load().map_err(LoadError::Config)?;
    daemon::bus_address(&loaded.config.dbus).map_err(LoadError::Bus)?;
    if let Some(tls) = &loaded.config.mqtt.tls {
        tls::client_config(tls).map_err(LoadError::Tls)?;
    }
    let mut obstacles = Vec::new();
    for target in &loaded.config.http {
        let mut poster = Poster::new(target).map_err(LoadError::Http)?;
        obstacles.extend(poster.obstacle().map(|why| format!("http {}: {why}", target.options.name)));
    }
    Ok(Usable { loaded, obstacles })
}

fn check(source: &Source) -> u8 {
    match load(source) {
        Ok(Usable { loaded, obstacles }) => {
            loaded.warnings.iter().for_each(|warning| say("warn", &warning.to_string()));
            obstacles.iter().for_each(|obstacle| say("warn", obstacle));
            let devices = &loaded.config.devices;
            let (catalogue, mistakes) = catalogue_files::load(&devices.catalogue_dir);
            mistakes.iter().for_each(|mistake| say("warn", mistake));
            devices.options.stale_after.unknown_types(&catalogue).iter().for_each(|line| say("warn", line));
            print(&loaded.show());
            OK
        }
        Err(error) => {
            for line in error.to_string().lines() {
                say("error", line);
            }
            CONFIG
        }
    }
}

fn say(level: &str, line: &str) {
    // a closed stderr is nobody's error
    let _ = writeln!(io::stderr(), "{level}: {}", escape_to(line, MESSAGE_MAX));
}

fn print(text: &str) {
    // a closed stdout is nobody's error
    let _ = io::stdout().write_all(text.as_bytes());
}

fn run(source: &Source) -> u8 {
    logger::install(log::LevelFilter::Info);
    privileges::drop_unneeded();
    tls::install_provider();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().max_blocking_threads(memory::THREADS).thread_stack_size(memory::THREAD_STACK);
    let runtime = match runtime.build() {
        Ok(runtime) => runtime,
        Err(error) => return gone(format_args!("the runtime does not start: {error}")),
    };
    // before anything that takes time
    let signals = {
        let _inside = runtime.enter();
        Signals::install()
    };
    let signals = match signals {
        Ok(signals) => signals,
        Err(error) => return gone(format_args!("signals cannot be received: {error}")),
    };
    let config = match load_and_warn(source) {
        Ok(config) => config,
        Err(error) => {
            error.to_string().lines().for_each(|line| log::error!("{line}"));
            return CONFIG;
        }
    };
    // as a task of its own, which is woken without a turn of the driver in between, unlike the future that is blocked on
    let code = runtime.block_on(async { tokio::spawn(serve(source.clone(), config, signals)).await.unwrap_or(GONE) });
    // a name that is being looked up would hold the end up
    runtime.shutdown_background();
    code
}

async fn serve(source: Source, mut config: Config, mut signals: Signals) -> u8 {
    let mut unwritten = Unwritten::default();
    loop {
        logger::set_level(config.log_level);
        match daemon::serve(&config, &mut signals, &mut unwritten, || load_and_warn(&source)).await {
            Ended::Stopped => return OK,
            Ended::Reload(new) => config = *new,
            Ended::Unready(text) => return gone(format_args!("{text}")),
            Ended::Unusable(text) => {
                log::error!("{text}");
                return CONFIG;
            }
        }
    }
}

fn load_and_warn(source: &Source) -> Result<Config, LoadError> {
    let Usable { loaded, obstacles } = load(source)?;
    loaded.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    obstacles.iter().for_each(|obstacle| log::warn!("{obstacle}"));
    Ok(loaded.config)
}

fn gone(text: fmt::Arguments<'_>) -> u8 {
    log::error!("{text}");
    GONE
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["venus-mqtt"].iter().chain(args))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_stand_before_and_after_the_command() {
        for args in [&["--port", "1884"][..], &["run", "--port", "1884"], &["--port", "1884", "run"], &["check", "--port", "1884"]] {
            assert_eq!(parse(args).unwrap().options.port, Some(1884), "{args:?}");
        }
    }

    #[test]
    fn every_flag_is_carried() {
        let args = "--dbus unix:path=/b --host h --port 1 --user u --password-file /p --ca /c --client-id i --portal-id p \
                    --retain false --keepalive-interval 0.5 --bridge false --state-dir /s --log-level trace --config /f";
        let source = parse(&args.split_whitespace().collect::<Vec<_>>()).unwrap().options.source();
        assert_eq!(source.file, Some("/f".into()));
        let mut places = source.flags.places();
        places.sort_unstable();
        let mut flags: Vec<_> = args.split_whitespace().filter(|word| word.starts_with("--") && *word != "--config").collect();
        flags.sort_unstable();
        assert_eq!(places, flags);
    }

    #[test]
    fn refused() {
        for (args, expected) in [
            (&["--port", "0"][..], "invalid value '0' for '--port <PORT>': 0 is not in 1..=65535"),
            (&["--prt", "1"], "unexpected argument '--prt' found"),
            (&["serve"], "unrecognized subcommand 'serve'"),
            (&["--retain", "yes"], "invalid value 'yes' for '--retain <true|false>'"),
            (&["--bridge", "maybe"], "invalid value 'maybe' for '--bridge <auto|true|false>': must be auto, true or false, not \"maybe\""),
            (
                &["--log-level", "loud"],
                "for '--log-level <LEVEL>': must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\", not \"loud\"",
            ),
            (
                &["--keepalive-interval", "0"],
                "for '--keepalive-interval <SECONDS>': must be a number of seconds from 0.1 to 86400, not \"0\"",
            ),
            (&["--portal-id", "a/b"], "for '--portal-id <ID>': a portal ID is"),
            (&["--client-id", "a/b"], "for '--client-id <ID>': must not contain `/`"),
            (&["--host", "tcp://h"], "for '--host <HOST>': write the name alone"),
            (&["--dbus", "nowhere"], "for '--dbus <ADDRESS>': must be \"auto\""),
            (&["--host"], "a value is required for '--host <HOST>'"),
            (&["--host", "a", "--host", "b"], "cannot be used multiple times"),
            (&["http"], "Usage: venus-mqtt http [OPTIONS] <COMMAND>"),
            (&["health", "--timeout", "soon"], "for '--timeout <SECONDS>': must be a number of seconds from 0.1 to 600, not \"soon\""),
            (&["http", "test", "a", "b"], "unexpected argument 'b' found"),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.to_string().contains(expected), "{args:?}: {error}");
        }
    }
}

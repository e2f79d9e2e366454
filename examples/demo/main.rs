//! `cargo run --example demo`: the bridge at work, with nothing installed but Rust.
//!
//! Brings up a D-Bus bus ([`bus`]), an MQTT broker ([`broker`], which says why it is one of our own), a simulated house of 14
//! `com.victronenergy.*` services on connections of their own ([`house`], [`devices`], [`items`], [`service`], [`settings`]) and the bridge:
//! the whole program, as a child process of this same executable. A device of two more services registers itself over MQTT
//! ([`garden`]), and what the solar chargers measure is posted to an HTTP backend ([`backend`]). Then the demo does what a client does: subscribes, sends the keep-alives, and shows the topics as they change
//! ([`client`], [`screen`]). Everything listens on 127.0.0.1 or in a folder of its own, and
//! ends with the demo ([`parts`]), which never outlives Ctrl-C by more than a few seconds. If the demo is killed, its bus dies
//! with it, the bridge then ends by itself, and only its folder in the temporary folder stays.
//!
//! `--once SECONDS` is for tests: the demo looks at itself ([`check`]) and ends.

mod backend;
mod broker;
mod bus;
mod check;
mod client;
mod devices;
mod garden;
mod house;
mod items;
mod parts;
mod screen;
mod service;
mod settings;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use zbus::Connection;

use crate::backend::Backend;
use crate::broker::Broker;
use crate::bus::Bus;
use crate::client::Client;
use crate::garden::Garden;
use crate::house::House;
use crate::parts::{CONFIG, Folder, MEASURE_EVERY, Process, Signals};
use crate::screen::{LINE_EVERY, Screen};

const PORTAL_ID: &str = "c0619ab1c2d3";
/// The house's values move once a second, as those of most devices do.
const STEP: Duration = Duration::from_secs(1);
/// Half of what the bridge allows, so that one lost keep-alive is no harm.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The bridge at work: a bus, a broker, a simulated house and venus-mqtt, in one command. Ctrl-C ends it.
#[derive(Parser)]
#[command(
    name = "demo",
    after_help = "Examples:\n  cargo run --example demo\n  cargo run --example demo -- --port 1884 --quiet\n  cargo run --example demo -- --once 30        # look at itself, then end: exit code 0 or 1"
)]
struct Options {
    /// Port of the broker on 127.0.0.1 [default: 1883, or any free one if that is taken]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The broker in this process, or a Mosquitto found on the PATH
    #[arg(long, value_enum, default_value_t = BrokerKind::InProcess)]
    broker: BrokerKind,
    /// How long a day of the house takes
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(30..=86_400))]
    day: u64,
    /// Do not show the topics and the measurements
    #[arg(long)]
    quiet: bool,
    /// Send no keep-alives: that is up to you, and without any the topics go after a minute
    #[arg(long)]
    no_keep_alive: bool,
    /// Check that it works and end, after SECONDS at most
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    once: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BrokerKind {
    InProcess,
    Mosquitto,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    let mut arguments = arguments.peekable();
    if arguments.next_if(|first| first == "bridge").is_some() {
        return ExitCode::from(venus_mqtt::cli::main(program.into_iter().chain(arguments)));
    }
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.context("cannot start a runtime").and_then(|runtime| runtime.block_on(demo(&options)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(options: &Options) -> anyhow::Result<()> {
    let mut signals = Signals::install()?;
    let folder = Folder::create()?;
    let bus = Bus::start(&folder.join("bus")).await?;
    let (port, mosquitto) = start_broker(options, &folder).await?;
    let mut house = House::new(PORTAL_ID, Duration::from_secs(options.day));
    let expected = check::expected(&mut house);
    let house = move_in(house, &bus.address).await.context("the house did not come up on the bus")?;
    let mut backend = Backend::start().await.context("cannot listen on 127.0.0.1")?;
    let mut bridge = Process::bridge(&folder, PORTAL_ID, &bus.address, port, backend.port)?;

    let ran = tokio::select! {
        () = signals.next() => Ok(()),
        status = bridge.ended() => Err(anyhow::anyhow!("the bridge ended by itself ({})", status?)),
        ran = async {
            let garden = Garden::register(port, Duration::from_secs(options.day)).await.context("the device in the garden did not register")?;
            match options.once {
                Some(seconds) => check::running(port, &expected, garden, &mut backend, Instant::now() + Duration::from_secs(seconds)).await,
                None => tokio::select! {
                    shown = show(options, port, expected.len(), &folder, &mut backend) => shown,
                    ended = garden.live() => ended,
                },
            }
        } => ran,
    };

    // the bridge first: it takes its retained topics from the broker before it goes
    let status = bridge.stop().await?;
    let mut result = ran;
    if result.is_ok() && !status.success() {
        result = Err(anyhow::anyhow!("the bridge ended with {status}"));
    }
    if result.is_ok() && options.once.is_some() {
        result = check::ended(port).await;
    }
    house.abort();
    if let Some(mosquitto) = mosquitto {
        mosquitto.stop().await?;
    }
    bus.stop()?;
    result
}

/// The port, and the process when it is one.
async fn start_broker(options: &Options, folder: &Folder) -> anyhow::Result<(u16, Option<Process>)> {
    let broker = match options.port {
        Some(port) => Broker::bind(port)
            .await
            .with_context(|| format!("cannot listen on 127.0.0.1:{port}: choose another --port, or leave it out"))?,
        None => match Broker::bind(1883).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse => Broker::bind(0).await,
            bound => bound,
        }
        .context("cannot listen on 127.0.0.1")?,
    };
    let port = broker.port()?;
    if options.broker == BrokerKind::Mosquitto {
        drop(broker);
        return Ok((port, Some(Process::mosquitto(folder, port).await?)));
    }
    tokio::spawn(broker.run());
    Ok((port, None))
}

/// Puts every service of the house on the bus, and lets the house live until the task is aborted.
async fn move_in(mut house: House, bus: &str) -> zbus::Result<JoinHandle<()>> {
    let (calls, mut inbox) = mpsc::channel(256);
    let mut connections = Vec::new();
    for (number, service) in house.services().into_iter().enumerate() {
        connections.push(service::connect(bus, service.name, number, calls.clone()).await?);
    }
    Ok(tokio::spawn(async move {
        let mut step = interval_at(Instant::now() + STEP, STEP);
        step.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = step.tick() => house.step(STEP),
                Some((number, call)) = inbox.recv() => {
                    let replied = reply(&mut house, &connections, number, &call).await;
                    if let Err(error) = replied {
                        eprintln!("house  | a call was not answered: {error}");
                    }
                }
            }
            for (service, connection) in house.services().into_iter().zip(&connections) {
                for signal in service::signals(service).unwrap_or_default() {
                    // the bus is gone: so is the demo, soon
                    let _ = connection.send(&signal).await;
                }
            }
        }
    }))
}

async fn reply(house: &mut House, connections: &[Connection], number: usize, call: &zbus::Message) -> zbus::Result<()> {
    let Some(connection) = connections.get(number) else { return Ok(()) };
    let reply = house.services().into_iter().nth(number).and_then(|service| service::answer(service, call).transpose());
    // what was written is obeyed now
    if call.header().member().is_some_and(|member| member == "SetValue") {
        house.step(Duration::ZERO);
    }
    match reply {
        Some(reply) => connection.send(&reply?).await,
        None => Ok(()),
    }
}

/// Does what a client does, until it is stopped.
async fn show(options: &Options, port: u16, items: usize, folder: &Folder, backend: &mut Backend) -> anyhow::Result<()> {
    let mut client = Client::open(port, "demo-client", &["N/#", "device/+/DBus", "device/+/Error"]).await?;
    let mut screen = Screen::default();
    if !options.no_keep_alive {
        first_keep_alives(&mut client, &mut screen, items).await?;
    }
    let mut out = io::stdout();
    out.write_all(explain(options, port, backend.port, screen.len(), &folder.join(CONFIG).display().to_string()).as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write what is shown")?;
    screen.skip();
    let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    let mut line = interval(LINE_EVERY);
    line.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            publish = client.next() => screen.changed(&publish?, Instant::now().into_std()),
            _ = keep_alive.tick(), if !options.no_keep_alive => {
                client.publish(&format!("R/{PORTAL_ID}/keepalive"), r#"{"keepalive-options": ["suppress-republish"]}"#)?;
            }
            Some(measurement) = backend.measurements.recv() => if !options.quiet {
                writeln!(out, "backend | {measurement}").context("cannot write what is shown")?;
            },
            _ = line.tick(), if !options.quiet => screen.write_next().context("cannot write what is shown")?,
        }
    }
}

/// Plain ones, until everything is there: the bridge may still be starting.
async fn first_keep_alives(client: &mut Client, screen: &mut Screen, items: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(15);
    let completed = format!("N/{PORTAL_ID}/full_publish_completed");
    while screen.len() < items {
        if Instant::now() > deadline {
            bail!("{} of {items} items are there after 15 s of keep-alives", screen.len());
        }
        client.publish(&format!("R/{PORTAL_ID}/keepalive"), "")?;
        let answer = client.until(Instant::now() + STEP, |topic, publish| {
            screen.changed(publish, Instant::now().into_std());
            topic == completed && screen.len() >= items
        });
        if answer.await.is_ok() {
            break;
        }
    }
    Ok(())
}

fn explain(options: &Options, port: u16, backend: u16, topics: usize, config: &str) -> String {
    let port = if port == 1883 { String::new() } else { format!(" -p {port}") };
    let keep_alive = if options.no_keep_alive {
        "Nothing keeps it alive: send a keep-alive (below), or there is nothing to see.".to_owned()
    } else {
        format!("{topics} topics of 16 services are on the broker; the demo keeps them alive.")
    };
    let below = if options.quiet { "" } else { "\nThe latest changes, a few a second:\n" };
    format!(
        r#"
The bridge is running. {keep_alive}
With mosquitto_sub and mosquitto_pub (Debian: apt install mosquitto-clients), in another terminal:

  see everything           mosquitto_sub{port} -v -t 'N/{PORTAL_ID}/#'
  keep alive for 60 s      mosquitto_pub{port} -t R/{PORTAL_ID}/keepalive -n
  only some of it          mosquitto_pub{port} -t R/{PORTAL_ID}/keepalive -m '["vebus/#", "tank/+/Level"]'
  read one value           mosquitto_pub{port} -t R/{PORTAL_ID}/battery/512/Soc -n
  charge the car           mosquitto_pub{port} -t W/{PORTAL_ID}/evcharger/40/StartStop -m '{{"value": 1}}'
  limit the grid to 6 A    mosquitto_pub{port} -t W/{PORTAL_ID}/vebus/276/Ac/ActiveIn/CurrentLimit -m '{{"value": 6}}'
  inverter off (on: 3)     mosquitto_pub{port} -t W/{PORTAL_ID}/vebus/276/Mode -m '{{"value": 4}}'
  fill the water tank      mosquitto_pub{port} -t W/{PORTAL_ID}/system/0/Relay/0/State -m '{{"value": 1}}'

Two of the services are a device in the garden that registered itself over MQTT. So can yours, temperature sensor `fe001`:

  hear its answers         mosquitto_sub{port} -v -t 'device/fe001/+'
  register it              mosquitto_pub{port} -t device/fe001/Status -m '{{"clientId": "fe001", "connected": 1, "version": "v1.0", "services": {{"t1": "temperature"}}}}'
  write a value            mosquitto_pub{port} -t device/fe001/Proxy -m '{{"t1": {{"Temperature": 21.5}}}}'
  the same (see answer)    mosquitto_pub{port} -t W/{PORTAL_ID}/temperature/2/Temperature -m '{{"value": 22.5}}'
  another number           mosquitto_pub{port} -t W/{PORTAL_ID}/settings/0/Settings/Devices/mqtt_fe001_t1/ClassAndVrmInstance -m '{{"value": "temperature:7"}}'
  it leaves                mosquitto_pub{port} -t device/fe001/Status -m '{{"clientId": "fe001", "connected": 0}}'
  all devices              cargo run -q -- devices --config {config}
  and its number is free   cargo run -q -- devices --config {config} forget fe001

Every {every} seconds what the solar chargers measure is posted to an HTTP backend (in the demo too: `backend |`).

  how that goes            mosquitto_sub{port} -v -t venus-mqtt/{PORTAL_ID}/http/1
  one measurement by hand  cargo run -q -- http test --config {config}
  the backend is down      curl -X POST http://127.0.0.1:{backend}/down
  and up again             curl -X POST http://127.0.0.1:{backend}/up

While it is down, `queued` grows. The bridge tries again after 5 s, then 10 s, 20 s and so on; once it is up, all that waits
arrives, in order, each with the time at which it was measured.

A day takes {} seconds here. Ctrl-C ends everything.
{below}"#,
        options.day,
        every = MEASURE_EVERY.as_secs(),
    )
}

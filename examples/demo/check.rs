//! The demo looks at itself (`--once`): is everything on the bus a topic, do the values move, are R and W answered, has
//! the device in the garden registered, do measurements arrive, are the topics retained, are they gone when their device or the bridge has ended? One line for each; the first that fails ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, timeout_at};

use crate::PORTAL_ID;
use crate::backend::Backend;
use crate::client::Client;
use crate::garden::Garden;
use crate::house::House;

/// Between two keep-alives while the bridge is still starting.
const AGAIN: Duration = Duration::from_millis(500);
const MOVING: usize = 40;
/// Stay whatever happens: by them a client finds the system.
const STAY: [&str; 2] = ["keepalive", "system/0/Serial"];

/// Every topic that the house must have.
pub fn expected(house: &mut House) -> BTreeSet<String> {
    let mut topics = BTreeSet::new();
    for service in house.services() {
        let kind = service.name.split('.').nth(2).unwrap_or_default();
        let instance = service.number("/DeviceInstance");
        topics.extend(service.iter().map(|(path, _)| format!("N/{PORTAL_ID}/{kind}/{instance}{path}")));
    }
    topics
}

/// While the bridge runs. How it went stands in what is printed and in the error.
pub async fn running(
    port: u16,
    expected: &BTreeSet<String>,
    garden: Garden,
    backend: &mut Backend,
    deadline: Instant,
) -> anyhow::Result<()> {
    let mut client = Client::open(port, "demo-check", &["N/#"]).await?;
    let mut values = BTreeMap::new();
    everything(&mut client, expected, &mut values, deadline).await?;
    println!("ok  a keep-alive brought all {} items of the house", expected.len());

    let password = format!("N/{PORTAL_ID}/settings/0/Settings/Services/AccessPointPassword");
    if values.get(&password).map(String::as_str) != Some(r#"{"value":"******"}"#) {
        bail!("{password} shows {:?}", values.get(&password));
    }
    println!("ok  the access point's password is not among them");

    let mut moved = BTreeSet::new();
    client
        .until(deadline, |topic, publish| {
            if values.get(topic).is_some_and(|before| before.as_bytes() != publish.payload) {
                moved.insert(topic.to_owned());
            }
            moved.len() >= MOVING
        })
        .await
        .with_context(|| format!("wanted {MOVING} topics that change, saw {}", moved.len()))?;
    println!("ok  {} topics changed by themselves", moved.len());

    let relay = format!("{PORTAL_ID}/system/0/Relay/0/State");
    client.publish(&format!("W/{relay}"), r#"{"value": 1}"#)?;
    let shown = format!("N/{relay}");
    let on = |payload: &[u8]| payload.starts_with(br#"{"value":1,"#) || payload == br#"{"value":1}"#;
    client.until(deadline, |topic, publish| topic == shown && on(&publish.payload)).await.context("a write was not answered")?;
    println!("ok  W/{relay} switched the relay");

    client.publish(&format!("R/{PORTAL_ID}/battery/512/CustomName"), "")?;
    let name = format!("N/{PORTAL_ID}/battery/512/CustomName");
    client.until(deadline, |topic, _| topic == name).await.context("a read was not answered")?;
    println!("ok  R/{PORTAL_ID}/battery/512/CustomName was answered");

    let [air, rain] = ["air", "rain"].map(|service| garden.answer().topic(service, "N").to_owned());
    println!("ok  device/garden/DBus gave the device in the garden {air} and {rain}");

    let living = tokio::spawn(garden.live());
    let measured = [format!("{air}/Temperature"), format!("{rain}/Level")];
    let mut missing: BTreeSet<_> = measured.iter().map(String::as_str).collect();
    for topic in &measured {
        client.publish(&topic.replacen('N', "R", 1), "")?;
    }
    let is_number = |payload: &[u8]| payload.strip_prefix(br#"{"value":"#).is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit));
    client
        .until(deadline, |topic, publish| {
            if is_number(&publish.payload) {
                missing.remove(topic);
            }
            missing.is_empty()
        })
        .await
        .with_context(|| format!("no value of the device in the garden at {missing:?}"))?;
    println!("ok  what it wrote with W and through the proxy is at {}", measured.join(" and "));

    let retained = retained(port, deadline).await?;
    let missing: Vec<_> = expected.iter().filter(|topic| !retained.contains(*topic)).collect();
    if !missing.is_empty() {
        bail!("not retained: {missing:?}");
    }
    println!("ok  a second subscriber got {} retained topics", retained.len());

    living.abort();
    let mut left: BTreeSet<_> = measured.iter().map(String::as_str).collect();
    client
        .until(deadline, |topic, publish| {
            if publish.payload.is_empty() {
                left.remove(topic);
            }
            left.is_empty()
        })
        .await
        .with_context(|| format!("after the last will of the device in the garden there still is {left:?}"))?;
    println!("ok  its last will took it off the bus");
    measurement(backend, expected, deadline).await
}

/// After the bridge has ended: nothing that it published is left, but for the two that stay.
pub async fn ended(port: u16) -> anyhow::Result<()> {
    let left = retained(port, Instant::now() + Duration::from_secs(5)).await?;
    let stay = STAY.map(|topic| format!("N/{PORTAL_ID}/{topic}")).into();
    if left != stay {
        bail!("retained after the bridge has ended: {left:?} instead of {stay:?}");
    }
    println!("ok  it left nothing retained but {}", STAY.join(" and "));
    Ok(())
}

/// One of all solar chargers has arrived, or does.
async fn measurement(backend: &mut Backend, expected: &BTreeSet<String>, deadline: Instant) -> anyhow::Result<()> {
    let prefix = format!("N/{PORTAL_ID}/solarcharger/");
    let instance = |topic: &String| topic.strip_prefix(&prefix)?.split('/').next()?.parse().ok();
    let chargers: BTreeSet<i64> = expected.iter().filter_map(instance).collect();
    let mut last = None;
    loop {
        let Ok(Some(measurement)) = timeout_at(deadline, backend.measurements.recv()).await else {
            let last = last.map_or_else(|| "none".into(), |last| format!("{last}"));
            bail!("no measurement of the solar chargers {chargers:?} at the backend; the last that arrived: {last}");
        };
        if chargers.iter().all(|instance| measurement.has(*instance)) {
            println!("ok  the backend has a measurement: {measurement}");
            return Ok(());
        }
        last = Some(measurement);
    }
}

async fn everything(
    client: &mut Client,
    expected: &BTreeSet<String>,
    values: &mut BTreeMap<String, String>,
    deadline: Instant,
) -> anyhow::Result<()> {
    let completed = format!("N/{PORTAL_ID}/full_publish_completed");
    loop {
        client.publish(&format!("R/{PORTAL_ID}/keepalive"), "")?;
        let again = deadline.min(Instant::now() + AGAIN);
        let answered = client
            .until(again, |topic, publish| {
                values.insert(topic.to_owned(), String::from_utf8_lossy(&publish.payload).into_owned());
                topic == completed
            })
            .await;
        let missing: Vec<_> = expected.iter().filter(|topic| !values.contains_key(*topic)).collect();
        match answered {
            Ok(()) if missing.is_empty() => return Ok(()),
            _ if Instant::now() < deadline => {}
            Ok(()) => bail!("no value of {} items: {missing:?}", missing.len()),
            Err(_) => bail!("no answer to a keep-alive; {} topics are missing", missing.len()),
        }
        tokio::time::sleep_until(again).await;
    }
}

/// The topics that a new subscriber is given at once.
async fn retained(port: u16, deadline: Instant) -> anyhow::Result<BTreeSet<String>> {
    let mut client = Client::open(port, "demo-second", &["N/#", "demo/marker"]).await?;
    client.publish("demo/marker", "")?;
    let mut topics = BTreeSet::new();
    client
        .until(deadline, |topic, publish| {
            if publish.retain {
                topics.insert(topic.to_owned());
            }
            topic == "demo/marker"
        })
        .await?;
    Ok(topics)
}

//! The orders: `org.venusmqtt.Fake`. Called by the loop for every call on the control connection.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use venus_mqtt_integration::items::Items;
use zbus::{DynamicType, Message, OwnedVariant};

use crate::{
    House, own,
    service::{Service, send},
};

/// Does what the call says and answers it; an order that makes no sense is answered with an error that says why.
pub async fn obey(house: &mut House, call: &Message) -> Result<()> {
    let reply = match order(house, call).await {
        Ok(reply) => reply,
        Err(error) => Message::error(&call.header(), "org.venusmqtt.Fake.Error").build(&(format!("{error:#}"),))?,
    };
    send(&house.control, &reply).await;
    Ok(())
}

async fn order(house: &mut House, call: &Message) -> Result<Message> {
    let header = call.header();
    let member = header.member().context("a call without a member")?.as_str();
    let body = call.body();
    match member {
        "AddService" => {
            let (handle, style, items): (String, String, Items) = body.deserialize()?;
            let name = handle.split('#').next().unwrap_or_default().to_owned();
            let connection = house.connect(&handle).await?;
            let service = Service::new(connection.clone(), &style, items)?;
            // items first, name last: whoever sees the name may call at once
            house.services.insert(handle, service);
            own(&connection, &name, 1 | 2 | 4).await?;
            answer(call, &())
        }
        "AddHidden" => {
            let (handle, items): (String, Items) = body.deserialize()?;
            service(house, &handle)?.hidden.extend(items);
            answer(call, &())
        }
        "RemoveService" => {
            let handle: String = body.deserialize()?;
            let service = house.services.remove(&handle).with_context(|| unknown(&handle))?;
            service.close().await;
            answer(call, &())
        }
        "Rename" => {
            let (handle, name, take): (String, String, bool) = body.deserialize()?;
            let connection = service(house, &handle)?.connection.clone();
            if take {
                own(&connection, &name, 1 | 2 | 4).await?;
            } else {
                let bus = "org.freedesktop.DBus";
                connection.call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "ReleaseName", &name).await?;
            }
            answer(call, &())
        }
        "Change" => {
            let (handle, how, entries): (String, String, Items) = body.deserialize()?;
            service(house, &handle)?.change(&how, entries).await?;
            answer(call, &())
        }
        "Raw" => {
            let (handle, path, signal, value): (String, String, String, OwnedVariant) = body.deserialize()?;
            service(house, &handle)?.raw(&path, &signal, value).await?;
            answer(call, &())
        }
        "Flood" => {
            let (handle, paths, signals, every): (String, Vec<String>, u32, u32) = body.deserialize()?;
            service(house, &handle)?;
            house.flood(handle, paths, signals, Duration::from_micros(every.max(1).into()));
            answer(call, &())
        }
        "Behave" => {
            let (handle, what, mode): (String, String, String) = body.deserialize()?;
            service(house, &handle)?.behave(&what, &mode);
            answer(call, &())
        }
        "Release" => {
            let handle: String = body.deserialize()?;
            let released = service(house, &handle)?.release().await?;
            answer(call, &released)
        }
        "Calls" => {
            let handle: String = body.deserialize()?;
            answer(call, &service(house, &handle)?.calls())
        }
        "Owner" => {
            let handle: String = body.deserialize()?;
            let connection = &service(house, &handle)?.connection;
            answer(call, &connection.unique_name().map(|name| name.to_string()).unwrap_or_default())
        }
        other => bail!("no method {other} here"),
    }
}

fn service<'a>(house: &'a mut House, handle: &str) -> Result<&'a mut Service> {
    house.services.get_mut(handle).with_context(|| unknown(handle))
}

fn unknown(handle: &str) -> String {
    format!("no service {handle}: it was never added, or has died")
}

fn answer(call: &Message, body: &(impl Serialize + DynamicType)) -> Result<Message> {
    Ok(Message::method_return(&call.header()).build(body)?)
}

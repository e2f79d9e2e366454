//! The pure rooms stay pure: no input or output, no clock, no runtime, none of the libraries of the edges.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

const PURE: [&str; 4] = ["src/bridge", "src/device", "src/measure", "src/text.rs"];
const FORBIDDEN: [&str; 14] = [
    "tokio",
    "zbus",
    "rumqttc",
    "rustls",
    "nix::",
    "signal_hook",
    "std::net",
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "SystemTime",
    "Instant",
];

#[test]
fn pure_rooms_import_nothing_of_the_edges() {
    let mut looked_at = 0;
    let mut found = Vec::new();
    for room in PURE {
        visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join(room), &mut |path, text| {
            looked_at += 1;
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for word in FORBIDDEN.iter().filter(|word| code.contains(**word)) {
                    found.push(format!("{}:{}: {word}", path.display(), number + 1));
                }
            }
        });
    }
    assert!(looked_at > 10, "the rooms have moved");
    assert!(found.is_empty(), "{found:#?}");
}

/// Rooms use each other in one direction: what is inside never names what is outside.
#[test]
fn arrows_point_inwards() {
    let edges = ["bus", "mqtt", "http", "daemon", "config", "cli", "portal", "signals", "log", "store", "control", "catalogue_files"];
    let forbidden = [
        ("src/bridge", [&edges[..], &["device", "measure"]].concat()),
        ("src/device", [&edges[..], &["measure"]].concat()),
        ("src/measure", [&edges[..], &["device"]].concat()),
        ("src/bus", vec!["mqtt", "daemon", "config", "cli"]),
        ("src/mqtt", vec!["bus", "http", "device", "measure", "daemon", "cli"]),
        ("src/http", vec!["bus", "mqtt::link", "bridge", "device", "daemon", "cli"]),
        ("src/config", vec!["bus", "mqtt::link", "daemon", "cli"]),
    ];
    let mut found = Vec::new();
    for (room, outside) in forbidden {
        visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join(room), &mut |path, text| {
            let named = outside.iter().map(|room| format!("crate::{room}")).filter(|name| text.contains(name.as_str()));
            found.extend(named.map(|name| format!("{}: {name}", path.display())));
        });
    }
    assert!(found.is_empty(), "{found:#?}");
}

fn visit(path: &Path, each: &mut impl FnMut(&Path, &str)) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            visit(&entry.unwrap().path(), each);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        each(path, &fs::read_to_string(path).unwrap());
    }
}

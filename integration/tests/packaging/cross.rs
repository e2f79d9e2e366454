//! What users build with `cross`. Nothing here calls it: it changes the toolchain of whoever does.

use toml::de::{DeTable, DeValue};

use crate::read;

/// What stands under a key.
fn under<'a>(table: &'a DeTable<'_>, key: &str) -> &'a DeTable<'a> {
    match table.get(key).map(|value| value.get_ref()) {
        Some(DeValue::Table(inner)) => inner,
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn cross_builds_for_devices_in_images_that_do_not_move() {
    let text = read("Cross.toml");
    let cross = DeTable::parse(&text).expect("TOML");
    let targets = under(cross.get_ref(), "target");
    let mut names: Vec<_> = targets.keys().map(|name| name.get_ref().as_ref()).collect();
    names.sort_unstable();
    assert_eq!(names, ["aarch64-unknown-linux-gnu", "armv7-unknown-linux-gnueabihf"]);
    for name in names {
        let image = under(targets, name).get("image").and_then(|image| image.get_ref().as_str());
        // glibc 2.23, which is older than that of any Venus OS
        assert_eq!(image, Some(format!("ghcr.io/cross-rs/{name}:0.2.5").as_str()));
    }
    let environment = under(under(cross.get_ref(), "build"), "env");
    let passed = environment.get("passthrough").and_then(|names| names.get_ref().as_array()).expect("variables");
    assert!(passed.iter().any(|name| name.get_ref().as_str() == Some("SOURCE_DATE_EPOCH")), "{passed:?}");
}

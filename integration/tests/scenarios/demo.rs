//! The demo keeps its word: it looks at itself and says so by its exit code.

use std::process::Command;

use venus_mqtt_integration::parts::{binary, free_port};

#[test]
fn the_demo_works() {
    let demo = binary("VENUS_DEMO_BIN", "examples/demo").expect("cargo build --examples");
    let port = free_port().expect("a port").to_string();
    let output = Command::new(demo).args(["--once", "60", "--quiet", "--port", &port]).output().expect("it runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
}

#![no_main]

#[path = "../../tests/fuzz/keepalive.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::target(data));

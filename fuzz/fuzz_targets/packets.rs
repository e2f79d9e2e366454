#![no_main]

#[path = "../../tests/fuzz/packets.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::target(data));

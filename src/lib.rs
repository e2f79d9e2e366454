#![forbid(unsafe_code)]

pub mod bridge;

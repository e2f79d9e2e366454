#![forbid(unsafe_code)]

pub mod bridge;
pub mod bus;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod log;
pub mod mqtt;
pub mod portal;
#[cfg(test)]
mod scratch;
pub mod signals;
pub mod text;

#![forbid(unsafe_code)]

pub mod bridge;
pub mod text;

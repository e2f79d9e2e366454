//! Measurements for HTTP backends, without any input or output.

pub mod answer;
pub mod options;

pub use answer::{Answer, Outcome};

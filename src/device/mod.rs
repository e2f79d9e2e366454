//! Devices that register themselves, without any input or output.

pub mod options;

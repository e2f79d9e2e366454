//! The broker's side: the connection.

pub mod link;
mod pipe;

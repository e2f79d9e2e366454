//! The broker's side: the connection, and what secures it.

pub mod link;
mod pipe;
pub mod tls;

//! The broker's side: the connection, and what secures it.

pub mod link;
pub mod tls;

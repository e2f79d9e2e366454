//! The broker's side: the connection.

mod flow;
mod incoming;
pub mod link;
mod outage;
#[doc(hidden)] // for the fuzz targets
pub mod pipe;
mod refused;
mod takeover;

/// What is kept of the messages to the broker at most, in bytes: a full window and the packet that went beyond it, in a buffer that
/// doubles when it grows; and one that waits to be sent alone.
pub const UNCONFIRMED_BYTES: usize = 2 * (flow::WINDOW_MAX as usize + link::PACKET_MAX) + link::PACKET_MAX;
/// What is kept of the messages from the broker at most, in bytes: those that wait for the loop, and one in the client library's buffer,
/// which doubles when it grows.
pub const INCOMING_BYTES: usize = link::INCOMING_BYTES as usize + 3 * link::PACKET_MAX;
/// Topics and filters that are remembered because the broker may have closed the connection over them, at most.
pub const REFUSED: usize = refused::SUSPECTS + refused::LEFT_OUT;

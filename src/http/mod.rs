//! Measurements on their way: one worker for each target, with its queue on disk and its client.

pub mod poster;

//! The HTTP client of a target.

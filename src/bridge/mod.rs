pub mod filter;
pub mod name;
pub mod options;

//! One file per command: its arguments, and a `run` that parses, calls and prints.

pub mod bench;
pub mod compare;
pub mod completions;
pub mod config;
pub mod export;
pub mod extract;
pub mod import;
pub mod predict;
pub mod predictor;
pub mod profile;
pub mod quantise;
pub mod quickstart;
pub mod report;
pub mod search;
pub mod speed;
pub mod status;
pub mod train;
pub mod tune;

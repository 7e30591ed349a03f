//! One file per command: its arguments, and a `run` that parses, calls and prints.
//!
//! | module | command |
//! | --- | --- |
//! | `train`, `tune`, `speed`, `config` | training, its hyperparameters, its time, its configuration |
//! | `import` | published checkpoints |
//! | `profile`, `predictor` | times of a device, accuracies of subnets |
//! | `search` | the best subnets |
//! | `extract`, `quantise`, `export` | model folders, in int8, in other formats |
//! | `bench`, `predict` | models measured and used |
//! | `quickstart`, `status`, `report` | every step at once, where a run stands, what it has reached |
//! | `completions` | completions of shells, and manual pages |

pub mod bench;
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

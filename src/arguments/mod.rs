//! The command line as text: commands, values and rules of options, what is wrong with it.
//!
//! | module | concern |
//! | --- | --- |
//! | `cli` | the commands and the global options |
//! | `option_rules`, `choice`, `numbers` | rules between options, names in a table, ranges of numbers |
//! | `engine_flags`, `strategy_options`, `subnet_text` | options of several commands: engines, strategies, subnets |
//! | `usage`, `suggestion`, `shell` | wrong command lines, names that were meant, quoting |

pub mod choice;
pub mod cli;
pub mod engine_flags;
pub mod numbers;
pub mod option_rules;
pub mod shell;
pub mod strategy_options;
pub mod subnet_text;
pub mod suggestion;
pub mod usage;

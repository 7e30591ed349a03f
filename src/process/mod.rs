//! The process: its memory, its signals, and the processes that work with it.
//!
//! | module | concern |
//! | --- | --- |
//! | `allocator`, `memory` | the allocator; whether work fits into memory |
//! | `interrupt` | Ctrl-C and other signals |
//! | `processes`, `ranks_model` | several processes, and a model of their speed |

pub mod allocator;
pub mod interrupt;
pub mod memory;
pub mod processes;
pub mod ranks_model;

//! Published static networks: `net.config`, with a JSON dictionary per layer, and a checkpoint with the weights.
//!
//! | file | concern |
//! | --- | --- |
//! | `description` | conversion of `net.config` to our list of layers |
//! | `weights` | conversion of the checkpoint to our tensors |

mod description;
mod weights;

pub use description::PublishedNetwork;

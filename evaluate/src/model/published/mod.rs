//! Static networks as once-for-all publishes them: `net.config`, a JSON dictionary a layer, and a checkpoint with the weights.
//!
//! | file | concern |
//! | --- | --- |
//! | `description` | from `net.config` to our layer list |
//! | `weights` | from the checkpoint to our tensors |

mod description;
mod weights;

pub use description::PublishedNetwork;

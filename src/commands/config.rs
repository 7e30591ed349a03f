//! `ofa config`

use crate::commands::train::Settings;
use crate::configuration::{explained, keys, page};
use anyhow::Result;
use ofa_supernet::files::read_text;
use serde_json::Value;

/// Print a configuration to edit: `ofa config --preset cifar > my.toml`, then `ofa train --config my.toml`.
///
/// Every setting is explained; --keys lists all keys that there are. With --config the comments of that file are kept.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Print every key that there is, as Markdown.
    #[arg(long, conflicts_with = "Settings")]
    keys: bool,
}

pub fn run(args: &Args) -> Result<Value> {
    if args.keys {
        say!("{}", page().trim_end());
        return Ok(serde_json::json!({ "keys": keys().collect::<Vec<_>>() }));
    }
    let config = args.settings.resolve()?;
    let input = args.settings.config.as_deref().map(read_text).transpose()?;
    say!("{}", explained(&config, input.as_deref())?.trim_end());
    Ok(serde_json::to_value(&config)?)
}

//! `ofa config`

use crate::commands::train::Settings;
use anyhow::Result;

/// Print a complete configuration to edit: `ofa config --preset cifar > my.toml`, then `ofa train --config my.toml`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: &Args) -> Result<()> {
    say!("{}", toml::to_string(&args.settings.resolve()?)?.trim_end());
    Ok(())
}

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
    let config = args.settings.resolve()?;
    let mut text = toml::to_string(&config)?;
    if config.data.validation.is_none() {
        text = text.replacen("[data]\n", &format!("[data]\n{NO_VALIDATION}\n"), 1);
    }
    say!("{}", text.trim_end());
    Ok(())
}

/// Shows the key that is absent by default, and what its absence means.
const NO_VALIDATION: &str = "# validation = 2000  # images carved from training (default: 5000, but at most a fifth)";

//! `ofa completions` and `ofa man`

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;
use ofa_supernet::files::{make_folder, write_atomic};
use std::path::PathBuf;

/// Print completions for a shell.
#[derive(clap::Args)]
pub struct CompletionArgs {
    /// The shell.
    shell: Shell,
}

/// Write man pages, one for each command.
#[derive(clap::Args)]
pub struct ManArgs {
    /// Folder for the pages.
    #[arg(long, default_value = "man/man1")]
    out: PathBuf,
}

/// Prints the completions of `command`, the whole command line.
pub fn completions(args: &CompletionArgs, mut command: Command) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "ofa", &mut text);
    say!("{}", String::from_utf8_lossy(&text).trim_end());
    Ok(())
}

/// Writes the man pages of `command`, the whole command line, and of its subcommands.
pub fn man(args: &ManArgs, mut command: Command) -> Result<()> {
    command.build();
    make_folder(&args.out)?;
    let mut pages = vec![command.clone()];
    pages.extend(command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help").cloned());
    for page in &pages {
        let name = page.get_display_name().unwrap_or(page.get_name()).replace(' ', "-");
        let mut text = Vec::new();
        clap_mangen::Man::new(page.clone().name(name.clone()))
            .render(&mut text)
            .context("a man page cannot be written")?;
        write_atomic(&args.out.join(format!("{name}.1")), &text)?;
    }
    say!("{} pages written to {}", pages.len(), args.out.display());
    Ok(())
}

//! `ofa completions` and `ofa man`

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;
use ofa_supernet::files::{make_folder, write_atomic};
use serde_json::{Value, json};
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
pub fn completions(args: &CompletionArgs, mut command: Command) -> Result<Value> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "ofa", &mut text);
    let script = String::from_utf8_lossy(&text);
    say!("{}", script.trim_end());
    Ok(json!({ "shell": args.shell.to_string(), "script": script }))
}

/// Writes the man pages of `command`, the whole command line, and of its subcommands.
pub fn man(args: &ManArgs, mut command: Command) -> Result<Value> {
    command.build();
    make_folder(&args.out)?;
    let mut pages = vec![command.clone()];
    pages.extend(command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help").cloned());
    let mut files = Vec::new();
    for page in &pages {
        let name = page.get_display_name().unwrap_or(page.get_name()).replace(' ', "-");
        let mut text = Vec::new();
        clap_mangen::Man::new(page.clone().name(name.clone()))
            .render(&mut text)
            .context("a man page cannot be written")?;
        let path = args.out.join(format!("{name}.1"));
        write_atomic(&path, &text)?;
        files.push(path);
    }
    say!("{}: {} pages written", args.out.display(), pages.len());
    Ok(json!({ "pages": files }))
}

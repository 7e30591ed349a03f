//! `ofa report`

use crate::output::terminal;
use crate::report::{PAGE, Report, markdown, page};
use crate::run_folder::RunFolder;
use anyhow::Result;
use ofa_supernet::files::write_atomic;
use serde_json::Value;
use std::path::PathBuf;

/// Write what a run has as one page: models, devices, predictor, training.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder.
    #[arg(long)]
    run: PathBuf,
    /// Format of the file.
    #[arg(long, value_enum, default_value_t = Format::Html, conflicts_with = "json")]
    format: Format,
    /// File to write (default: report.html or report.md in the run folder). With --json no file is written.
    #[arg(long, conflicts_with = "json")]
    out: Option<PathBuf>,
}

/// Formats of a report.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// A page with pictures, which loads nothing.
    Html,
    /// Text and the table of models.
    Md,
}

pub fn run(args: &Args) -> Result<Value> {
    let folder = RunFolder::new(&args.run);
    let _lock = folder.lock_to_read()?;
    let report = Report::gather(&folder)?;
    let value = serde_json::to_value(&report)?;
    report.warnings().iter().for_each(terminal::warning);
    if terminal::is_json() {
        return Ok(value);
    }
    let (text, name) = match args.format {
        Format::Html => (page(&report)?, PAGE),
        Format::Md => (markdown(&report), "report.md"),
    };
    let path = args.out.clone().unwrap_or_else(|| folder.join(name));
    write_atomic(&path, text.as_bytes())?;
    report.advice().iter().for_each(|sentence| say!("{sentence}"));
    say!("{} written", path.display());
    Ok(value)
}

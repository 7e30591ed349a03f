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
    let mut text = commented(&toml::to_string(&config)?);
    if config.data.validation.is_none() {
        text = text.replacen("[data]\n", &format!("[data]\n{NO_VALIDATION}\n"), 1);
    }
    say!("{}", text.trim_end());
    Ok(())
}

/// What a table holds, above its first line.
const COMMENTS: &[(&str, &str)] = &[
    ("[data]", "Images and their splits."),
    ("[space]", "What subnets consist of: each list holds the values of an elastic dimension."),
    ("[train]", "Every key, and when to use it: docs/training.md."),
    ("[train.schedule]", "One learning rate over all stages; without this table each stage has its own."),
    ("[train.augmentation]", "Random changes of training images."),
    ("[train.probe]", "Validation of the smallest, middle and largest subnet during training."),
    (
        "[[train.stages]]",
        "Stages in order. They draw from their lists; what has no list stays at its largest, the resolution free.",
    ),
    (
        "[train.stages.taught]",
        "How subnets with a teacher learn: from labels with this weight, all of it rising at first.",
    ),
    ("[train.stages.images]", "Resolutions of the images, in place of the stage's."),
];

/// `text` with the first line of each table explained.
fn commented(text: &str) -> String {
    COMMENTS.iter().fold(text.to_string(), |text, (table, comment)| {
        let line = format!("\n{table}\n");
        match (text.starts_with(&line[1..]), text.contains(&line)) {
            (true, _) => format!("# {comment}\n{text}"),
            (false, true) => text.replacen(&line, &format!("\n# {comment}{line}"), 1),
            (false, false) => text,
        }
    })
}

/// Shows the key that is absent by default, and what its absence means.
const NO_VALIDATION: &str = "# validation = 2000  # images carved from training (default: 5000, but at most a fifth)";

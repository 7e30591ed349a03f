//! `docs/configuration.md`, written from the table of keys.

use super::keys::{keys, table};
use std::fmt::Write;

const HEAD: &str = "# Configuration

Every key of the file that `ofa train --config` reads. `ofa config --preset NAME` prints those that a
preset sets, with these comments; `ofa config --config FILE` prints those of FILE, and keeps its comments. This page is
the output of `ofa config --keys`.

A key without a default is needed. Unknown keys are errors.
";

/// The page.
pub fn page() -> String {
    let mut text = HEAD.to_string();
    let table_of = |path: &str| path.rsplit_once('.').map_or("", |(table, _)| table).to_string();
    let mut tables: Vec<String> = Vec::new();
    for key in keys() {
        let name = table_of(key.path);
        if !tables.contains(&name) {
            tables.push(name);
        }
    }
    for name in tables {
        let what = table(&name).unwrap_or_default();
        let header = match name.as_str() {
            "" => "Top of the file".to_string(),
            "space.stages" | "train.stages" => format!("`[[{name}]]`"),
            name => format!("`[{name}]`"),
        };
        let _ = write!(text, "\n## {header}\n\n");
        if !what.is_empty() {
            let _ = write!(text, "{what}\n\n");
        }
        text += "| key | what | unit | default | change it |\n| --- | --- | --- | --- | --- |\n";
        for key in keys().filter(|key| table_of(key.path) == name) {
            let last = key.path.rsplit('.').next().unwrap_or(key.path);
            let default = if key.default.is_empty() { "–" } else { key.default };
            let _ = writeln!(text, "| `{last}` | {} | {} | {default} | {} |", key.what, key.unit, key.change);
        }
        if name == "train.stages.images" {
            let _ = write!(text, "\n## `[train.stages.augmentation]`\n\nKeys as in `[train.augmentation]`.\n");
        }
    }
    text
}

//! Tar shards in the layout of WebDataset: `NAME.jpg` (or `.jpeg`, `.png`) with `NAME.cls` or `NAME.json` beside it;
//! and Parquet files in that of Hugging Face ([`Table`]).
//!
//! Shards are not unpacked: each image is read from its place in the shard. The splits are the folders `train`, `test`
//! and `val` (`valid`, `validation`) with shards in them, or shards in one folder whose names begin with these words; a
//! shard of another name holds training images.

use super::folder::{VALIDATION, read};
use super::labels::{self, Label, Labelled, NAMES, are_names, labelled};
use super::listing::Listing;
use super::opening::{Opening, Splits};
use super::pattern::{SHARDS, braces, matches};
use super::source::Source;
use super::table::Table;
use super::{Loaded, no_images, regular, tar_shard};
use crate::{Error, Result};
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Shards of each split.
pub(super) struct Layout {
    /// The folder that holds them.
    root: PathBuf,
    /// Whether a pattern names them.
    is_pattern: bool,
    train: Vec<PathBuf>,
    validation: Vec<PathBuf>,
    test: Vec<PathBuf>,
}

impl Layout {
    /// The shards of a folder; `None` if it has none.
    pub fn of(root: &Path) -> Result<Option<Layout>> {
        let mut files = shards_in(root)?;
        for split in ["train", "test"].iter().chain(&VALIDATION) {
            files.extend(shards_in(&root.join(split))?);
        }
        Ok((!files.is_empty()).then(|| Layout::of_files(root.to_path_buf(), files, false)))
    }

    /// The shards that a pattern such as `DIR/train-{000..011}.tar` or `DIR/*.tar` names.
    pub fn of_pattern(pattern: &str) -> Result<Layout> {
        let mut files = Vec::new();
        for path in braces(pattern).map_err(|reason| Error::format(pattern, reason))?.iter().map(Path::new) {
            let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
            let name = name.to_string_lossy();
            if !name.contains(['*', '?']) {
                regular::length(path).map_err(|reason| Error::format(path, reason))?;
                files.push(path.to_path_buf());
                continue;
            }
            let folder = if folder == Path::new("") { Path::new(".") } else { folder };
            let before = files.len();
            files.extend(shards_in(folder)?.into_iter().filter(|file| {
                file.file_name().is_some_and(|found| matches(name.as_bytes(), found.to_string_lossy().as_bytes()))
            }));
            if files.len() == before {
                return Err(Error::format(path, "no shard (.tar, .parquet) has such a name"));
            }
        }
        // Two alternatives may name one file, whose images would then be read twice, perhaps into two splits.
        let mut seen = HashSet::new();
        files.retain(|file| seen.insert(file.clone()));
        for file in &files {
            // Test and validation images are taken as those of their folder.
            if let (Some(folder), Some(name)) = (split_of_folder(file), split_in_name(file))
                && folder != name
                && [folder, name].contains(&TRAINING)
            {
                let reason = format!(
                    "is in a folder of {folder} images, but its name is that of {name} images; rename one of the two"
                );
                return Err(Error::format(file, reason));
            }
        }
        // Paths below it identify the images, wherever they are moved to.
        let mut folders = files.iter().filter_map(|file| file.parent());
        let mut root = folders.next().unwrap_or(Path::new(""));
        for folder in folders {
            while !folder.starts_with(root) {
                root = root.parent().unwrap_or(Path::new(""));
            }
        }
        let root = root.to_path_buf();
        Ok(Layout::of_files(root, files, true))
    }

    /// Assigns shards to splits by the folder they are in, otherwise by the beginning of their names. Where files in
    /// the root have such names, its own name is that of the data, unless a pattern names the files.
    fn of_files(root: PathBuf, files: Vec<PathBuf>, is_pattern: bool) -> Layout {
        let mut of_root = files.iter().filter(|file| file.parent() == Some(&root));
        let is_data = !is_pattern && of_root.any(|file| split_in_name(file).is_some());
        let mut layout = Layout { root, is_pattern, train: Vec::new(), validation: Vec::new(), test: Vec::new() };
        for file in files {
            let list = match split_of(&file, is_data.then_some(&*layout.root)) {
                TRAINING => &mut layout.train,
                TEST => &mut layout.test,
                _ => &mut layout.validation,
            };
            list.push(file);
        }
        layout
    }

    /// A shard, to show one.
    pub fn first(&self) -> &Path {
        [&self.train, &self.test, &self.validation].into_iter().flatten().next().unwrap_or(&self.root)
    }

    pub fn open(self, opening: &Opening) -> Result<Loaded> {
        let mut notes = Vec::new();
        // Where nothing but validation images is given, they are the test images, as in image folders. Beside training
        // images they are those by which the training is judged.
        let test_only = opening.splits == Splits::Test;
        let is_validation = test_only && self.test.is_empty() && self.train.is_empty();
        let test = if is_validation { &self.validation } else { &self.test };
        let splits: Vec<&[PathBuf]> = if test_only { vec![test] } else { vec![&self.train, test, &self.validation] };
        if splits[0].is_empty() {
            let wanted = if test_only { "test" } else { "train" };
            let way_out = match test_only && !self.validation.is_empty() {
                true => "; to measure on its validation images, name them by a pattern such as 'DIR/val-*.tar'",
                false => "",
            };
            return Err(Error::format(
                &self.root,
                format!("has no shard {wanted}-*.tar, {wanted}-*.parquet or {wanted}/*.tar{way_out}"),
            ));
        }
        if !test_only && self.test.is_empty() {
            let folder = self.root.display();
            notes.push(format!(
                "{folder}: no test shards (test-*.tar or .parquet) were given; training needs none, ofa bench does"
            ));
        }
        if !test_only && let Some(file) = self.train.iter().find(|file| has_word_of_another_split(file)) {
            let file = file.display();
            notes.push(format!(
                "{file}: is trained on, though its name has a word for other images in it; such names begin with test- or \
                 val-"
            ));
        }
        let names_file = self.names_file();
        let (mut images, mut named) = (Vec::<Vec<Labelled>>::new(), None::<(&Path, Vec<String>)>);
        // Training images tell the classes, whatever is read besides.
        let of_training: &[PathBuf] = if test_only && names_file.is_none() { &self.train } else { &[] };
        for (number, shards) in splits.iter().chain([&of_training]).enumerate() {
            let scanned = opening.map("listing shards", shards, |shard| scan(shard))?;
            let is_listed = number < splits.len();
            // The labels of images that are not read are no reason to fail.
            if !is_listed && scanned.iter().any(Result::is_err) {
                images.push(Vec::new());
                break;
            }
            let mut all = Vec::new();
            for (shard, scanned) in shards.iter().zip(scanned) {
                let (of_shard, names) = scanned?;
                all.extend(of_shard);
                match (&named, names) {
                    (None, Some(names)) => named = Some((shard, names)),
                    (Some((first, known)), Some(names)) if *known != names && names_file.is_none() => {
                        let reason = format!(
                            "names other classes than {}, or in another order: the numbers in the two mean different \
                             things. Make them alike, or write {NAMES} if the numbers are alike",
                            first.display()
                        );
                        return Err(Error::format(shard, reason));
                    }
                    _ => {}
                }
            }
            images.push(all);
        }
        let by_name = are_names(&images)?;
        let of_training = images.pop().filter(|images| !images.is_empty());
        let names = named.map(|(_, names)| names);
        let classes =
            self.classes(names_file.as_deref(), of_training.as_ref().unwrap_or(&images[0]), names, by_name)?;
        let mut listings = Vec::new();
        for images in images {
            let files = labelled(images, &classes, by_name)?;
            listings.push(Listing { folder: self.root.clone(), classes: classes.clone(), files, ignored: Vec::new() });
        }
        let present: BTreeSet<u32> = listings[0].files.iter().map(|(_, label)| *label).collect();
        if !test_only && let Some(empty) = (0..classes.len()).find(|&class| !present.contains(&(class as u32))) {
            let reason = format!("no training image is of class {empty} ('{}'), an empty class", classes[empty]);
            return Err(Error::format(&self.root, reason));
        }
        let (stores, skipped) = read(&self.root, &mut listings, opening)?;
        let mut stores = stores.into_iter();
        let mut next = || stores.next().unwrap_or_else(no_images);
        let train = if test_only { no_images() } else { next() };
        let test = next();
        let validation = (!test_only && !self.validation.is_empty()).then(next);
        Ok(Loaded { classes, train, validation, test, skipped, notes })
    }

    /// The file [`NAMES`] of the data's folder, beside the shards, or beside the folder of their split.
    fn names_file(&self) -> Option<PathBuf> {
        let own = (!self.is_pattern).then_some(&*self.root);
        let shards = [&self.train, &self.validation, &self.test].into_iter().flatten();
        let beside = shards.flat_map(|shard| {
            let folder = shard.parent();
            // The data's own folder may have the name of a split.
            let is_split = split_of_folder(shard).is_some() && folder != own;
            let above = folder.filter(|_| is_split).map(|folder| folder.parent().unwrap_or(Path::new("")));
            [folder, above]
        });
        let mut folders = [own].into_iter().chain(beside).flatten().map(|folder| folder.join(NAMES));
        folders.find(|path| path.exists())
    }

    /// Names of the classes: those of `file`, otherwise those that a shard names, otherwise the labels of `images`.
    fn classes(
        &self,
        file: Option<&Path>,
        images: &[Labelled],
        named: Option<Vec<String>>,
        by_name: bool,
    ) -> Result<Vec<String>> {
        if let Some(path) = file {
            let text = crate::files::read_text(path)?;
            return Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect());
        }
        if let Some(named) = named {
            return Ok(named);
        }
        labels::classes(images, by_name).map_err(|reason| Error::format(&self.root, reason))
    }
}

/// Name of the split of training images.
const TRAINING: &str = "training";

/// Name of the split of test images.
const TEST: &str = "test";

/// The splits with the words for them in names.
const SPLITS: [(&str, &[&str]); 3] = [(TRAINING, &["train"]), (TEST, &["test"]), ("validation", &VALIDATION)];

/// The split of a shard: that of its folder's name, except for `own`, the data's folder; otherwise that of the
/// beginning of its name; otherwise the training images.
fn split_of(file: &Path, own: Option<&Path>) -> &'static str {
    let of_folder = split_of_folder(file).filter(|_| file.parent() != own);
    of_folder.or_else(|| split_in_name(file)).unwrap_or(TRAINING)
}

/// The split that a file's name begins with.
fn split_in_name(file: &Path) -> Option<&'static str> {
    let name = file.file_name()?.to_string_lossy().to_lowercase();
    let found = SPLITS.iter().find(|(_, words)| words.iter().any(|word| name.starts_with(word)));
    found.map(|(split, _)| *split)
}

/// The split that a file's folder is named like.
fn split_of_folder(file: &Path) -> Option<&'static str> {
    let name = file.parent()?.file_name()?.to_string_lossy().to_lowercase();
    SPLITS.iter().find(|(_, words)| words.contains(&name.as_str())).map(|(split, _)| *split)
}

/// Whether a file, by folder and beginning of its name one of training images, has a word for others in its name.
fn has_word_of_another_split(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let others = || SPLITS[1..].iter().flat_map(|(_, words)| words.iter());
    split_of_folder(file).is_none()
        && split_in_name(file).is_none()
        && name.split(|letter: char| !letter.is_alphanumeric()).any(|word| others().any(|other| word == *other))
}

/// The shards in a folder, by name; none if there is no such folder.
fn shards_in(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::file(folder, e))? {
        let path = entry.map_err(|e| Error::file(folder, e))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden
            && path
                .extension()
                .is_some_and(|extension| SHARDS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
        {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Lists the images of a shard, in order, with their labels; and the names of the classes, if it tells them.
fn scan(path: &Path) -> Result<(Vec<Labelled>, Option<Vec<String>>)> {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet")) {
        scan_table(path)
    } else {
        Ok((tar_shard::scan(path)?, None))
    }
}

fn scan_table(path: &Path) -> Result<(Vec<Labelled>, Option<Vec<String>>)> {
    let table = Arc::new(Table::open(path)?);
    let mut images = Vec::new();
    for (group, labels) in (0..).zip(table.labels()?) {
        for (row, label) in (0..).zip(labels) {
            let source = Source::Row { table: table.clone(), group, row, number: images.len() as u64 };
            let number = usize::try_from(label).map_err(|_| {
                Error::format(
                    source.place(),
                    format!("has the label {label}, so it has no class; leave such images out"),
                )
            })?;
            images.push((source, Label::Number(number)));
        }
    }
    Ok((images, table.classes()))
}

#[cfg(test)]
mod tests;

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
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Shards of each split.
pub(super) struct Layout {
    /// The folder that holds them.
    root: PathBuf,
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
        let is_of_train = |file: &&PathBuf| file.parent().and_then(Path::file_name).is_some_and(|name| name == "train");
        let is_held_back = |file: &&PathBuf| split_in_name(file).is_some_and(|split| split != "train");
        if let Some(file) = files.iter().filter(is_of_train).find(is_held_back) {
            let reason = "is in a folder 'train', but its name is that of another split; rename one of the two";
            return Err(Error::format(file, reason));
        }
        let root = files.first().and_then(|file| file.parent()).unwrap_or(Path::new("")).to_path_buf();
        Ok(Layout::of_files(root, files, true))
    }

    /// Assigns shards to splits by the folder they are in, otherwise by the beginning of their names. Where files in
    /// the root have such names, its own name is that of the data, unless a pattern names the files.
    fn of_files(root: PathBuf, files: Vec<PathBuf>, is_pattern: bool) -> Layout {
        let mut of_root = files.iter().filter(|file| file.parent() == Some(&root));
        let is_data = !is_pattern && of_root.any(|file| split_in_name(file).is_some());
        let mut layout = Layout { root, train: Vec::new(), validation: Vec::new(), test: Vec::new() };
        for file in files {
            let root = &layout.root;
            let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().to_lowercase();
            let parent = file.parent().filter(|parent| !is_data || parent != root);
            let (folder, name) = (text(parent.and_then(Path::file_name)), text(file.file_name()));
            let is = |split: &str| folder == split || (folder != "train" && name.starts_with(split));
            let list = match (is("test"), VALIDATION.into_iter().any(is)) {
                (true, _) => &mut layout.test,
                (false, true) => &mut layout.validation,
                (false, false) => &mut layout.train,
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
        let (mut images, mut names) = (Vec::<Vec<Labelled>>::new(), None);
        for shards in &splits {
            let scanned = opening.map("listing shards", shards, |shard| scan(shard))?;
            let mut all = Vec::new();
            for (of_shard, named) in scanned.into_iter().collect::<Result<Vec<_>>>()? {
                all.extend(of_shard);
                names = names.or(named);
            }
            images.push(all);
        }
        let by_name = are_names(&images)?;
        let classes = self.classes(&images[0], names, by_name)?;
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

    /// Names of the classes: those of [`NAMES`], otherwise those that a shard names, otherwise the labels of `images`.
    fn classes(&self, images: &[Labelled], named: Option<Vec<String>>, by_name: bool) -> Result<Vec<String>> {
        let path = self.root.join(NAMES);
        if path.exists() {
            let text = crate::files::read_text(&path)?;
            return Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect());
        }
        if let Some(named) = named {
            return Ok(named);
        }
        labels::classes(images, by_name).map_err(|reason| Error::format(&self.root, reason))
    }
}

/// The split that a file's name begins with.
fn split_in_name(file: &Path) -> Option<&'static str> {
    let name = file.file_name()?.to_string_lossy().to_lowercase();
    ["train", "test"].into_iter().chain(VALIDATION).find(|split| name.starts_with(split))
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
mod tests {
    use super::*;
    use crate::data::decode::tests::png;
    use crate::data::{DataOptions, Dataset};
    use image::ColorType;

    fn grey(level: u8) -> Vec<u8> {
        png(4, 4, &[level; 48], ColorType::Rgb8)
    }

    /// A shard of these entries.
    fn shard(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// Images of the levels with their labels as `.cls`.
    fn labelled(images: &[(u8, &str)]) -> Vec<u8> {
        let images: Vec<(String, Vec<u8>, &str)> =
            images.iter().map(|(level, label)| (format!("s/{level:04}"), grey(*level), *label)).collect();
        let mut entries: Vec<(String, &[u8])> = Vec::new();
        for (name, image, label) in &images {
            entries.push((format!("{name}.png"), image));
            entries.push((format!("{name}.cls"), label.as_bytes()));
        }
        shard(&entries.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect::<Vec<_>>())
    }

    fn options(cache_bytes: usize) -> DataOptions {
        DataOptions { validation: Some(0), cache_bytes, ..Default::default() }
    }

    fn open(source: &Path) -> Result<Dataset> {
        Dataset::open(source.to_str().unwrap(), &options(usize::MAX))
    }

    fn levels(split: &crate::data::Split) -> Vec<(u8, u32)> {
        (0..split.len()).map(|i| (split.image(i).unwrap().pixels[0], split.label(i))).collect()
    }

    #[test]
    fn shards_are_read_in_order_from_memory_and_from_their_places() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let put = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).unwrap();
        put("train-000.tar", &labelled(&[(9, "1"), (3, "0")]));
        put("train-001.tar", &labelled(&[(7, "0"), (200, "1")]));
        put("notes.txt", b"x");
        let data = open(root).unwrap();
        assert_eq!(data.classes, ["0", "1"]);
        assert_eq!(levels(&data.train), [(9, 1), (3, 0), (7, 0), (200, 1)]);
        assert!(data.test.is_empty() && data.notes[0].contains("no test shards"), "{:?}", data.notes);
        // Validation images are no test images beside training images.
        put("val-0.tar", &labelled(&[(6, "0")]));
        let test_only = |root: &Path| {
            let options = DataOptions { normalisation: Some(crate::data::Normalisation::IMAGENET), ..options(0) };
            let splits = crate::data::Splits::Test;
            Dataset::open_splits(root.to_str().unwrap(), &options, splits, &|_| std::ops::ControlFlow::Continue(()))
        };
        let error = test_only(root).err().unwrap().to_string();
        assert!(error.contains("test-*.tar") && error.contains("'DIR/val-*.tar'"), "{error}");
        // A folder of neutral names is a split by its own.
        let of_test = root.join("test");
        fs::create_dir(&of_test).unwrap();
        fs::copy(root.join("val-0.tar"), of_test.join("0.tar")).unwrap();
        assert_eq!(levels(&test_only(&of_test).unwrap().test), [(6, 0)]);
        fs::remove_dir_all(&of_test).unwrap();
        assert_eq!(levels(&test_only(&root.join("val-*.tar")).unwrap().test), [(6, 0)]);
        put("test-0.tar", &labelled(&[(5, "1")]));
        put("classes.txt", b"cat\ndog\n");
        let streamed = Dataset::open(root.to_str().unwrap(), &options(0)).unwrap();
        let data = open(root).unwrap();
        assert!(data.train.in_memory() && !streamed.train.in_memory());
        assert_eq!((data.classes.as_slice(), data.notes.len()), (&["cat".to_string(), "dog".into()][..], 0));
        assert_eq!((levels(&data.test), levels(&data.validation)), (vec![(5, 1)], vec![(6, 0)]));
        assert_eq!(levels(&data.train), levels(&streamed.train));
        assert_eq!((data.digest(), &data.normalisation), (streamed.digest(), &streamed.normalisation));
        // A moved folder keeps its digest, another label or image changes it.
        let moved = tempfile::tempdir().unwrap();
        for name in ["train-000.tar", "train-001.tar", "test-0.tar", "val-0.tar", "classes.txt"] {
            fs::copy(root.join(name), moved.path().join(name)).unwrap();
        }
        assert_eq!(open(moved.path()).unwrap().digest(), data.digest());
        put("train-001.tar", &labelled(&[(7, "1"), (200, "1")]));
        assert_ne!(open(root).unwrap().digest(), data.digest());
        // The name of the whole folder is no split.
        let named = moved.path().join("train");
        fs::create_dir(&named).unwrap();
        for name in ["train-000.tar", "test-0.tar", "val-0.tar"] {
            fs::copy(root.join(name), named.join(name)).unwrap();
        }
        let splits = open(&named).unwrap();
        assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (2, 1, 1));
        // Class folders beside shards could both be meant.
        fs::create_dir_all(named.join("train/.cache")).unwrap();
        assert_eq!(open(&named).unwrap().train.len(), 2);
        fs::create_dir_all(named.join("train/cat")).unwrap();
        let error = open(&named).unwrap_err().to_string();
        assert!(error.contains("class folders") && error.contains("train/cat") && error.contains(".tar"), "{error}");
        fs::remove_dir_all(&named).unwrap();
        // Folders of splits, and patterns.
        let root = moved.path();
        fs::create_dir(root.join("train")).unwrap();
        for name in ["train-000.tar", "train-001.tar"] {
            fs::rename(root.join(name), root.join("train").join(name)).unwrap();
        }
        assert_eq!(levels(&open(root).unwrap().train), levels(&data.train));
        for pattern in ["train/train-{000..001}.tar", "train/*.tar", "train/train-00?.tar", "train/train-00{0,1}.tar"] {
            let data = open(&root.join(pattern)).unwrap();
            assert_eq!((data.train.len(), data.test.len(), data.classes.len()), (4, 0, 2), "{pattern}");
        }
        assert_eq!(open(&root.join("train/train-001.tar")).unwrap().train.len(), 2);
    }

    #[test]
    fn labels_are_numbers_or_names_in_text_or_json() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (a, b) = (grey(1), grey(2));
        let put = |entries: &[(&str, &[u8])]| fs::write(root.join("train-0.tar"), shard(entries)).unwrap();
        let read = || open(root).map(|data| (data.classes.clone(), levels(&data.train)));
        let expected = (vec!["cat".to_string(), "dog".into()], vec![(1, 1), (2, 0)]);
        put(&[
            ("x.png", &a),
            ("x.json", br#"{"label": "dog"}"#),
            ("y.JPEG", &b),
            ("y.cls", b"cat\n"),
            ("z.txt", b"no image"),
        ]);
        assert_eq!(read().unwrap(), expected);
        // The number in .cls precedes the .json, in either order.
        put(&[
            ("x.json", br#"{"cls": 0}"#),
            ("x.png", &a),
            ("x.cls", b"1"),
            ("y.cls", b" 0 "),
            ("y.json", b"{}"),
            ("y.png", &b),
        ]);
        assert_eq!(read().unwrap(), (vec!["0".to_string(), "1".into()], expected.1.clone()));
        fs::write(root.join("classes.txt"), "cat\ndog\n").unwrap();
        assert_eq!(read().unwrap(), expected);
        let refused = |entries: &[(&str, &[u8])], parts: &[&str]| {
            put(entries);
            let error = read().unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
        };
        refused(&[("a/x.png", &a)], &["train-0.tar/a/x.png", "no label", "x.cls"]);
        refused(&[("x.png", &a), ("x.json", b"{")], &["no label"]);
        refused(&[("x.png", &a), ("x.jpg", &a), ("x.cls", b"0")], &["second image"]);
        refused(&[("x.png", &a), ("x.cls", b"2")], &["train-0.tar/x.png", "label 2", "2 classes"]);
        refused(&[("x.png", &a), ("x.cls", b"cow")], &["'cow'", "none of the 2 classes"]);
        refused(&[("x.png", &a), ("x.cls", b"0")], &["class 1 ('dog')", "empty class"]);
        refused(
            &[("x.png", &a[..30]), ("x.cls", b"0"), ("y.png", &b), ("y.cls", b"1")],
            &["train-0.tar/x.png", "truncated"],
        );
        fs::write(root.join("classes.txt"), "2\n3\n0\n").unwrap();
        refused(&[("x.png", &a), ("x.cls", b"0")], &["label 0", "name of class 2", "the class '2'", "rename"]);
        // x.mask.png is another file of the sample x, and x.2.png without x.png is an image that would be lost.
        fs::write(root.join("classes.txt"), "cat\n").unwrap();
        put(&[("x.png", &a), ("x.mask.png", &b), ("x.cls", b"0")]);
        assert_eq!(read().unwrap().1, [(1, 0)]);
        refused(&[("x.2.png", &a), ("x.2.cls", b"0")], &["train-0.tar/x.2.png", "first dot", "rename"]);
        let mut links = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        links.append_link(&mut header, "x.png", "y.png").unwrap();
        fs::write(root.join("train-0.tar"), links.into_inner().unwrap()).unwrap();
        let error = read().unwrap_err().to_string();
        assert!(error.contains("x.png") && error.contains("is a link"), "{error}");
        fs::remove_file(root.join("classes.txt")).unwrap();
        // Beside names, digits are names, as those of folders are.
        put(&[("x.png", &a), ("x.cls", b"b"), ("y.png", &b), ("y.json", br#"{"label": "7"}"#)]);
        assert_eq!(read().unwrap(), (vec!["7".to_string(), "b".into()], vec![(1, 1), (2, 0)]));
        refused(
            &[("x.png", &a), ("x.cls", b"b"), ("y.png", &b), ("y.json", br#"{"label": 7}"#)],
            &["train-0.tar/y.png", "number 7", "'b'", "alike"],
        );
        refused(&[("x.png", &a), ("x.cls", b"4000000000")], &["largest label is 4000000000", "1 images"]);
        put(&[("x.png", &a[..30]), ("x.cls", b"0"), ("y.png", &b), ("y.cls", b"0")]);
        let options = DataOptions { skip_bad: true, ..options(0) };
        let data = Dataset::open(root.to_str().unwrap(), &options).unwrap();
        assert_eq!((levels(&data.train), data.skipped), (vec![(2, 0)], 1));
    }

    #[test]
    fn parquet_files_are_read_with_the_names_of_their_classes() {
        use crate::data::table::tests::write;
        use parquet::basic::Compression::SNAPPY;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let rows = |levels: &[u8]| -> Vec<(Vec<u8>, i64)> {
            levels.iter().map(|&level| (grey(level), i64::from(level % 2))).collect()
        };
        let path = |name: &str| root.join(name);
        write(&path("train-00000-of-00002.parquet"), &rows(&[4, 7, 8]), Some(&["even", "odd"]), 2, SNAPPY);
        write(&path("train-00001-of-00002.parquet"), &rows(&[1, 3]), Some(&["even", "odd"]), 5, SNAPPY);
        write(&path("validation-00000-of-00001.parquet"), &rows(&[5]), None, 5, SNAPPY);
        write(&path("test-00000-of-00001.parquet"), &rows(&[6, 9]), None, 5, SNAPPY);
        let data = open(root).unwrap();
        let streamed = Dataset::open(root.to_str().unwrap(), &options(0)).unwrap();
        assert_eq!(data.classes, ["even", "odd"]);
        assert_eq!(levels(&data.train), [(4, 0), (7, 1), (8, 0), (1, 1), (3, 1)]);
        assert_eq!((levels(&data.validation), levels(&data.test)), (vec![(5, 1)], vec![(6, 0), (9, 1)]));
        assert!(!streamed.train.in_memory() && levels(&streamed.train) == levels(&data.train));
        assert_eq!(streamed.digest(), data.digest());
        let pattern = open(&root.join("train-*.parquet")).unwrap();
        assert_eq!((pattern.train.len(), pattern.test.len()), (5, 0));
        let refused = |rows: &[(Vec<u8>, i64)], parts: &[&str]| {
            write(&path("test-00000-of-00001.parquet"), rows, None, 5, SNAPPY);
            let error = open(root).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
        };
        refused(&[(grey(1), 0), (grey(2), -1)], &["test-00000-of-00001.parquet/row 1", "label -1"]);
        refused(&[(grey(1), 2)], &["row 0", "label 2", "2 classes"]);
        refused(&[(Vec::new(), 1)], &["row 0", "no bytes of an image", "--skip-bad"]);
        refused(&[(b"text".to_vec(), 1)], &["row 0", "not an image"]);
    }

    #[test]
    fn damaged_shards_and_patterns_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train-0.tar");
        let whole = labelled(&[(1, "0"), (2, "0")]);
        let refused = |bytes: &[u8], parts: &[&str]| {
            fs::write(&path, bytes).unwrap();
            let error = open(folder.path()).unwrap_err().to_string();
            let parts = [&["train-0.tar"], parts].concat();
            assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
        };
        refused(b"", &["truncated"]);
        refused(b"no tar", &["tar"]);
        refused(&whole[..540], &["truncated", "0001.png", "540 bytes"]);
        refused(&whole[..whole.len() - 1024], &["end mark"]);
        let mut longer = whole.clone();
        longer[124..135].copy_from_slice(b"77777777777");
        refused(&longer, &["tar"]);
        for (name, reason) in [
            ("train-{0..2.tar", "not closed"),
            ("train-{5..2}.tar", "must rise"),
            ("train-{0..99999999}.tar", "at most"),
            ("train-{a..b}.tar", "'a' is not a number"),
            ("train-{0..2}.tar", "train-1.tar"),
            ("none-*.tar", "no shard"),
        ] {
            fs::write(&path, &whole).unwrap();
            let error = open(&folder.path().join(name)).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}

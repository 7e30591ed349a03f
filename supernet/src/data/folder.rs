//! Image folders: `train/CLASS/*` with `test/CLASS/*`, `val/CLASS/*` or `valid/CLASS/*`.
//!
//! `test` is the test split; without it `val` (or `valid`) is. With both, `val` is the validation split.

use super::split::{Pixels, Store};
use super::{DataOptions, Loaded, decode, digest};
use crate::{Error, Result};
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// Deepest folder below a class folder, so that a link to a parent ends.
const MAX_DEPTH: usize = 16;

/// One split's files in order of class and path.
struct Listing {
    folder: PathBuf,
    classes: Vec<String>,
    files: Vec<(PathBuf, u32)>,
}

pub(super) fn open(root: &Path, options: &DataOptions) -> Result<Loaded> {
    let first = |names: &[&str]| names.iter().map(|name| root.join(name)).find(|folder| folder.is_dir());
    let validation = first(&["val", "valid"]);
    let (test, validation) = match (root.join("test").is_dir(), validation) {
        (true, validation) => (root.join("test"), validation),
        (false, Some(validation)) => (validation, None),
        (false, None) => {
            return Err(Error::Data(format!(
                "{} has train/ but neither test/ nor val/ nor valid/; put images that are never trained on into test/CLASS/",
                root.display()
            )));
        }
    };
    let train = list(&root.join("train"))?;
    let test = list(&test)?;
    let validation = validation.map(|folder| list(&folder)).transpose()?;
    for other in [Some(&test), validation.as_ref()].into_iter().flatten() {
        same_classes(&train, other)?;
    }

    let mut listings = vec![train, test];
    listings.extend(validation);
    let (mut bytes, mut skipped) = (0, 0);
    for listing in &mut listings {
        let probed: Vec<_> = listing.files.par_iter().map(|(path, _)| decode::probe(path)).collect();
        let (sizes, bad) = keep_good(listing, probed, options.skip_bad)?;
        bytes += sizes.iter().sum::<usize>();
        skipped += bad;
    }
    let cached = bytes <= options.cache_bytes;
    let mut stores = Vec::with_capacity(listings.len());
    for listing in &mut listings {
        let pixels = if cached {
            let read = |path: &Path| decode::decode(&fs::read(path).map_err(|e| format!("cannot be read: {e}"))?);
            let decoded: Vec<_> = listing.files.par_iter().map(|(path, _)| read(path)).collect();
            let (images, bad) = keep_good(listing, decoded, options.skip_bad)?;
            skipped += bad;
            Pixels::Decoded(images)
        } else {
            Pixels::Files(listing.files.iter().map(|(path, _)| path.clone()).collect())
        };
        let labels = listing.files.iter().map(|&(_, label)| label).collect();
        let origin = Some(digest::of_files(root, &listing.files)?);
        stores.push(Store { labels, pixels, origin });
    }
    let mut stores = stores.into_iter();
    let (Some(train), Some(test)) = (stores.next(), stores.next()) else { unreachable!("two listings at least") };
    let classes = std::mem::take(&mut listings[0].classes);
    Ok(Loaded { classes, train, validation: stores.next(), test, skipped })
}

/// Lists a split's classes (its folders, by name) and their files (also in folders below, by path).
fn list(folder: &Path) -> Result<Listing> {
    let mut listing = Listing { folder: folder.to_path_buf(), classes: Vec::new(), files: Vec::new() };
    for path in entries(folder)? {
        if !path.is_dir() {
            return Err(Error::format(&path, "is a file where class folders are expected; move it into its class"));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let label = listing.classes.len() as u32;
        let before = listing.files.len();
        files_below(&path, label, 0, &mut listing.files)?;
        if listing.files.len() == before {
            return Err(empty_class(&path));
        }
        listing.classes.push(name);
    }
    if listing.classes.is_empty() {
        return Err(Error::format(folder, "has no class folders; expected CLASS/*.jpg or CLASS/*.png"));
    }
    Ok(listing)
}

fn files_below(folder: &Path, label: u32, depth: usize, files: &mut Vec<(PathBuf, u32)>) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::format(
            folder,
            format!("lies more than {MAX_DEPTH} folders below its class; is a link circular?"),
        ));
    }
    for path in entries(folder)? {
        if path.is_dir() {
            files_below(&path, label, depth + 1, files)?;
        } else {
            files.push((path, label));
        }
    }
    Ok(())
}

/// What a folder holds, by name, without what file managers leave behind (hidden files, `Thumbs.db`, `desktop.ini`).
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::file(folder, e))? {
        let entry = entry.map_err(|e| Error::file(folder, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') && name != "Thumbs.db" && name != "desktop.ini" {
            paths.push(entry.path());
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

fn empty_class(folder: &Path) -> Error {
    Error::format(
        folder,
        "is an empty class: it has no readable image; add images or remove the folder from every split",
    )
}

fn same_classes(train: &Listing, other: &Listing) -> Result<()> {
    let lacking = |of: &Listing, than: &Listing| -> Vec<String> {
        of.classes.iter().filter(|class| than.classes.binary_search(class).is_err()).cloned().collect()
    };
    let (missing, extra) = (lacking(train, other), lacking(other, train));
    let mut differences = Vec::new();
    for (what, classes) in [("lacks", missing), ("has besides them", extra)] {
        if !classes.is_empty() {
            let more = if classes.len() > 5 { format!(" and {} more", classes.len() - 5) } else { String::new() };
            differences.push(format!("{what} {}{more}", classes[..classes.len().min(5)].join(", ")));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::format(
        &other.folder,
        format!("has not the classes of {}: it {}", train.folder.display(), differences.join(" and ")),
    ))
}

/// Removes files whose result is a reason from `listing`; gives the other results and the number removed. Without
/// `skip_bad` the first reason is an error; so is a class of which nothing is left.
fn keep_good<T>(listing: &mut Listing, results: Vec<Result<T, String>>, skip_bad: bool) -> Result<(Vec<T>, usize)> {
    let bad = results.iter().filter(|result| result.is_err()).count();
    let mut good = Vec::with_capacity(results.len() - bad);
    let mut files = Vec::with_capacity(results.len() - bad);
    for (file, result) in std::mem::take(&mut listing.files).into_iter().zip(results) {
        match result {
            Ok(value) => {
                good.push(value);
                files.push(file);
            }
            Err(_) if skip_bad => {}
            Err(reason) => {
                let others =
                    if bad > 1 { format!("; {} other files are unreadable too", bad - 1) } else { String::new() };
                return Err(Error::format(
                    file.0,
                    format!("{reason}{others} (repair or remove them, or let unreadable images be skipped)"),
                ));
            }
        }
    }
    listing.files = files;
    if bad > 0 {
        let mut left = vec![false; listing.classes.len()];
        listing.files.iter().for_each(|&(_, label)| left[label as usize] = true);
        if let Some(empty) = left.iter().position(|left| !left) {
            return Err(empty_class(&listing.folder.join(&listing.classes[empty])));
        }
    }
    Ok((good, bad))
}

#[cfg(test)]
mod tests {
    use crate::data::decode::tests::{jpeg, png};
    use crate::data::{DataOptions, Dataset};
    use image::ColorType;
    use std::fs;
    use std::path::Path;

    fn put(root: &Path, path: &str, bytes: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn grey(level: u8) -> Vec<u8> {
        png(4, 4, &[level; 48], ColorType::Rgb8)
    }

    /// Two classes, four training images and one test image each.
    fn sample(test: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for class in ["cat", "dog"] {
            for i in 0..4 {
                put(root.path(), &format!("train/{class}/{i}.png"), &grey(10 * i));
            }
            put(root.path(), &format!("{test}/{class}/9.jpg"), &jpeg(6, 3, &[200; 54]));
        }
        root
    }

    fn open(root: &Path, options: &DataOptions) -> crate::Result<Dataset> {
        Dataset::open(root.to_str().unwrap(), options)
    }

    fn none() -> DataOptions {
        DataOptions { validation: 0, ..Default::default() }
    }

    #[test]
    fn reads_the_same_from_cache_and_on_demand() {
        let root = sample("val");
        // The content decides, not the name.
        put(root.path(), "train/cat/5.jpg", &grey(99));
        put(root.path(), "train/cat/.DS_Store", b"x");
        let cached = open(root.path(), &none()).unwrap();
        let fresh = open(root.path(), &DataOptions { cache_bytes: 0, ..none() }).unwrap();
        assert!(cached.train.in_memory() && !fresh.train.in_memory());
        assert_eq!(cached.classes, ["cat", "dog"]);
        assert_eq!((cached.train.len(), cached.validation.len(), cached.test.len()), (9, 0, 2));
        assert_eq!((cached.test.label(1), cached.test.image(1).unwrap().width), (1, 6));
        for i in 0..9 {
            assert_eq!(cached.train.image(i).unwrap(), fresh.train.image(i).unwrap());
            assert_eq!(cached.train.label(i), u32::from(i >= 5));
        }
        assert_eq!(cached.normalisation, fresh.normalisation);
        assert_eq!(cached.train.image(4).unwrap().pixels[0], 99);
    }

    #[test]
    fn a_validation_folder_beside_test_is_the_validation_split() {
        let root = sample("test");
        put(root.path(), "val/cat/a.png", &grey(1));
        put(root.path(), "val/dog/a.png", &grey(2));
        let data = open(root.path(), &DataOptions { validation: 3, ..none() }).unwrap();
        assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (8, 2, 2));
    }

    #[test]
    fn each_fault_is_named_and_bad_images_can_be_skipped() {
        let fault = |change: &dyn Fn(&Path), parts: &[&str]| {
            let root = sample("test");
            change(root.path());
            let error = open(root.path(), &none()).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{part} in {error}");
            }
            root
        };
        fault(&|root| fs::remove_dir_all(root.join("test")).unwrap(), &["test/CLASS"]);
        fault(&|root| fs::create_dir(root.join("train/emu")).unwrap(), &["train/emu", "empty class"]);
        fault(&|root| put(root, "train/emu/1.png", &grey(1)), &["test", "lacks emu"]);
        fault(&|root| put(root, "test/emu/1.png", &grey(1)), &["test", "besides them emu"]);
        fault(&|root| put(root, "train/a.png", &grey(1)), &["train/a.png", "class"]);

        let broken = |root: &Path| {
            let whole = jpeg(9, 9, &[77; 243]);
            put(root, "train/dog/7.jpg", &whole[..whole.len() - 30]);
            put(root, "train/dog/8.txt", b"notes");
        };
        let root = fault(&broken, &["train/dog/7.jpg", "truncated", "1 other"]);
        for cache_bytes in [0, usize::MAX] {
            let data = open(root.path(), &DataOptions { skip_bad: true, cache_bytes, ..none() }).unwrap();
            assert_eq!((data.train.len(), data.skipped), (8, 2));
        }
        fs::write(root.path().join("test/dog/9.jpg"), b"").unwrap();
        let error = open(root.path(), &DataOptions { skip_bad: true, ..none() }).unwrap_err().to_string();
        assert!(error.contains("test/dog") && error.contains("empty class"), "{error}");
    }
}

//! Image folders: `train/CLASS/*` with `test/CLASS/*` or one of `val/CLASS/*`, `valid/CLASS/*`, `validation/CLASS/*`.
//!
//! `test` is the test split; without `test` the validation folder is. If both exist, the validation folder is the
//! validation split.

use super::listing::{Listing, entries, is_image};
use super::opening::{Opening, Splits};
use super::source::Source;
use super::split::{Pixels, Store};
use super::{Loaded, decode, digest, no_images};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Accepted names of the validation folder.
pub(super) const VALIDATION: [&str; 3] = ["val", "valid", "validation"];

/// Whether `root` is an image folder from which `splits` can be opened.
pub(super) fn is_image_folder(root: &Path, splits: Splits) -> bool {
    let has = |name: &str| root.join(name).is_dir();
    has("train") || splits == Splits::Test && (has("test") || VALIDATION.into_iter().any(has))
}

/// A folder of a class of training images, if there is one.
pub(super) fn class_folder(root: &Path) -> Option<PathBuf> {
    entries(&root.join("train")).ok()?.into_iter().find(|path| path.is_dir())
}

/// Advice for a folder that holds the folders of classes itself; `None` for any other.
pub(super) fn advice_for_classes(root: &Path) -> Option<String> {
    let is_class =
        |path: &PathBuf| path.is_dir() && entries(path).is_ok_and(|inside| inside.iter().any(|p| is_image(p)));
    let class = entries(root).ok()?.into_iter().find(is_class)?;
    let name = class.file_name()?.to_string_lossy().into_owned();
    Some(format!(
        ": it holds folders of images such as '{name}'; if these are its classes, move them into train/, and a part of \
         the images of each into test/CLASS/"
    ))
}

/// The test folder, and the validation folder if it is not the test folder.
fn held_back(root: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let found: Vec<&str> = VALIDATION.into_iter().filter(|name| root.join(name).is_dir()).collect();
    if let [first, second, ..] = found[..] {
        let reason =
            format!("has both {first}/ and {second}/, which could each be the validation split; keep one of them");
        return Err(Error::format(root, reason));
    }
    let validation = found.first().map(|name| root.join(name));
    match (root.join("test").is_dir(), validation) {
        (true, validation) => Ok((root.join("test"), validation)),
        (false, Some(validation)) => Ok((validation, None)),
        (false, None) => Err(Error::format(
            root,
            "has train/ but neither test/ nor val/, valid/ or validation/; put images that are never trained on into \
             test/CLASS/",
        )),
    }
}

pub(super) fn open(root: &Path, opening: &Opening) -> Result<Loaded> {
    let (test, validation) = held_back(root)?;
    // Advice for images without labels, such as the test images of contests.
    let without_test = match &validation {
        Some(validation) => {
            format!(", or move {} elsewhere: then {} is the test split", test.display(), validation.display())
        }
        None => String::new(),
    };
    let without_validation = validation.as_ref().map_or(String::new(), |folder| {
        format!(", or move {} elsewhere: then validation images are carved from the training images", folder.display())
    });
    let mut listings = Vec::new();
    if opening.splits == Splits::All {
        listings.push(Listing::of(&root.join("train"), "", opening)?);
    }
    listings.push(Listing::of(&test, &without_test, opening)?);
    if let (Splits::All, Some(validation)) = (opening.splits, &validation) {
        listings.push(Listing::of(validation, &without_validation, opening)?);
    }
    if let [train, others @ ..] = &listings[..] {
        for (other, way_out) in others.iter().zip([&without_test, &without_validation]) {
            other.same_classes(train, way_out)?;
        }
    }
    let notes = listings.iter().filter_map(Listing::note).collect();
    let (stores, skipped) = read(root, &mut listings, opening)?;
    let mut stores = stores.into_iter();
    let train = if opening.splits == Splits::All { stores.next() } else { Some(no_images()) };
    let (Some(train), Some(test)) = (train, stores.next()) else { unreachable!("a store for each listing") };
    let classes = std::mem::take(&mut listings[0].classes);
    Ok(Loaded { classes, train, validation: stores.next(), test, skipped, notes })
}

/// Images of each listing, decoded if all of them fit into the cache, and the number of bad images skipped.
pub(super) fn read(root: &Path, listings: &mut [Listing], opening: &Opening) -> Result<(Vec<Store>, usize)> {
    let skip_bad = opening.options.skip_bad;
    let (mut bytes, mut skipped) = (0, 0);
    for listing in listings.iter_mut() {
        let probed = opening.map("looking at images", &listing.files, |(source, _)| source.probe())?;
        let (sizes, bad) = listing.keep_good(probed, skip_bad)?;
        bytes += sizes.iter().sum::<usize>();
        skipped += bad;
    }
    let cached = bytes <= opening.options.cache_bytes;
    let decode = |source: &Source| decode::decode_checked(&source.read()?);
    let mut stores = Vec::with_capacity(listings.len());
    for listing in listings {
        let pixels = if cached {
            let decoded = opening.map("reading images", &listing.files, |(source, _)| decode(source))?;
            let (images, bad) = listing.keep_good(decoded, skip_bad)?;
            skipped += bad;
            Pixels::Decoded(images)
        } else {
            if skip_bad {
                // Damage inside a file shows only when it is decoded. It must not stop a training later, and which
                // images are skipped must not depend on the cache.
                let decodes = |(source, _): &(Source, u32)| decode(source).map(drop);
                let decoded = opening.map("looking for damaged images", &listing.files, decodes)?;
                skipped += listing.keep_good(decoded, skip_bad)?.1;
            }
            Pixels::Files(listing.files.iter().map(|(source, _)| source.clone()).collect())
        };
        let labels = listing.files.iter().map(|(_, label)| *label).collect();
        let origin = Some(digest::of_files(root, &listing.files)?);
        stores.push(Store { labels, pixels, origin });
    }
    Ok((stores, skipped))
}

#[cfg(test)]
mod tests {
    use crate::Error;
    use crate::data::decode::tests::{jpeg, png};
    use crate::data::{DataOptions, Dataset, Normalisation, Splits};
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

    /// A folder with two classes, each with four training images and one test image.
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
        DataOptions { validation: Some(0), ..Default::default() }
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
    fn each_name_of_a_validation_folder_is_known_and_two_are_refused() {
        for name in ["val", "valid", "validation"] {
            let root = sample("test");
            for class in ["cat", "dog"] {
                put(root.path(), &format!("{name}/{class}/a.png"), &grey(7));
            }
            let data = open(root.path(), &none()).unwrap();
            assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (8, 2, 2));
            for other in ["val", "valid", "validation"].iter().filter(|&&other| other != name) {
                fs::create_dir(root.path().join(other)).unwrap();
                let error = open(root.path(), &none()).unwrap_err().to_string();
                assert!(error.contains(&format!("{name}/")) && error.contains(&format!("{other}/")), "{error}");
                fs::remove_dir(root.path().join(other)).unwrap();
            }
            fs::remove_dir_all(root.path().join("test")).unwrap();
            let data = open(root.path(), &none()).unwrap();
            assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (8, 0, 2));
        }
    }

    #[test]
    fn the_same_damaged_images_are_skipped_from_cache_and_on_demand() {
        let root = sample("test");
        let noise: Vec<u8> = (0..20 * 20 * 3).map(|i: usize| (i * i * 7919 % 251) as u8).collect();
        for (split, class) in [("train", "cat"), ("train", "dog"), ("test", "cat")] {
            let mut bytes = png(20, 20, &noise, ColorType::Rgb8);
            let data = bytes.windows(4).position(|window| window == b"IDAT").unwrap() + 30;
            bytes[data..data + 40].iter_mut().for_each(|byte| *byte ^= 0x5a);
            put(root.path(), &format!("{split}/{class}/damaged.png"), &bytes);
        }
        let whole = jpeg(64, 64, &noise.repeat(11)[..64 * 64 * 3]);
        put(root.path(), "train/dog/cut.jpg", &[&whole[..whole.len() / 2], &[0xff, 0xd9]].concat());
        let read = |cache_bytes| {
            let data = open(root.path(), &DataOptions { skip_bad: true, cache_bytes, ..none() }).unwrap();
            let images: Vec<_> =
                (0..data.train.len()).map(|i| data.train.image(i).unwrap().pixels.into_owned()).collect();
            (images, data.test.len(), data.skipped, data.normalisation)
        };
        assert_eq!((read(0).0.len(), read(0).1, read(0).2), (8, 2, 4));
        assert_eq!(read(0), read(usize::MAX));
        // Without skipping, damage is found when the image is decoded, and the error names the remedy.
        for cache_bytes in [0, usize::MAX] {
            let options = DataOptions { cache_bytes, ..none() };
            let error = open(root.path(), &options).unwrap_err().to_string();
            assert!(error.contains("damaged.png") && error.contains("--skip-bad"), "{error}");
        }
    }

    #[test]
    fn only_the_test_split_is_read_where_no_other_is_asked_for() {
        let root = sample("test");
        put(root.path(), "train/cat/bad.png", b"bad");
        put(root.path(), "val/emu/0.png", &grey(1));
        let options = DataOptions { normalisation: Some(Normalisation::IMAGENET), ..none() };
        let read =
            |root: &Path, options| {
                Dataset::open_splits(root.to_str().unwrap(), options, Splits::Test, &|_| {
                    std::ops::ControlFlow::Continue(())
                })
            };
        for _ in 0..2 {
            let data = read(root.path(), &options).unwrap();
            assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (0, 0, 2));
            assert_eq!((data.classes.as_slice(), data.test.label(1)), (&["cat".into(), "dog".into()][..], 1));
            let _ = fs::remove_dir_all(root.path().join("train"));
        }
        assert!(open(root.path(), &options).unwrap_err().to_string().contains("no layout"));
        let unmeasured = none();
        assert!(read(root.path(), &unmeasured).unwrap_err().to_string().contains("normalisation must be given"));
        let beside = sample("valid");
        fs::remove_dir_all(beside.path().join("train")).unwrap();
        assert_eq!(read(beside.path(), &options).unwrap().test.len(), 2);
    }

    #[test]
    fn opening_stops_at_each_kind_of_work() {
        let root = sample("test");
        let stopped_at = |work: &str, cache_bytes| {
            let options = DataOptions { skip_bad: true, cache_bytes, ..none() };
            let opened = Dataset::open_splits(root.path().to_str().unwrap(), &options, Splits::All, &|progress| {
                if progress.work == work {
                    std::ops::ControlFlow::Break(())
                } else {
                    std::ops::ControlFlow::Continue(())
                }
            });
            matches!(opened, Err(Error::Interrupted))
        };
        for work in ["opening data", "listing images", "looking at images", "reading images", "measuring colours"] {
            assert!(stopped_at(work, usize::MAX), "{work}");
        }
        assert!(stopped_at("looking for damaged images", 0) && !stopped_at("looking for damaged images", usize::MAX));
    }

    #[test]
    fn what_is_no_image_and_no_class_is_passed_over() {
        let root = sample("test");
        for name in ["@eaDir", ".thumbnails", "__MACOSX"] {
            put(root.path(), &format!("train/{name}/0.png"), &grey(1));
            put(root.path(), &format!("train/cat/{name}/0.png"), &grey(1));
        }
        put(root.path(), "train/dog/Thumbs.db", b"x");
        let data = open(root.path(), &none()).unwrap();
        assert_eq!((data.train.len(), data.classes.len(), data.notes.len()), (8, 2, 0));
        put(root.path(), "train/labels.csv", b"name,label");
        put(root.path(), "train/cat/cat_boxes.txt", b"0 0 1 1");
        put(root.path(), "test/LICENCE", b"free");
        let data = open(root.path(), &none()).unwrap();
        assert_eq!((data.train.len(), data.test.len(), data.skipped), (8, 2, 0));
        let notes = data.notes.join("\n");
        assert!(notes.contains("train: ignored 2 files") && notes.contains("LICENCE"), "{notes}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn class_names_that_are_not_utf8_are_refused_with_their_bytes() {
        use std::os::unix::ffi::OsStrExt;
        let root = sample("test");
        for split in ["train", "test"] {
            let class = root.path().join(split).join(std::ffi::OsStr::from_bytes(b"\xe9a"));
            fs::create_dir(&class).unwrap();
            fs::write(class.join("0.png"), grey(3)).unwrap();
        }
        let error = open(root.path(), &none()).unwrap_err().to_string();
        assert!(error.contains("train") && error.contains("not UTF-8") && error.contains(r"\xe9a"), "{error}");
    }

    #[test]
    fn names_in_two_unicode_forms_are_told_apart() {
        let root = sample("test");
        put(root.path(), "train/caf\u{e9}/0.png", &grey(3));
        put(root.path(), "test/cafe\u{301}/0.png", &grey(3));
        let error = open(root.path(), &none()).unwrap_err().to_string();
        for part in [r"caf\u{e9}", r"cafe\u{301}", "NFC", "NFD"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn the_way_out_is_named_where_images_have_no_labels() {
        for flat in ["test/7.png", "test/images/7.png"] {
            let root = sample("val");
            put(root.path(), flat, &grey(1));
            let error = open(root.path(), &DataOptions { skip_bad: true, ..none() }).unwrap_err().to_string();
            let parts = ["no class folders", "move", "val is the test split"];
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
            fs::rename(root.path().join("test"), root.path().join("unlabelled")).unwrap();
            assert_eq!(open(root.path(), &none()).unwrap().test.len(), 2);
        }
        let root = sample("test");
        put(root.path(), "val/7.png", &grey(1));
        let error = open(root.path(), &none()).unwrap_err().to_string();
        assert!(error.contains("val") && error.contains("carved"), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn only_regular_files_are_images() {
        use std::os::unix::{fs::symlink, net::UnixListener};
        let root = sample("test");
        let cat = root.path().join("train/cat");
        assert!(std::process::Command::new("mkfifo").arg(cat.join("pipe.jpg")).status().unwrap().success());
        let _socket = UnixListener::bind(cat.join("socket.jpg")).unwrap();
        symlink("/dev/zero", cat.join("zeros.jpg")).unwrap();
        symlink("nowhere.png", cat.join("gone.png")).unwrap();
        for cache_bytes in [0, usize::MAX] {
            let data = open(root.path(), &DataOptions { skip_bad: true, cache_bytes, ..none() }).unwrap();
            assert_eq!((data.train.len(), data.skipped), (8, 4));
        }
        for (name, kind) in [
            ("gone.png", "a dangling link: its target nowhere.png"),
            ("pipe.jpg", "a FIFO"),
            ("socket.jpg", "a socket"),
            ("zeros.jpg", "a device"),
        ] {
            let error = open(root.path(), &none()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(kind), "{error}");
            fs::remove_file(cat.join(name)).unwrap();
        }
        symlink("nowhere", root.path().join("train/emu")).unwrap();
        let error = open(root.path(), &none()).unwrap_err().to_string();
        assert!(error.contains("train/emu") && error.contains("dangling link"), "{error}");
    }

    #[test]
    fn images_of_one_colour_are_noted() {
        let root = tempfile::tempdir().unwrap();
        for path in ["train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png"] {
            put(root.path(), path, &grey(0));
        }
        let notes = open(root.path(), &none()).unwrap().notes.join("\n");
        assert!(notes.contains(root.path().to_str().unwrap()) && notes.contains("one colour"), "{notes}");
        put(root.path(), "train/b/1.png", &grey(1));
        assert!(open(root.path(), &none()).unwrap().notes.is_empty());
    }

    #[test]
    fn a_validation_folder_beside_test_is_the_validation_split() {
        let root = sample("test");
        put(root.path(), "val/cat/a.png", &grey(1));
        put(root.path(), "val/dog/a.png", &grey(2));
        let data = open(root.path(), &DataOptions { validation: Some(3), ..none() }).unwrap();
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
        fault(&|root| put(root, "test/emu/1.png", &grey(1)), &["test", "in addition emu"]);
        fault(&|root| put(root, "train/a.png", &grey(1)), &["train/a.png", "class"]);

        let broken = |root: &Path| {
            let whole = jpeg(9, 9, &[77; 243]);
            put(root, "train/dog/7.jpg", &whole[..whole.len() - 30]);
            put(root, "train/dog/8.dat", b"notes");
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

//! CIFAR-10 and CIFAR-100 in their binary versions (Krizhevsky, 2009): records of one label byte (CIFAR-100: coarse and
//! fine) and 32x32 bytes of red, then green, then blue.

use super::opening::{Opening, Splits};
use super::split::{Pixels, Store};
use super::{Loaded, no_images, regular};
use crate::files::read_text;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
/// Number of training batches of the published CIFAR-10.
const CIFAR10_BATCHES: usize = 5;

/// The files of a CIFAR folder.
pub(super) struct Layout {
    train: Vec<PathBuf>,
    test: PathBuf,
    names: PathBuf,
    /// Label bytes per record; the last one is the class.
    label_bytes: usize,
    classes: usize,
}

impl Layout {
    /// The layout of `root` if it is a CIFAR folder.
    ///
    /// # Errors
    /// A training batch is missing before another one.
    pub fn of(root: &Path) -> Result<Option<Layout>> {
        let mut batches = Vec::new();
        for entry in fs::read_dir(root).map_err(|e| Error::file(root, e))? {
            let name = entry.map_err(|e| Error::file(root, e))?.file_name();
            let name = name.to_string_lossy();
            let number = name.strip_prefix("data_batch_").and_then(|rest| rest.strip_suffix(".bin"));
            if let Some(number) = number.and_then(|number| number.parse::<u32>().ok()) {
                batches.push((number, root.join(&*name)));
            }
        }
        batches.sort_unstable();
        let present: Vec<u32> = batches.iter().map(|&(number, _)| number).collect();
        if let (Some(missing), Some(last)) = ((1..).find(|number| !present.contains(number)), present.last())
            && missing < *last
        {
            let reason =
                format!("is missing, but there is data_batch_{last}.bin; fetch it, or number the batches from 1 on");
            return Err(Error::format(root.join(format!("data_batch_{missing}.bin")), reason));
        }
        let layout = if !batches.is_empty() || root.join("test_batch.bin").is_file() {
            Layout {
                train: batches.into_iter().map(|(_, path)| path).collect(),
                test: root.join("test_batch.bin"),
                names: root.join("batches.meta.txt"),
                label_bytes: 1,
                classes: 10,
            }
        } else if root.join("train.bin").is_file() || root.join("test.bin").is_file() {
            // If one of the two is missing, reading it names it.
            Layout {
                train: vec![root.join("train.bin")],
                test: root.join("test.bin"),
                names: root.join("fine_label_names.txt"),
                label_bytes: 2,
                classes: 100,
            }
        } else {
            return Ok(None);
        };
        Ok(Some(layout))
    }

    pub fn open(self, opening: &Opening) -> Result<Loaded> {
        let all = opening.splits == Splits::All;
        if all && self.train.is_empty() {
            let reason = "is missing, but there is test_batch.bin; fetch it";
            return Err(Error::format(self.test.with_file_name("data_batch_1.bin"), reason));
        }
        let classes = self.class_names()?;
        let mut skipped = 0;
        let mut read = |paths: &[PathBuf]| -> Result<Store> {
            let (mut labels, mut bytes) = (Vec::new(), Vec::new());
            for path in paths {
                opening.check("reading images")?;
                skipped += self.read(path, opening.options.skip_bad, &mut labels, &mut bytes)?;
            }
            Ok(Store { labels, pixels: Pixels::Uniform { width: SIDE, height: SIDE, bytes }, origin: None })
        };
        let train = if all { read(&self.train)? } else { no_images() };
        let test = read(std::slice::from_ref(&self.test))?;
        let train_file = all.then(|| (&self.train[0], &train));
        for (path, store) in train_file.into_iter().chain([(&self.test, &test)]) {
            if let Some(empty) = (0..classes.len()).find(|&c| !store.labels.contains(&(c as u32))) {
                let reason = format!("has no image of class {empty} ({}), an empty class", classes[empty]);
                return Err(Error::format(path, reason));
            }
        }
        let mut notes = Vec::new();
        if all && self.label_bytes == 1 && self.train.len() != CIFAR10_BATCHES {
            let shown = self.train[0].parent().unwrap_or(Path::new("")).display();
            notes.push(format!(
                "{shown}: {} of CIFAR-10's {CIFAR10_BATCHES} training batches are there",
                self.train.len()
            ));
        }
        Ok(Loaded { classes, train, validation: None, test, skipped, notes })
    }

    /// Names from the text file beside the images; numbers if there is no such file.
    fn class_names(&self) -> Result<Vec<String>> {
        if !self.names.exists() {
            return Ok((0..self.classes).map(|class| class.to_string()).collect());
        }
        let text = read_text(&self.names)?;
        let names: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
        if names.len() != self.classes {
            return Err(Error::format(&self.names, format!("has {} names; expected {}", names.len(), self.classes)));
        }
        Ok(names)
    }

    /// Appends the records of one file, pixels interleaved; returns the number of bad records skipped.
    fn read(&self, path: &Path, skip_bad: bool, labels: &mut Vec<u32>, pixels: &mut Vec<u8>) -> Result<usize> {
        let bytes = regular::read(path).map_err(|reason| Error::format(path, reason))?;
        let record = self.label_bytes + 3 * PLANE;
        let rest = bytes.len() % record;
        let mut skipped = 0;
        if rest != 0 {
            if !skip_bad {
                return Err(Error::format(
                    path,
                    format!(
                        "is truncated: {} bytes are {} records of {record} bytes and {rest} bytes more; fetch it again",
                        bytes.len(),
                        bytes.len() / record
                    ),
                ));
            }
            skipped += 1;
        }
        labels.reserve(bytes.len() / record);
        pixels.reserve(bytes.len() / record * 3 * PLANE);
        for (index, image) in bytes.chunks_exact(record).enumerate() {
            let label = image[self.label_bytes - 1];
            if usize::from(label) >= self.classes {
                if !skip_bad {
                    return Err(Error::format(
                        path,
                        format!("image {index} has label {label}, out of range; expected 0 to {}", self.classes - 1),
                    ));
                }
                skipped += 1;
                continue;
            }
            labels.push(u32::from(label));
            let planes = &image[self.label_bytes..];
            let (red, rest) = planes.split_at(PLANE);
            let (green, blue) = rest.split_at(PLANE);
            pixels.extend(red.iter().zip(green).zip(blue).flat_map(|((&r, &g), &b)| [r, g, b]));
        }
        Ok(skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DataOptions, Dataset};

    fn records(label_bytes: usize, classes: u8, copies: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in (0..classes).cycle().take(copies * usize::from(classes)) {
            bytes.extend(vec![3; label_bytes - 1]);
            bytes.push(label);
            bytes.extend((0..3 * PLANE).map(|i| (i / PLANE * 50 + i % PLANE % 40) as u8));
        }
        bytes
    }

    fn open(root: &Path, skip_bad: bool) -> Result<Dataset> {
        Dataset::open(root.to_str().unwrap(), &DataOptions { validation: Some(0), skip_bad, ..Default::default() })
    }

    #[test]
    fn cifar10_and_its_faults() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::write(root.join("data_batch_1.bin"), records(1, 10, 2)).unwrap();
        fs::write(root.join("data_batch_2.bin"), records(1, 10, 1)).unwrap();
        assert!(open(root, false).unwrap_err().to_string().contains("test_batch.bin"));
        fs::write(root.join("test_batch.bin"), records(1, 10, 1)).unwrap();
        assert_eq!(open(root, false).unwrap().classes[3], "3");
        fs::write(root.join("batches.meta.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
        let data = open(root, false).unwrap();
        assert_eq!((data.train.len(), data.test.len(), data.classes[3].as_str()), (30, 10, "d"));
        let image = data.train.image(25).unwrap();
        assert_eq!((data.train.label(25), image.width, image.height), (5, 32, 32));
        assert_eq!(image.pixels[3 * 33..3 * 33 + 3], [33, 83, 133]);

        let mut bytes = records(1, 10, 2);
        bytes[3073 * 4] = 10;
        bytes.truncate(bytes.len() - 7);
        fs::write(root.join("data_batch_2.bin"), &bytes).unwrap();
        let error = open(root, false).unwrap_err().to_string();
        assert!(error.contains("data_batch_2.bin") && error.contains("truncated"), "{error}");
        let data = open(root, true).unwrap();
        assert_eq!((data.train.len(), data.skipped), (20 + 18, 2));
        bytes.truncate(3073 * 19);
        fs::write(root.join("data_batch_2.bin"), &bytes).unwrap();
        let error = open(root, false).unwrap_err().to_string();
        assert!(error.contains("label 10") && error.contains("image 4"), "{error}");
        fs::write(root.join("batches.meta.txt"), "a\nb\n").unwrap();
        assert!(open(root, false).unwrap_err().to_string().contains("2 names; expected 10"));
    }

    #[test]
    fn a_training_batch_missing_in_the_middle_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["data_batch_1.bin", "data_batch_2.bin", "data_batch_4.bin", "test_batch.bin"] {
            fs::write(root.join(name), records(1, 10, 1)).unwrap();
        }
        let error = open(root, false).unwrap_err().to_string();
        assert!(error.contains("data_batch_3.bin") && error.contains("missing"), "{error}");
        fs::remove_file(root.join("data_batch_4.bin")).unwrap();
        let data = open(root, false).unwrap();
        assert!(data.train.len() == 20 && data.notes[0].contains("2 of CIFAR-10's 5"), "{:?}", data.notes);
        for batch in ["data_batch_1.bin", "data_batch_2.bin"] {
            fs::remove_file(root.join(batch)).unwrap();
        }
        let error = open(root, false).unwrap_err().to_string();
        assert!(error.contains("data_batch_1.bin") && error.contains("missing"), "{error}");
        assert_eq!(test_split(root).unwrap().test.len(), 10);
    }

    fn test_split(root: &Path) -> Result<Dataset> {
        let options = DataOptions { normalisation: Some(crate::data::Normalisation::IMAGENET), ..Default::default() };
        let go_on = |_| std::ops::ControlFlow::Continue(());
        Dataset::open_splits(root.to_str().unwrap(), &options, Splits::Test, &go_on)
    }

    #[test]
    fn cifar100_uses_fine_labels() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("train.bin"), records(2, 100, 1)).unwrap();
        fs::write(folder.path().join("test.bin"), records(2, 100, 1)).unwrap();
        let data = open(folder.path(), false).unwrap();
        assert_eq!((data.classes.len(), data.test.label(42)), (100, 42));
        fs::write(folder.path().join("test.bin"), records(2, 99, 1)).unwrap();
        let error = open(folder.path(), false).unwrap_err().to_string();
        assert!(error.contains("test.bin") && error.contains("class 99"), "{error}");
    }
}

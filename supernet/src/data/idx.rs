//! IDX files (the format of MNIST, Fashion-MNIST, KMNIST and EMNIST), plain or gzipped; grey becomes three channels.

use super::opening::{Opening, Splits};
use super::split::{Pixels, Store};
use super::{Loaded, no_images, regular};
use crate::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Magic number of u8 data of three dimensions: images.
const IMAGES_MAGIC: u32 = 0x0803;
/// Magic number of u8 data of one dimension: labels.
const LABELS_MAGIC: u32 = 0x0801;
/// Most pixels that a file may announce: 2^33, about a hundred times as many as MNIST's larger relatives have.
const MAX_VALUES: u64 = 1 << 33;
const MAX_SIDE: u32 = 16_384;

/// The four files of an IDX folder.
pub(super) struct Layout {
    /// Training images; not needed if only the test split is read.
    train_images: Option<PathBuf>,
    /// Training labels, which define the classes.
    train_labels: Option<PathBuf>,
    /// Test images and labels.
    test: (PathBuf, PathBuf),
}

impl Layout {
    /// The layout of `root`, if there are images in IDX form.
    ///
    /// # Errors
    /// A companion file is missing, or several files fit one role.
    pub fn of(root: &Path, splits: Splits) -> Result<Option<Layout>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(root).map_err(|e| Error::file(root, e))? {
            let entry = entry.map_err(|e| Error::file(root, e))?;
            if !entry.path().is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        // Hidden files can have names of data files: macOS stores attributes of NAME in ._NAME.
        names.retain(|name: &String| !name.starts_with('.'));
        names.sort_unstable();
        let find = |splits: &[&str], kind: &str, rank: u32| -> Result<Option<PathBuf>> {
            let fits = |name: &&String| {
                let name = name.strip_suffix(".gz").unwrap_or(name);
                splits.iter().any(|split| {
                    [".", "-"].iter().any(|dot| name.ends_with(&format!("{split}-{kind}{dot}idx{rank}-ubyte")))
                })
            };
            match *names.iter().filter(fits).collect::<Vec<_>>() {
                [] => Ok(None),
                [name] => Ok(Some(root.join(name))),
                // The same file, packed and unpacked, counts once.
                [plain, packed] if *packed == format!("{plain}.gz") => Ok(Some(root.join(plain))),
                [first, second, ..] => Err(Error::format(
                    root,
                    format!("{first} and {second} could both be the {} {kind}; keep one set per folder", splits[0]),
                )),
            }
        };
        let train_images = find(&["train"], "images", 3)?;
        let train_labels = find(&["train"], "labels", 1)?;
        let test_images = find(&["t10k", "test"], "images", 3)?;
        let test_labels = find(&["t10k", "test"], "labels", 1)?;
        let found = [&train_images, &train_labels, &test_images, &test_labels];
        let Some(one) = found.into_iter().flatten().next().cloned() else { return Ok(None) };
        let need = |found: Option<PathBuf>, name: &str| {
            found.ok_or_else(|| Error::format(root, format!("has {} but no {name}[.gz]", one.display())))
        };
        let (train_images, train_labels) = match splits {
            Splits::Test => (train_images, train_labels),
            Splits::All => (
                Some(need(train_images, "train-images-idx3-ubyte")?),
                Some(need(train_labels, "train-labels-idx1-ubyte")?),
            ),
        };
        let test_images = need(test_images, "t10k-images-idx3-ubyte")?;
        let test_labels = need(test_labels, "t10k-labels-idx1-ubyte")?;
        Ok(Some(Layout { train_images, train_labels, test: (test_images, test_labels) }))
    }

    /// Reads the splits. Classes are the label numbers of the training images in order, or of the test images if there
    /// are no training labels.
    pub fn open(self, opening: &Opening) -> Result<Loaded> {
        let skip_bad = opening.options.skip_bad;
        let (train, train_skipped) = match (opening.splits, self.train_images, &self.train_labels) {
            (Splits::All, Some(images), Some(labels)) => read_split(&(images, labels.clone()), skip_bad)?,
            _ => (no_images(), 0),
        };
        opening.check("reading images")?;
        let (test, test_skipped) = read_split(&self.test, skip_bad)?;
        let mut numbers = match (opening.splits, &self.train_labels) {
            (Splits::All, _) => train.labels.clone(),
            (Splits::Test, Some(labels)) => {
                read(labels, LABELS_MAGIC, 1, false)?.1.into_iter().map(u32::from).collect()
            }
            (Splits::Test, None) => test.labels.clone(),
        };
        numbers.sort_unstable();
        numbers.dedup();
        let relabel = |store: &mut Store, path: &Path| -> Result<()> {
            for (index, label) in store.labels.iter_mut().enumerate() {
                let class = numbers.binary_search(label).map_err(|_| {
                    Error::format(path, format!("image {index} has label {label}, which no training image has"))
                })?;
                *label = class as u32;
            }
            Ok(())
        };
        let (mut train, mut test) = (train, test);
        relabel(&mut test, &self.test.1)?;
        if let Some(labels) = &self.train_labels {
            relabel(&mut train, labels)?;
        }
        if let Some(empty) = (0..numbers.len()).find(|&class| !test.labels.contains(&(class as u32))) {
            let reason =
                format!("has no image of label {}, which training images have: an empty class", numbers[empty]);
            return Err(Error::format(&self.test.1, reason));
        }
        let classes = numbers.iter().map(u32::to_string).collect();
        let skipped = train_skipped + test_skipped;
        Ok(Loaded { classes, train, validation: None, test, skipped, notes: Vec::new() })
    }
}

/// Images and labels of a split; with `skip_bad`, images cut off at the end of the file are skipped and counted.
fn read_split((images, labels): &(PathBuf, PathBuf), skip_bad: bool) -> Result<(Store, usize)> {
    let (counts, mut values) = read(labels, LABELS_MAGIC, 1, false)?;
    let (sizes, grey) = read(images, IMAGES_MAGIC, 3, skip_bad)?;
    let (&[label_count], &[count, height, width]) = (&counts[..], &sizes[..]) else {
        unreachable!("as many as asked for")
    };
    if label_count != count {
        let reason = format!("has {count} images, but {} has {label_count} labels", labels.display());
        return Err(Error::format(images, reason));
    }
    if count == 0 || width == 0 || height == 0 {
        return Err(Error::format(images, format!("has {count} images of {width}x{height} pixels; none can be empty")));
    }
    let (width, height) = (width as usize, height as usize);
    let whole = grey.len() / (width * height);
    values.truncate(whole);
    let bytes = grey[..whole * width * height].iter().flat_map(|&v| [v, v, v]).collect();
    let store = Store {
        labels: values.into_iter().map(u32::from).collect(),
        pixels: Pixels::Uniform { width, height, bytes },
        origin: None,
    };
    Ok((store, count as usize - whole))
}

/// Dimensions and values of one file; fewer values than announced are accepted only if `allow_short`.
fn read(path: &Path, magic: u32, rank: usize, allow_short: bool) -> Result<(Vec<u32>, Vec<u8>)> {
    regular::length(path).map_err(|reason| Error::format(path, reason))?;
    let failed = |e| Error::file(path, e);
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    // Compression is detected by content, as browsers unpack some downloads and keep the name.
    let packed = file.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
    let mut reader: Box<dyn Read> = if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };

    let mut header = vec![0; 4 * (rank + 1)];
    let got = read_up_to(&mut reader, &mut header).map_err(failed)?;
    let fields: Vec<u32> = header.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect();
    if got >= 4 && fields[0] != magic {
        let reason = format!("starts with {:#010x}; expected the magic number {magic:#010x} of an IDX file", fields[0]);
        return Err(Error::format(path, reason));
    }
    if got < header.len() {
        return Err(Error::format(
            path,
            format!("is truncated: {got} bytes are less than the header's {}", header.len()),
        ));
    }
    let sizes = fields[1..].to_vec();
    let total = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(u64::from(size)));
    let total = total.filter(|&total| total <= MAX_VALUES && sizes[1..].iter().all(|&side| side <= MAX_SIDE));
    let Some(total) = total else {
        return Err(Error::format(path, format!("announces {sizes:?} values, beyond the limit of {MAX_VALUES}")));
    };
    let mut values = Vec::new();
    // One byte more than announced shows whether there are too many; the announced size bounds what is unpacked.
    let end = reader.take(total + 1).read_to_end(&mut values);
    let found = values.len() as u64;
    if let Err(e) = end
        && !(packed && e.kind() == std::io::ErrorKind::UnexpectedEof)
    {
        return Err(failed(e));
    }
    if found < total && !allow_short {
        return Err(Error::format(path, format!("is truncated: {found} values of the announced {total} are there")));
    }
    if found > total {
        return Err(Error::format(path, format!("has more than the {total} values that its header announces")));
    }
    Ok((sizes, values))
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match reader.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DataOptions, Dataset};
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn idx(magic: u32, sizes: &[u32], values: impl IntoIterator<Item = u8>) -> Vec<u8> {
        let mut bytes: Vec<u8> = [magic].iter().chain(sizes).flat_map(|v| v.to_be_bytes()).collect();
        bytes.extend(values);
        bytes
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn images(count: u32) -> Vec<u8> {
        idx(IMAGES_MAGIC, &[count, 3, 2], (0..count * 6).map(|v| v as u8))
    }

    /// A label file with labels 1, 2, 1, 2, ...
    fn labels(count: u32) -> Vec<u8> {
        idx(LABELS_MAGIC, &[count], (0..count).map(|v| 1 + (v % 2) as u8))
    }

    fn sample() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("train-images-idx3-ubyte.gz", gz(&images(8))),
            ("train-labels.idx1-ubyte", labels(8)),
            ("t10k-images.idx3-ubyte.gz", gz(&images(4))),
            ("t10k-labels-idx1-ubyte.gz", gz(&labels(4))),
        ] {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn open(root: &Path, skip_bad: bool) -> Result<Dataset> {
        Dataset::open(root.to_str().unwrap(), &DataOptions { validation: Some(0), skip_bad, ..Default::default() })
    }

    #[test]
    fn reads_plain_and_packed_files() {
        let folder = sample();
        let data = open(folder.path(), false).unwrap();
        assert_eq!((data.train.len(), data.test.len(), data.classes.as_slice()), (8, 4, &["1".into(), "2".into()][..]));
        let image = data.train.image(3).unwrap();
        assert_eq!((image.width, image.height, &image.pixels[..6]), (2, 3, &[18, 18, 18, 19, 19, 19][..]));
        assert_eq!(data.train.label(3), 1);
        // Packed and unpacked files side by side are one set.
        fs::write(folder.path().join("train-images-idx3-ubyte"), images(8)).unwrap();
        assert_eq!(open(folder.path(), false).unwrap().train.len(), 8);
    }

    #[test]
    fn the_test_split_needs_no_training_files() {
        let folder = sample();
        let options = DataOptions { normalisation: Some(crate::data::Normalisation::IMAGENET), ..Default::default() };
        let read = || {
            let go_on = |_| std::ops::ControlFlow::Continue(());
            Dataset::open_splits(folder.path().to_str().unwrap(), &options, Splits::Test, &go_on)
        };
        // An attribute file that macOS leaves beside each file.
        fs::write(folder.path().join("._t10k-images.idx3-ubyte.gz"), b"x").unwrap();
        for name in ["train-images-idx3-ubyte.gz", "train-labels.idx1-ubyte"] {
            let data = read().unwrap();
            assert_eq!((data.train.len(), data.test.len(), data.classes.len()), (0, 4, 2));
            fs::remove_file(folder.path().join(name)).unwrap();
            let error = open(folder.path(), false).unwrap_err().to_string();
            assert!(error.contains("no train-images"), "{error}");
        }
        assert_eq!(read().unwrap().classes, ["1", "2"]);
    }

    #[test]
    fn each_fault_is_named() {
        let fault = |name: &str, bytes: &[u8], part: &str| {
            let folder = sample();
            fs::write(folder.path().join(name), bytes).unwrap();
            let error = open(folder.path(), false).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(part), "{part} in {error}");
            folder
        };
        let packed = gz(&images(8));
        fault("train-images-idx3-ubyte.gz", &packed[..packed.len() - 20], "truncated");
        fault("train-images-idx3-ubyte.gz", &gz(&images(7)), "7 images");
        fault("train-images-idx3-ubyte.gz", &gz(&labels(8)), "magic");
        fault("train-labels.idx1-ubyte", &labels(8)[..10], "truncated");
        fault("train-labels.idx1-ubyte", &[0, 0, 8], "truncated");
        fault("train-labels.idx1-ubyte", &[&labels(8)[..], &[0]].concat(), "more than the 8");
        fault("t10k-labels-idx1-ubyte.gz", &gz(&idx(LABELS_MAGIC, &[4], [1, 2, 3, 1])), "label 3");
        fault("t10k-labels-idx1-ubyte.gz", &gz(&idx(LABELS_MAGIC, &[4], [1; 4])), "label 2");
        let huge = idx(IMAGES_MAGIC, &[u32::MAX, 9999, 9999], []);
        fault("train-images-idx3-ubyte.gz", &gz(&huge), "limit");

        let short = gz(&images(8)[..16 + 6 * 6 + 2]);
        let folder = fault("train-images-idx3-ubyte.gz", &short, "truncated");
        let data = open(folder.path(), true).unwrap();
        assert_eq!((data.train.len(), data.skipped), (6, 2));
        fs::remove_file(folder.path().join("t10k-labels-idx1-ubyte.gz")).unwrap();
        assert!(open(folder.path(), true).unwrap_err().to_string().contains("no t10k-labels"));
    }
}

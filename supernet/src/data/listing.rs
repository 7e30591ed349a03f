//! Class folders and their files, in order of name.

use super::opening::Opening;
use super::regular;
use super::source::Source;
use crate::{Error, Result};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Deepest folder below a class folder, so that a link to a parent folder ends.
const MAX_DEPTH: usize = 16;

/// Folders and files that file managers, archives and file systems leave behind. Hidden names are ignored in any case.
const LEFTOVERS: &[&str] = &[
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "@eadir",
    "__macosx",
    "lost+found",
    "#recycle",
    "$recycle.bin",
    "system volume information",
];
/// Extensions of annotations, which many data sets keep beside the images.
const ANNOTATIONS: &[&str] = &["txt", "csv", "tsv", "json", "xml", "md", "yaml", "yml", "mat", "html", "pdf"];
/// Extensions of images, supported or not.
pub(super) const IMAGES: &[&str] =
    &["jpg", "jpeg", "png", "bmp", "gif", "webp", "tif", "tiff", "avif", "heic", "ppm", "pgm"];

/// Files of one split in order of class and path.
pub(super) struct Listing {
    pub folder: PathBuf,
    pub classes: Vec<String>,
    pub files: Vec<(Source, u32)>,
    /// Files that are not images and do not look like images.
    pub ignored: Vec<PathBuf>,
}

impl Listing {
    /// Lists the classes of a split (the folders in `folder`, by name) and their files (also in subfolders, by path).
    /// `flat` is advice for images without class folders.
    pub fn of(folder: &Path, flat: &str, opening: &Opening) -> Result<Listing> {
        let mut listing =
            Listing { folder: folder.to_path_buf(), classes: Vec::new(), files: Vec::new(), ignored: Vec::new() };
        let mut beside = Vec::new();
        for path in entries(folder)? {
            if path.is_dir() {
                listing.add_class(&path, opening)?;
            } else if let Some(reason) = regular::dangling(&path) {
                return Err(Error::format(&path, format!("{reason}; repair or remove it")));
            } else {
                beside.push(path);
            }
        }
        if let Some(image) = beside.iter().find(|path| is_image(path)) {
            return Err(if listing.classes.is_empty() {
                without_labels(folder, flat)
            } else {
                Error::format(image, "is an image beside the class folders; move it into the folder of its class")
            });
        }
        listing.ignored.extend(beside);
        if listing.classes.is_empty() {
            return Err(Error::format(folder, "has no class folders; expected CLASS/*.jpg or CLASS/*.png"));
        }
        Ok(listing)
    }

    fn add_class(&mut self, folder: &Path, opening: &Opening) -> Result<()> {
        let name = folder.file_name().unwrap_or_default();
        let Some(name) = name.to_str() else {
            let reason = format!(
                "the name of this class folder is not UTF-8 ('{}'); rename it in every split",
                name.as_encoded_bytes().escape_ascii()
            );
            return Err(Error::format(folder, reason));
        };
        let before = self.files.len();
        self.add_files(folder, self.classes.len() as u32, 0, opening)?;
        if self.files.len() == before {
            return Err(empty_class(folder));
        }
        self.classes.push(name.to_owned());
        Ok(())
    }

    fn add_files(&mut self, folder: &Path, label: u32, depth: usize, opening: &Opening) -> Result<()> {
        opening.check("listing images")?;
        if depth > MAX_DEPTH {
            return Err(Error::format(
                folder,
                format!("lies more than {MAX_DEPTH} folders below its class; check for a circular link"),
            ));
        }
        for path in entries(folder)? {
            if path.is_dir() {
                self.add_files(&path, label, depth + 1, opening)?;
            } else if has_extension(&path, ANNOTATIONS) {
                self.ignored.push(path);
            } else {
                self.files.push((Source::File(path), label));
            }
        }
        Ok(())
    }

    /// A note that names the ignored files, if there are any.
    pub fn note(&self) -> Option<String> {
        let first = self.ignored.first()?;
        let files = if self.ignored.len() == 1 {
            "1 file that is not an image".into()
        } else {
            format!("{} files that are not images", self.ignored.len())
        };
        Some(format!("{}: ignored {files}, such as {}", self.folder.display(), first.display()))
    }

    /// Removes the files whose result is an error, and returns the other results and the number removed. Without
    /// `skip_bad` the first error is returned; so is a class of which nothing is left.
    pub fn keep_good<T>(&mut self, results: Vec<Result<T, String>>, skip_bad: bool) -> Result<(Vec<T>, usize)> {
        let bad = results.iter().filter(|result| result.is_err()).count();
        let present = self.present();
        let mut good = Vec::with_capacity(results.len() - bad);
        let mut files = Vec::with_capacity(results.len() - bad);
        for (file, result) in std::mem::take(&mut self.files).into_iter().zip(results) {
            match result {
                Ok(value) => {
                    good.push(value);
                    files.push(file);
                }
                Err(_) if skip_bad => {}
                Err(reason) => {
                    let others = match bad {
                        1 => String::new(),
                        2 => "; 1 other file is unreadable too".into(),
                        _ => format!("; {} other files are unreadable too", bad - 1),
                    };
                    return Err(Error::format(
                        file.0.place(),
                        format!("{reason}{others} ({})", super::decode::WAY_OUT),
                    ));
                }
            }
        }
        self.files = files;
        if bad > 0 {
            let left = self.present();
            if let Some(empty) = (0..left.len()).find(|&class| present[class] && !left[class]) {
                let class = self.folder.join(&self.classes[empty]);
                return Err(match class.is_dir() {
                    true => empty_class(&class),
                    false => {
                        let reason = format!("no image of class {empty} ('{}') can be read", self.classes[empty]);
                        Error::format(&self.folder, reason)
                    }
                });
            }
        }
        Ok((good, bad))
    }

    /// Whether each class has files.
    fn present(&self) -> Vec<bool> {
        let mut present = vec![false; self.classes.len()];
        self.files.iter().for_each(|(_, label)| present[*label as usize] = true);
        present
    }

    /// Refuses class names that differ from those of the training split `train`.
    pub fn same_classes(&self, train: &Listing, flat: &str) -> Result<()> {
        if self.classes == ["images"] && train.classes != ["images"] {
            return Err(without_labels(&self.folder.join("images"), flat));
        }
        let lacking = |of: &Listing, than: &Listing| -> Vec<String> {
            of.classes.iter().filter(|class| than.classes.binary_search(class).is_err()).cloned().collect()
        };
        let (missing, extra) = (lacking(train, self), lacking(self, train));
        let mut differences = Vec::new();
        for (what, classes) in [("lacks", &missing), ("has in addition", &extra)] {
            if !classes.is_empty() {
                let more = if classes.len() > 5 { format!(" and {} more", classes.len() - 5) } else { String::new() };
                let shown: Vec<String> = classes.iter().take(5).map(|class| with_code_points(class)).collect();
                differences.push(format!("{what} {}{more}", shown.join(", ")));
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        let forms = match missing.iter().chain(&extra).any(|class| class.chars().any(combines)) {
            true => {
                "; letters with marks have two Unicode forms, composed (NFC) and decomposed (NFD, as macOS writes them): \
                 give a class the same form in every split"
            }
            false => "",
        };
        let train = train.folder.display();
        Err(Error::format(
            &self.folder,
            format!("the classes differ from those of {train}: this split {}{forms}", differences.join(" and ")),
        ))
    }
}

/// Entries of a folder by name, without hidden entries and [`LEFTOVERS`].
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::file(folder, e))? {
        let entry = entry.map_err(|e| Error::file(folder, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') && !LEFTOVERS.contains(&name.to_lowercase().as_str()) {
            paths.push(entry.path());
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

fn has_extension(path: &Path, among: &[&str]) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).map(str::to_lowercase);
    extension.is_some_and(|extension| among.contains(&extension.as_str()))
}

/// Whether a file is an image by name or by content.
pub(super) fn is_image(path: &Path) -> bool {
    let mut head = Vec::new();
    has_extension(path, IMAGES)
        || regular::length(path).is_ok()
            && File::open(path).is_ok_and(|file| file.take(32).read_to_end(&mut head).is_ok())
            && image::guess_format(&head).is_ok()
}

fn without_labels(folder: &Path, way_out: &str) -> Error {
    let reason = "holds images but no class folders, so that they have no labels; move each into a folder of its class";
    Error::format(folder, format!("{reason}{way_out}"))
}

fn empty_class(folder: &Path) -> Error {
    Error::format(
        folder,
        "is an empty class: it has no readable image; add images or remove the folder from every split",
    )
}

/// The name, followed by its code points if some are not ASCII: names that look alike can differ.
fn with_code_points(name: &str) -> String {
    if name.is_ascii() {
        return name.to_owned();
    }
    let escaped: String =
        name.chars().map(|c| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() }).collect();
    format!("{name} ({escaped})")
}

/// Whether only decomposed text has this character: combining diacritics, voiced marks of kana, jamo of Hangul.
fn combines(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{3099}' | '\u{309a}' | '\u{1100}'..='\u{11ff}')
}

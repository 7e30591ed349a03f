//! Small files: reading with errors that name path and position, and atomic writing. After an error, a kill or a power
//! loss a file holds either its old or its new content, never a mixture.

use crate::{Error, Result, temporaries};
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

pub use crate::temporaries::{is_temporary, remove_all_abandoned};

/// Writes `bytes` to `path` through a temporary neighbour: write, fsync, rename, fsync of the folder.
///
/// Missing parent folders are created. Where the path is a link, the file that it points to is replaced. A pipe or a
/// device is written to: renaming would put a file in its place.
///
/// # Errors
/// The operating system's error with the path; the old file is then unchanged. The path is an open file of a process,
/// such as `/dev/stdout` behind `>`, whose end another writer would not know.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error| Error::file(path, error);
    let is_open = ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"].iter().any(|open| path.starts_with(open));
    match fs::metadata(path) {
        Ok(found) if !found.is_file() && !found.is_dir() => {
            File::options().append(true).open(path).and_then(|mut file| file.write_all(bytes)).map_err(failed)
        }
        Ok(_) if is_open => Err(Error::format(path, "is a file that is open already; name it by its own path")),
        Ok(_) if path.is_symlink() => write_all_atomic(&[(&path.canonicalize().map_err(failed)?, bytes)]),
        // The link's file is yet to be made.
        Err(error) if error.kind() == ErrorKind::NotFound && path.is_symlink() => {
            let target = fs::read_link(path).map_err(failed)?;
            write_atomic(&path.parent().unwrap_or(Path::new("")).join(target), bytes)
        }
        _ => write_all_atomic(&[(path, bytes)]),
    }
}

/// Writes files of one folder that belong together, each like [`write_atomic`], but replaces links.
///
/// All files are complete under temporary names before the first is renamed, so that a failed write changes nothing.
/// The last file is missing while the others change: after a kill it never stands beside files that it does not belong
/// to.
///
/// # Errors
/// As for [`write_atomic`].
pub fn write_all_atomic(files: &[(&Path, &[u8])]) -> Result<()> {
    let Some((path, _)) = files.first() else { return Ok(()) };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folder(folder)?;
    match write_and_rename(folder, files) {
        // The folder was removed in the meantime.
        Err((_, error)) if error.kind() == ErrorKind::NotFound => {
            make_folder(folder)?;
            write_and_rename(folder, files)
        }
        written => written,
    }
    .map_err(|(path, error)| Error::file(path, error))
}

fn write_and_rename<'a>(folder: &Path, files: &[(&'a Path, &[u8])]) -> Result<(), (&'a Path, io::Error)> {
    let mut written = Vec::new();
    let write = |(path, bytes): &(&'a Path, &[u8])| -> io::Result<_> {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
        let (mut file, temporary) = temporaries::create(folder, name)?;
        match file.write_all(bytes).and_then(|()| file.sync_all()) {
            Ok(()) => Ok((file, temporary)),
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                Err(error)
            }
        }
    };
    let mut outcome = files.iter().try_for_each(|file| {
        written.push((file.0, write(file).map_err(|error| (file.0, error))?));
        Ok(())
    });
    if let (Ok(()), [_, .., (last, _)]) = (&outcome, files) {
        outcome = match fs::remove_file(last) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err((*last, error)),
            _ => Ok(()),
        };
        sync_folder(folder);
    }
    for (path, (_locked, temporary)) in &written {
        match outcome {
            Ok(()) => outcome = fs::rename(temporary, path).map_err(|error| (*path, error)),
            Err(_) => break,
        }
    }
    if outcome.is_err() {
        // Files that were renamed already no longer have this name.
        written.iter().for_each(|(_, (_, temporary))| drop(fs::remove_file(temporary)));
    }
    sync_folder(folder);
    outcome
}

/// Creates a folder with its missing parents, durably.
///
/// # Errors
/// A file is where a folder is expected, or the operating system fails; the error names the path.
pub fn make_folder(folder: &Path) -> Result<()> {
    // Without a trailing slash, with which a file would not be found.
    let folder = folder.components().as_path();
    let missing = folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).count();
    if let Some(file) = folder.ancestors().find(|path| path.exists() && !path.is_dir()) {
        return Err(Error::format(file, "this is a file; expected a folder or a path where one can be created"));
    }
    fs::create_dir_all(folder).map_err(|e| match e.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotFound => {
            Error::format(folder, format!("the folder cannot be created ({e}); choose one with write permission"))
        }
        _ => Error::file(folder, e),
    })?;
    // A new folder is an entry of its parent.
    folder.ancestors().skip(1).take(missing).for_each(sync_folder);
    Ok(())
}

/// Removes a folder as a whole: after a kill the folder is complete or gone (its remains have a temporary name). A
/// missing folder is not an error.
///
/// # Errors
/// The operating system's error with the path.
pub fn remove_folder(folder: &Path) -> Result<()> {
    let aside = match temporaries::set_aside(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        aside => aside.map_err(|e| Error::file(folder, e))?,
    };
    sync_folder(folder.parent().unwrap_or(Path::new("")));
    match fs::remove_dir_all(&aside) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::file(&aside, e)),
        _ => Ok(()),
    }
}

/// Removes a file, durably. A missing file is not an error.
///
/// # Errors
/// The operating system's error with the path.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::file(path, e)),
        Ok(()) => {
            sync_folder(path.parent().unwrap_or(Path::new("")));
            Ok(())
        }
    }
}

/// Makes new, renamed and removed entries of a folder durable. Failures are ignored: not every platform can open a
/// folder, and the content of the files is safe without it.
pub fn sync_folder(folder: &Path) {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// CRC-32 of a file's content.
pub fn checksum(bytes: &[u8]) -> u32 {
    let mut checksum = flate2::Crc::new();
    checksum.update(bytes);
    checksum.sum()
}

/// Serialises `value` as indented JSON and writes it atomically.
///
/// # Errors
/// As for [`write_atomic`]; a value without a JSON form is a [`Error::Format`].
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<()> {
    write_atomic(path, to_json(path, value)?.as_bytes())
}

/// Serialises `value` as indented JSON for the file at `path`.
///
/// # Errors
/// A value without a JSON form is a [`Error::Format`].
pub fn to_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<String> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::format(path, e.to_string()))?;
    text.push('\n');
    Ok(text)
}

/// Reads a JSON file.
///
/// # Errors
/// The file is missing, or its text does not fit `T`; the error has the path and position.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(&read_text(path)?, path)
}

/// Parses the text of the JSON file at `path`.
///
/// # Errors
/// The text does not fit `T`; the error has the path.
pub fn parse_json<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::format(path, format!("not the expected JSON: {e}")))
}

/// Reads a TOML file.
///
/// # Errors
/// The file is missing, or its text does not fit `T`; the error starts with `path:line`.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_toml(&read_text(path)?).map_err(|(line, message)| match line {
        Some(line) => Error::line(path, line, message),
        None => Error::format(path, message),
    })
}

/// Parses TOML; an error consists of the line (from 1), if one is to blame, and the message.
///
/// # Errors
/// The text is not TOML or does not fit `T`.
pub fn parse_toml<T: DeserializeOwned>(text: &str) -> Result<T, (Option<usize>, String)> {
    toml::from_str(text).map_err(|error| {
        // An error about several lines (a table without a required key) names the first of them.
        let line = error.span().filter(|_| !text.is_empty()).map(|span| line_of(text, span.start));
        (line, error.message().trim().replace('\n', "; "))
    })
}

/// Parses TOML; an error is a message with the line.
///
/// # Errors
/// The text is not TOML or does not fit `T`.
pub fn parse_toml_text<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    parse_toml(text).map_err(|(line, message)| match line {
        Some(line) => format!("line {line}: {message}"),
        None => message,
    })
}

/// Number (from 1) of the line that contains the byte `offset` of `text`. An offset after the last line break belongs
/// to the last line with text.
pub fn line_of(text: &str, offset: usize) -> usize {
    let offset = offset.min(text.trim_end().len());
    1 + text.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count()
}

/// Parses one line of a file of JSON lines. Error messages omit the line number, which would always be 1.
///
/// # Errors
/// The text is not JSON or does not fit `T`.
pub fn parse_json_line<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    serde_json::from_str(line).map_err(|error| {
        let text = error.to_string();
        match text.split_once(" at line 1 column ") {
            Some((message, column)) => format!("{message} at column {column}"),
            None => text,
        }
    })
}

/// Fields of a line of CSV: parted by commas, without spaces around them, in double quotes where a field has a comma.
pub fn csv_fields(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.next_if_eq(&'"').is_some() => field.push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field).trim().to_string()),
            letter => field.push(letter),
        }
    }
    fields.push(field.trim().to_string());
    fields
}

/// A field as it stands in a line of CSV, quoted if its text requires it (RFC 4180).
pub fn csv_field(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.into() }
}

/// Reads a UTF-8 text file without the byte order mark that some editors put at its beginning.
///
/// # Errors
/// The file is missing, unreadable or not UTF-8; the error has the path.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = read_bytes(path)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::format(path, format!("byte {at} is not UTF-8; expected a text file in that encoding"))
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
}

/// Start of a Git LFS pointer, which stands for a file whose content was not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Reads a file.
///
/// # Errors
/// The file is missing or unreadable, or is a Git LFS pointer; the error has the path.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(|e| Error::file(path, e))?;
    if bytes.starts_with(LFS_POINTER) {
        return Err(Error::format(
            path,
            "the file is a Git LFS pointer whose content was not fetched; run `git lfs pull` in its repository",
        ));
    }
    Ok(bytes)
}

/// Paths in a folder, sorted; none if the folder does not exist. Hidden entries are skipped, such as the `._name` that
/// macOS leaves beside each file it copies.
///
/// # Errors
/// The operating system's error with the path.
pub fn list_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file(folder, e)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::file(folder, e))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_parted_by_commas_outside_quotes() {
        for text in ["plain", "a, b", "say \"x\", y", "a\rb", ""] {
            assert_eq!(csv_fields(&format!(" {} , 2", csv_field(text))), [text, "2"]);
        }
    }

    #[test]
    fn replaces_whole_files_and_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.txt");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_its_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        std::os::unix::fs::symlink("file", &link).unwrap();
        for content in [b"one", b"two"] {
            write_atomic(&link, content).unwrap();
            assert!(link.is_symlink() && fs::read(&file).unwrap() == content);
        }
        let error = write_atomic(Path::new("/proc/self/status"), b"x").unwrap_err().to_string();
        assert!(!cfg!(target_os = "linux") || error.contains("open already"), "{error}");
        std::os::unix::fs::symlink("circle", folder.path().join("circle")).unwrap();
        write_atomic(&folder.path().join("circle"), b"x").unwrap();
    }

    #[test]
    fn several_files_are_all_changed_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        write_all_atomic(&[(&first, b"1"), (&second, b"2")]).unwrap();
        assert_eq!((fs::read(&first).unwrap(), fs::read(&second).unwrap()), (b"1".to_vec(), b"2".to_vec()));
        // A name for which no temporary can be created.
        let long = folder.path().join("n".repeat(250));
        let error = write_all_atomic(&[(&first, b"3"), (&long, b"4")]).unwrap_err().to_string();
        assert!(error.contains("nnn"), "{error}");
        assert_eq!(fs::read(&first).unwrap(), b"1");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_removed_folder_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trial-000");
        fs::create_dir_all(path.join("checkpoints")).unwrap();
        fs::write(path.join("checkpoints/a"), b"x").unwrap();
        remove_folder(&path).unwrap();
        remove_folder(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_error_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, b"x").unwrap();
        for below in ["", "below", "below/it"] {
            let error = make_folder(&blocked.join(below)).unwrap_err().to_string();
            assert!(error.contains("file: this is a file; expected a folder"), "{error}");
        }
        let error = write_atomic(&blocked.join("below"), b"y").unwrap_err().to_string();
        assert!(error.contains("file: this is a file"), "{error}");
    }

    #[test]
    fn text_is_read_without_its_byte_order_mark_and_only_as_utf8() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        fs::write(&path, b"\xef\xbb\xbf[1, 2]\r\n").unwrap();
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap(), [1, 2]);
        assert_eq!(read_text(&path).unwrap(), "[1, 2]\r\n");
        fs::write(&path, b"ab\xff").unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains("a.json: byte 2 is not UTF-8"), "{error}");
    }

    #[test]
    fn a_pointer_of_git_lfs_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.pth");
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n").unwrap();
        for error in [read_bytes(&path).unwrap_err(), read_text(&path).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("net.pth: ") && error.contains("git lfs pull"), "{error}");
        }
    }

    #[test]
    fn every_kind_of_toml_error_has_its_line() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "only read")]
        struct Inner {
            b: u8,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "only read")]
        struct Outer {
            a: Option<u8>,
            inner: Option<Inner>,
            list: Option<Vec<crate::space::Ratio>>,
        }
        let line = |text: &str| parse_toml::<Outer>(text).unwrap_err().0;
        for (text, expected) in [
            ("c = 1", 1),                                    // unknown key in the only line
            ("a = 1\nc = 1\n", 2),                           // on the last line
            ("# é\n\na = 1\n# ü\nc = 1\n[inner]\nb = 1", 5), // after characters of several bytes
            ("a = 1\na = 2\n", 2),                           // twice
            ("[inner]\nb = 1\nc = 2\n", 3),                  // unknown in a table
            ("[inner]\nb = 1\n[inner]\nb = 1\n", 3),         // a table twice
            ("a = 'x'\n", 1),                                // another type
            ("\n\na = 300\n", 3),                            // out of range
            ("a = 1\n\n[inner]\n", 3),                       // a missing key: the table's header
            ("a = 1\nlist = [1.0,\n 2.0,\n 1e9]\n", 2),      // a value that our own check refuses: the line of its list
            ("a = 1\nb c\n", 2),                             // not TOML
            ("a = 1\n[inner", 2),                            // an open bracket at the end
            ("a = \"", 1),                                   // an open string
        ] {
            for text in [text.to_string(), text.replace('\n', "\r\n")] {
                assert_eq!(line(&text), Some(expected), "{text:?}");
            }
        }
        let message = parse_toml_text::<Outer>("a = 1\nb c\n").unwrap_err();
        assert!(message.starts_with("line 2: ") && !message.contains('\n'), "{message}");
        assert_eq!(parse_json_line::<u8>("[]").unwrap_err(), "invalid type: sequence, expected u8 at column 0");
    }

    #[test]
    fn a_folder_is_listed_in_order_without_hidden_entries() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.json", "a.json", "._a.json", ".hidden"] {
            fs::write(folder.path().join(name), b"").unwrap();
        }
        let names = |paths: Vec<PathBuf>| -> Vec<_> {
            paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect()
        };
        assert_eq!(names(list_folder(folder.path()).unwrap()), ["a.json", "b.json"]);
        assert!(list_folder(&folder.path().join("none")).unwrap().is_empty());
        assert!(list_folder(&folder.path().join("a.json")).unwrap_err().to_string().contains("a.json"));
    }
}

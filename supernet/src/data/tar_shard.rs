//! A tar file in the layout of WebDataset: images with their labels beside them.

use super::labels::{Label, Labelled};
use super::source::Source;
use super::{listing, regular};
use crate::quote::visible;
use crate::{Error, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

/// Keys of a label in `NAME.json`.
const JSON_KEYS: [&str; 5] = ["cls", "label", "class", "class_name", "label_name"];
/// Extensions of images.
const IMAGES: [&str; 3] = ["jpg", "jpeg", "png"];
/// Most bytes of a label's file.
const MAX_LABEL: u64 = 1 << 20;
/// First bytes of files that gzip, zstd, bzip2 and xz make.
const PACKED: [&[u8]; 4] = [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd], b"BZh", &[0xfd, b'7', b'z']];

/// Bytes of a tar file's blocks.
const BLOCK: u64 = 512;

/// A sample while its shard is read.
#[derive(Default)]
struct Sample {
    image: Option<Source>,
    /// An image of another format, which stands for the sample where there is no image: it is named, or skipped.
    foreign: Option<Source>,
    label: Option<Label>,
    /// Whether the label is that of `NAME.cls`, which precedes `NAME.json`.
    of_cls: bool,
}

/// Lists the images of a tar file, in order, with their labels.
///
/// # Errors
/// A damaged file, an image without a label, or two images of one name.
pub fn scan(path: &Path) -> Result<Vec<Labelled>> {
    let fault = |reason: String| Error::format(path, reason);
    let length = regular::length(path).map_err(fault)?;
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    let shard: Arc<Path> = path.into();
    let broken =
        |e: std::io::Error| fault(format!("is not a whole tar file: {}; fetch it again", visible(&e.to_string())));
    let (mut samples, mut order, mut end) = (HashMap::<String, Sample>::new(), Vec::new(), 0u64);
    // Images whose extension is not all that follows the first dot, by their samples.
    let mut others = HashMap::<String, String>::new();
    let mut start = Vec::new();
    (&file).take(BLOCK).read_to_end(&mut start).map_err(|e| Error::file(path, e))?;
    if !is_header(&start) && PACKED.iter().any(|magic| start.starts_with(magic)) {
        return Err(fault("is compressed, and images are read at their places; unpack it (gunzip, unzstd)".into()));
    }
    (&file).rewind().map_err(|e| Error::file(path, e))?;
    for entry in tar::Archive::new(&file).entries_with_seek().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        // Names are shown and compared, never opened.
        let name = visible(&String::from_utf8_lossy(&entry.path_bytes()));
        let (offset, size) = (entry.raw_file_position(), entry.size());
        let last = offset.saturating_add(size);
        if last > length {
            return Err(fault(format!(
                "is truncated: '{}' ends at byte {last}, but the file has {length} bytes; fetch it again",
                name
            )));
        }
        end = end.max(last.div_ceil(BLOCK) * BLOCK);
        let Some((key, extension)) = parts(&name) else { continue };
        let is_image = IMAGES.contains(&extension.as_str());
        let kind = entry.header().entry_type();
        if is_image && (kind.is_hard_link() || kind.is_symlink()) {
            return Err(Error::format(path.join(&name), "is a link; write the shard with `tar --hard-dereference -h`"));
        }
        if !kind.is_file() {
            continue;
        }
        if !is_image && extension.rsplit('.').next().is_some_and(|last| IMAGES.contains(&last)) {
            others.entry(key.clone()).or_insert(name.clone());
        }
        let is_foreign = !is_image && listing::IMAGES.contains(&extension.as_str());
        if !is_image && !is_foreign && extension != "cls" && extension != "json" {
            continue;
        }
        let sample = samples.entry(key.clone()).or_insert_with(|| {
            order.push(key);
            Sample::default()
        });
        let part = || Source::Part { shard: shard.clone(), name: name.clone(), offset, length: size };
        if is_foreign {
            sample.foreign = Some(part());
        } else if is_image {
            if sample.image.replace(part()).is_some() {
                return Err(Error::format(path.join(&name), "is the second image of its name in the shard; keep one"));
            }
        } else if extension == "cls" || !sample.of_cls {
            let mut text = String::new();
            (&mut entry).take(MAX_LABEL).read_to_string(&mut text).map_err(|e| Error::file(path.join(&name), e))?;
            (sample.of_cls, sample.label) = match extension.as_str() {
                "cls" => (true, of_text(&text)),
                _ => (false, of_json(&text)),
            };
        }
    }
    if length < end + BLOCK {
        return Err(fault("is truncated: the end mark of a tar file is missing; fetch it again".into()));
    }
    if holds_another(&file, end).map_err(|e| Error::file(path, e))? {
        let reason = "holds another tar file behind its end mark, whose images would be lost; join files with `tar -A`";
        return Err(fault(reason.into()));
    }
    // The names of samples end at their first dot, so that x.mask.png is another file of the sample x.
    let lost = |key: &&String| samples.get(*key).is_none_or(|sample| sample.image.is_none());
    if let Some(key) = others.keys().filter(lost).min() {
        let reason =
            format!("is no image of a sample: the name ends at the first dot, and '{key}' has no image; rename it");
        return Err(Error::format(path.join(&others[key]), reason));
    }
    let mut images = Vec::with_capacity(order.len());
    for key in order {
        match samples.remove(&key).unwrap_or_default() {
            Sample { image: Some(source), label: Some(label), .. }
            | Sample { foreign: Some(source), label: Some(label), .. } => images.push((source, label)),
            Sample { image: Some(source), label: None, .. } => {
                let base = key.rsplit('/').next().unwrap_or(&key);
                let reason = format!(
                    "has no label; expected {base}.cls with the class, or {base}.json with \"label\" or \"cls\", in the shard"
                );
                return Err(Error::format(source.place(), reason));
            }
            _ => {}
        }
    }
    Ok(images)
}

/// Whether a block is the header of an entry.
fn is_header(block: &[u8]) -> bool {
    block.get(257..262) == Some(b"ustar")
}

/// Whether the first block behind the zeros at `end` is the header of an entry.
fn holds_another(mut file: &File, end: u64) -> std::io::Result<bool> {
    file.seek(SeekFrom::Start(end))?;
    let mut rest = BufReader::new(file);
    let mut block = [0; BLOCK as usize];
    while rest.read_exact(&mut block).is_ok() {
        if block.iter().any(|&byte| byte != 0) {
            return Ok(is_header(&block));
        }
    }
    Ok(false)
}

/// Key and extension of an entry's name: the base name is cut at its first dot. `None` for hidden files.
fn parts(name: &str) -> Option<(String, String)> {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name[start..].find('.').filter(|&dot| dot > 0)?;
    Some((name[..start + dot].to_string(), name[start + dot + 1..].to_lowercase()))
}

fn of_text(text: &str) -> Option<Label> {
    let text = text.trim();
    (!text.is_empty()).then(|| Label::Text(text.to_string()))
}

fn of_json(text: &str) -> Option<Label> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let label = JSON_KEYS.iter().find_map(|key| value.get(key))?;
    match label {
        serde_json::Value::String(text) => of_text(text),
        label => Some(Label::Number(usize::try_from(label.as_u64()?).ok()?)),
    }
}

//! Parquet files in the layout of Hugging Face's image data sets: a column of images (bytes inside a struct) and one of
//! labels.
//!
//! Only labels are read at opening. An image is read from the page that holds it; its place is a row group and a row.

use super::regular;
use crate::{Error, Result};
use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, get_typed_column_reader};
use parquet::data_type::{ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Columns of images and of labels, in the names that data sets give them.
const IMAGES: [&str; 2] = ["image.bytes", "img.bytes"];
const LABELS: [&str; 3] = ["label", "labels", "fine_label"];
/// Key of the file's metadata under which Hugging Face describes the columns.
const DESCRIPTION: &str = "huggingface";

/// A Parquet file with images.
pub(super) struct Table {
    path: PathBuf,
    length: u64,
    reader: SerializedFileReader<Bytes>,
    images: usize,
    labels: usize,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

/// The bytes of a file. Each read opens it anew, so that threads do not share a position.
struct Bytes {
    path: PathBuf,
    length: u64,
}

impl Length for Bytes {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Bytes {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(file))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<bytes::Bytes> {
        // Before memory is spent on it.
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are beyond the end of the file")));
        }
        let mut read = Vec::with_capacity(length);
        self.get_read(start)?.take(length as u64).read_to_end(&mut read)?;
        if read.len() == length { Ok(read.into()) } else { Err(ParquetError::EOF("the file was cut".into())) }
    }
}

impl Table {
    /// Opens the file at `path` and finds its columns.
    ///
    /// # Errors
    /// No whole Parquet file, or other columns.
    pub fn open(path: &Path) -> Result<Table> {
        let length = regular::length(path).map_err(|reason| Error::format(path, reason))?;
        let bytes = Bytes { path: path.to_path_buf(), length };
        let reader = guarded(|| SerializedFileReader::new(bytes).map_err(|e| broken(&e)));
        let reader = reader.map_err(|reason| Error::format(path, reason))?;
        let schema = reader.metadata().file_metadata().schema_descr_ptr();
        let names: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
        let find = |known: &[&str], kinds: &[Type]| {
            let fits = |index: &usize| {
                let column = schema.column(*index);
                known.contains(&names[*index].as_str())
                    && kinds.contains(&column.physical_type())
                    && column.max_rep_level() == 0
            };
            (0..names.len()).find(fits)
        };
        let images = find(&IMAGES, &[Type::BYTE_ARRAY]);
        let labels = find(&LABELS, &[Type::INT32, Type::INT64]);
        let (Some(images), Some(labels)) = (images, labels) else {
            let shown: Vec<String> = names.iter().take(8).map(|name| name.escape_debug().to_string()).collect();
            let reason = format!(
                "has the columns {}; expected image.bytes (binary) and label (integer), as Hugging Face writes images",
                shown.join(", ")
            );
            return Err(Error::format(path, reason));
        };
        Ok(Table { path: path.to_path_buf(), length, reader, images, labels })
    }

    /// Names of the classes, if the file tells them.
    pub fn classes(&self) -> Option<Vec<String>> {
        let metadata = self.reader.metadata().file_metadata().key_value_metadata()?;
        let text = metadata.iter().find(|entry| entry.key == DESCRIPTION)?.value.as_ref()?;
        let description: serde_json::Value = serde_json::from_str(text).ok()?;
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let column = schema.column(self.labels).path().string();
        let names = description.get("info")?.get("features")?.get(column)?.get("names")?.as_array()?;
        names.iter().map(|name| Some(name.as_str()?.to_string())).collect()
    }

    /// Number of bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The labels of all rows, a list per row group.
    ///
    /// # Errors
    /// A damaged file, or a row without a label.
    pub fn labels(&self) -> Result<Vec<Vec<i64>>> {
        let groups = 0..self.reader.num_row_groups();
        let labels = |group| guarded(|| self.labels_of(group)).map_err(|reason| Error::format(&self.path, reason));
        groups.map(labels).collect()
    }

    fn labels_of(&self, group: usize) -> Result<Vec<i64>, String> {
        let group = self.reader.get_row_group(group).map_err(|e| damaged(&e))?;
        let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let column = group.get_column_reader(self.labels).map_err(|e| damaged(&e))?;
        let labels = match column {
            ColumnReader::Int32ColumnReader(_) => {
                read::<Int32Type>(column, 0, rows)?.into_iter().map(i64::from).collect()
            }
            column => read::<Int64Type>(column, 0, rows)?,
        };
        if labels.len() != rows {
            return Err(format!("{rows} rows have {} labels; each row needs one", labels.len()));
        }
        Ok(labels)
    }

    /// The encoded image of a row.
    ///
    /// # Errors
    /// A damaged file, or a row without bytes.
    pub fn image(&self, group: usize, row: usize) -> Result<Vec<u8>, String> {
        guarded(|| self.image_of(group, row))
    }

    fn image_of(&self, group: usize, row: usize) -> Result<Vec<u8>, String> {
        let group = self.reader.get_row_group(group).map_err(|e| damaged(&e))?;
        let column = group.get_column_reader(self.images).map_err(|e| damaged(&e))?;
        let values = read::<ByteArrayType>(column, row, 1)?;
        match values.first() {
            Some(bytes) if !bytes.is_empty() => Ok(bytes.data().to_vec()),
            _ => Err("has no bytes of an image; write the images into the file".into()),
        }
    }
}

/// The values of `count` rows after `skipped` ones; fewer where rows have none.
fn read<T: DataType>(column: ColumnReader, skipped: usize, count: usize) -> Result<Vec<T::T>, String> {
    let mut reader = get_typed_column_reader::<T>(column);
    let mut values = Vec::new();
    if skipped > 0 && reader.skip_records(skipped).map_err(|e| damaged(&e))? != skipped {
        return Err("is damaged: a column has fewer rows than the file says; fetch it again".into());
    }
    let mut levels = Vec::new();
    let mut rows = 0;
    while rows < count {
        // The library makes room for all that it is asked for, and a damaged file may promise any number.
        let wanted = (count - rows).min(1 << 16);
        let (read, ..) = reader.read_records(wanted, Some(&mut levels), None, &mut values).map_err(|e| damaged(&e))?;
        if read == 0 {
            break;
        }
        rows += read;
    }
    Ok(values)
}

thread_local! {
    /// Whether this thread reads a file on which the library may panic.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The result of `read`. The library panics on some damaged files; these panics are errors here, and not printed.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                others(info);
            }
        }));
    });
    GUARDED.set(true);
    let done = panic::catch_unwind(AssertUnwindSafe(read));
    GUARDED.set(false);
    done.unwrap_or_else(|_| Err("is damaged: its parts do not fit together; fetch it again".into()))
}

fn broken(error: &ParquetError) -> String {
    format!("is not a whole Parquet file: {}; fetch it again", one_line(error))
}

fn damaged(error: &ParquetError) -> String {
    let error = one_line(error);
    match error.split_once("Disabled feature at compile time: ") {
        Some((_, codec)) => {
            format!("is compressed with {codec}, which is not read; write it with snappy or without compression")
        }
        None => format!("is damaged: {error}; fetch it again"),
    }
}

fn one_line(error: &ParquetError) -> String {
    error.to_string().escape_debug().to_string()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    #[test]
    fn panics_of_the_library_are_errors() {
        let message = guarded::<()>(|| panic!("inside")).unwrap_err();
        assert!(message.contains("is damaged") && !GUARDED.get(), "{message}");
        assert_eq!(guarded(|| Ok(3)), Ok(3));
    }

    use parquet::basic::Compression;
    use parquet::data_type::ByteArray;
    use parquet::file::metadata::KeyValue;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    /// Writes images with labels as Hugging Face does, `group` rows in a row group; an empty image is null.
    pub fn write(path: &Path, rows: &[(Vec<u8>, i64)], names: Option<&[&str]>, group: usize, compression: Compression) {
        let schema = "message rows { optional group image { optional binary bytes; optional binary path (utf8); }
                      optional int64 label; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let described = names.map(|names| {
            let label = serde_json::json!({ "names": names, "_type": "ClassLabel" });
            let text = serde_json::json!({ "info": { "features": { "label": label } } }).to_string();
            vec![KeyValue::new(DESCRIPTION.to_string(), text)]
        });
        let properties = WriterProperties::builder().set_compression(compression).set_key_value_metadata(described);
        let file = File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties.build())).unwrap();
        for rows in rows.chunks(group) {
            let mut group = writer.next_row_group().unwrap();
            let bytes: Vec<ByteArray> =
                rows.iter().filter(|row| !row.0.is_empty()).map(|row| row.0.clone().into()).collect();
            let levels: Vec<i16> = rows.iter().map(|row| if row.0.is_empty() { 1 } else { 2 }).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&bytes, Some(&levels), None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&[], Some(&vec![1; rows.len()]), None).unwrap();
            column.close().unwrap();
            let labels: Vec<i64> = rows.iter().map(|row| row.1).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; rows.len()]), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    #[test]
    fn rows_are_read_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train-0.parquet");
        let rows: Vec<(Vec<u8>, i64)> =
            (0..40u8).map(|row| (vec![row; 500 * usize::from(row) + 1], i64::from(row % 3))).collect();
        for (group, compression) in [(7, Compression::SNAPPY), (40, Compression::UNCOMPRESSED)] {
            write(&path, &rows, Some(&["a", "b", "c"]), group, compression);
            let table = Table::open(&path).unwrap();
            assert_eq!(table.classes().unwrap(), ["a", "b", "c"]);
            let labels: Vec<i64> = table.labels().unwrap().concat();
            assert!(labels.iter().zip(&rows).all(|(label, row)| *label == row.1) && labels.len() == 40);
            for row in [39, 0, 13, 14, 6, 7, 38, 13] {
                assert!(table.image(row / group, row % group).unwrap() == rows[row].0, "{row}");
            }
        }
    }

    #[test]
    fn other_columns_missing_images_and_damage_are_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train-0.parquet");
        write(&path, &[(vec![1; 90], 0), (Vec::new(), 1)], None, 10, Compression::SNAPPY);
        let table = Table::open(&path).unwrap();
        assert_eq!(table.classes(), None);
        assert!(table.image(0, 1).unwrap_err().contains("no bytes of an image"));
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8], part: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = Table::open(&path).unwrap_err().to_string();
            assert!(error.contains("train-0.parquet") && error.contains(part) && !error.contains('\n'), "{error}");
        };
        refused(b"", "not a whole Parquet file");
        refused(&whole[..whole.len() - 9], "not a whole Parquet file");
        let schema =
            Arc::new(parse_message_type("message rows { required int64 label; required int32 image; }").unwrap());
        let other = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
        refused(&other.into_inner().unwrap(), "has the columns label, image; expected image.bytes (binary) and label");
        // Bytes in the middle of the images.
        let mut damaged = whole.clone();
        damaged[20..60].iter_mut().for_each(|byte| *byte ^= 0xff);
        std::fs::write(&path, damaged).unwrap();
        let table = Table::open(&path);
        let error = table.map_err(|e| e.to_string()).and_then(|table| table.image(0, 0)).unwrap_err();
        assert!(error.contains("damaged") && !error.contains('\n'), "{error}");
    }
}

//! Where the bytes of an image are: in a file of its own, in a part of a tar shard, or in a row of a Parquet file.

use super::table::Table;
use super::{decode, regular};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Place of an encoded image.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A file.
    File(PathBuf),
    /// Bytes of a shard.
    Part {
        /// The shard's file.
        shard: Arc<Path>,
        /// Name of the image in the shard.
        name: String,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Row of a Parquet file.
    Row {
        /// The file.
        table: Arc<Table>,
        /// Row group.
        group: u32,
        /// Row in the group.
        row: u32,
        /// Row in the file.
        number: u64,
    },
}

impl Source {
    /// The file, or the name or row below the shard as if that were a folder.
    pub fn place(&self) -> PathBuf {
        match self {
            Source::File(path) => path.clone(),
            Source::Part { shard, name, .. } => shard.join(name),
            Source::Row { table, number, .. } => table.path().join(format!("row {number}")),
        }
    }

    /// Number of bytes; of a row that of the whole file, since its own would have to be read.
    pub fn length(&self) -> std::io::Result<u64> {
        match self {
            Source::File(path) => Ok(fs::metadata(path)?.len()),
            Source::Part { length, .. } => Ok(*length),
            Source::Row { table, .. } => Ok(table.length()),
        }
    }

    /// All bytes, or the reason why they cannot be read.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        let (shard, offset, length) = match self {
            Source::File(path) => return regular::read(path),
            Source::Row { table, group, row, .. } => return table.image(*group as usize, *row as usize),
            Source::Part { shard, offset, length, .. } => (shard, offset, length),
        };
        let unreadable = |error| format!("cannot be read: {error}");
        let mut file = File::open(shard).map_err(unreadable)?;
        file.seek(SeekFrom::Start(*offset)).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(*length).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 == *length { Ok(bytes) } else { Err("is cut: its shard has become shorter".into()) }
    }

    /// Checks type, dimensions and end mark without decoding; the decoded size in bytes.
    pub fn probe(&self) -> Result<usize, String> {
        match self {
            Source::File(path) => decode::probe(path),
            Source::Part { .. } | Source::Row { .. } => decode::probe_bytes(&self.read()?),
        }
    }
}

//! Images in tar shards and Parquet files through the binary: the same weights as from an image folder, and resuming to
//! the bit.

mod common;

use common::{changed, fails, small_configuration, succeeds, weights, write_two_classes};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Packs an image folder into shards of five images, in the order in which the folder is read.
fn pack(images: &Path, shards: &Path) {
    fs::create_dir(shards).unwrap();
    for split in ["train", "test"] {
        let mut files = Vec::new();
        for (label, class) in ["dark", "light"].iter().enumerate() {
            let entries = fs::read_dir(images.join(split).join(class)).unwrap();
            files.extend(entries.map(|entry| (entry.unwrap().path(), label)));
        }
        files.sort();
        for (number, part) in files.chunks(5).enumerate() {
            let file = fs::File::create(shards.join(format!("{split}-{number:03}.tar"))).unwrap();
            let mut shard = tar::Builder::new(file);
            for (index, (path, label)) in part.iter().enumerate() {
                let mut add = |extension: &str, bytes: &[u8]| {
                    let mut header = tar::Header::new_ustar();
                    header.set_size(bytes.len() as u64);
                    header.set_mode(0o644);
                    shard.append_data(&mut header, format!("{index:06}.{extension}"), bytes).unwrap();
                };
                add("png", &fs::read(path).unwrap());
                add("cls", label.to_string().as_bytes());
            }
            shard.finish().unwrap();
        }
    }
    fs::write(shards.join("classes.txt"), "dark\nlight\n").unwrap();
}

/// The same as one Parquet file per split, with the names of the classes inside.
fn tabulate(images: &Path, tables: &Path) {
    fs::create_dir(tables).unwrap();
    let schema = "message rows { optional group image { optional binary bytes; } optional int64 label; }";
    let description = r#"{"info": {"features": {"label": {"names": ["dark", "light"]}}}}"#;
    for split in ["train", "test"] {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let description = KeyValue::new("huggingface".to_string(), description.to_string());
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        let properties = Arc::new(properties.set_key_value_metadata(Some(vec![description])).build());
        let file = fs::File::create(tables.join(format!("{split}-00000-of-00001.parquet"))).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
        for (label, class) in [(0, "dark"), (1, "light")] {
            let entries = fs::read_dir(images.join(split).join(class)).unwrap();
            let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            let bytes: Vec<ByteArray> = paths.iter().map(|path| fs::read(path).unwrap().into()).collect();
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&bytes, Some(&vec![2; bytes.len()]), None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let labels = vec![label; bytes.len()];
            column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; bytes.len()]), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
    }
}

fn images(folder: &Path) {
    write_two_classes(&folder.join("images"), 24, 6);
    pack(&folder.join("images"), &folder.join("shards"));
    tabulate(&folder.join("images"), &folder.join("tables"));
    small_configuration(folder, "c.toml", "3");
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    fs::write(folder.join("c.toml"), changed(&text, "\nvalidation = 20", "\nvalidation = 8")).unwrap();
}

#[test]
fn shards_and_tables_train_the_same_weights_as_their_images_in_folders() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    images(folder);
    let train =
        |data: &str, out: &str| succeeds(folder, &["train", "--config", "c.toml", "--data", data, "--out", out]);
    train("images", "a");
    train("shards", "b");
    // Read from the shards for each batch.
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    fs::write(folder.join("c.toml"), changed(&text, "skip_bad = false", "skip_bad = false\ncache_mib = 0")).unwrap();
    train("shards", "c");
    let tensors = |run: &str| {
        let file = folder.join(run).join("checkpoints/supernet.safetensors");
        let mut tensors: Vec<_> = candle_core::safetensors::load(file, &candle_core::Device::Cpu)
            .unwrap()
            .into_iter()
            .map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()))
            .collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    };
    assert!(tensors("a") == tensors("b") && tensors("b") == tensors("c"));
    // A Parquet file, read row by row.
    train("tables", "e");
    assert!(tensors("e") == tensors("a"));
    succeeds(folder, &["extract", "--run", "e", "--subnet", "smallest", "--recalibration", "20"]);
    let out = succeeds(folder, &["bench", "e/models/smallest", "--data", "tables", "--per-class"]);
    assert!(out.contains("dark") && out.contains("light"), "{out}");
    // A pattern needs no test shards, and the run says so.
    let output =
        common::ofa(folder, &["train", "--config", "c.toml", "--data", "shards/train-{000..009}.tar", "--out", "d"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("no test shards"), "{said}");
    assert!(tensors("d") == tensors("c"));
    succeeds(folder, &["extract", "--run", "d", "--subnet", "smallest", "--recalibration", "20"]);
    fails(folder, &["bench", "d/models/smallest", "--data", "shards/train-{000..009}.tar"], &["test"]);
    let out = succeeds(folder, &["bench", "d/models/smallest", "--data", "shards", "--per-class"]);
    assert!(out.contains("dark") && out.contains("light"), "{out}");
}

#[test]
fn a_run_on_shards_resumes_to_the_bit_and_refuses_other_shards() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    images(folder);
    let train = ["train", "--config", "c.toml", "--data", "shards", "--out"];
    succeeds(folder, &[&train[..], &["whole"]].concat());
    succeeds(folder, &[&train[..], &["part"]].concat());
    // Back to the oldest checkpoint that is left.
    let mut checkpoints: Vec<_> = fs::read_dir(folder.join("part/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("step-"))
        .collect();
    checkpoints.sort();
    assert!(checkpoints.len() > 1);
    checkpoints[1..].iter().for_each(|path| fs::remove_file(path).unwrap());
    fs::remove_file(folder.join("part/checkpoints/supernet.safetensors")).unwrap();
    fs::rename(folder.join("shards"), folder.join("moved")).unwrap();
    let resume = ["train", "--out", "part", "--resume", "--data", "moved"];
    let shard = folder.join("moved/train-001.tar");
    let kept = fs::read(&shard).unwrap();
    // Images of the other class.
    fs::copy(folder.join("moved/train-008.tar"), &shard).unwrap();
    fails(folder, &resume, &["cannot resume", "images"]);
    fs::write(&shard, &kept[..kept.len() - 1024]).unwrap();
    fails(folder, &resume, &["train-001.tar", "truncated"]);
    fs::write(&shard, kept).unwrap();
    succeeds(folder, &resume);
    assert!(weights(&folder.join("part")) == weights(&folder.join("whole")));
}

//! The files of a model folder.

/// Name of the configuration inside a model's folder.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the weights inside a model's folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the model card inside a model's folder.
pub const CARD_FILE: &str = "README.md";
/// Name of the network as operations inside a model's folder.
pub const GRAPH_FILE: &str = "graph.json";
/// Name of the program that loads a model into PyTorch inside a model's folder.
pub const LOADER_FILE: &str = "load.py";
/// Name of the recorded benchmark inside a model's folder.
pub const BENCH_FILE: &str = "bench.json";
/// Name of the model in ONNX inside a model's folder.
pub const ONNX_FILE: &str = "model.onnx";
/// Name of the images for other engines' quantisers inside a model's folder.
pub const CALIBRATION_FILE: &str = "calibration.npy";

/// Part that a file has in its model folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRole {
    /// Written by [`save`](super::save).
    Saved,
    /// Made of the model by another command; removed by [`save`](super::save) when the model changes.
    Derived,
}

/// Every file that this program writes into a model folder.
pub const FILES: [(&str, FileRole); 8] = [
    (CONFIG_FILE, FileRole::Saved),
    (WEIGHTS_FILE, FileRole::Saved),
    (CARD_FILE, FileRole::Saved),
    (GRAPH_FILE, FileRole::Saved),
    (LOADER_FILE, FileRole::Saved),
    (BENCH_FILE, FileRole::Derived),
    (ONNX_FILE, FileRole::Derived),
    (CALIBRATION_FILE, FileRole::Derived),
];

/// Role of the file `name` in a model folder; `None` for files of others.
pub fn file_role(name: &str) -> Option<FileRole> {
    FILES.iter().find(|(file, _)| *file == name).map(|(_, role)| *role)
}

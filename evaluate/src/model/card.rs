//! `README.md` of an extracted model: a model card with a head that model hubs read.
//!
//! The lines between two marks belong to this program, which writes them anew when the model or its figures change. All
//! other lines are the user's after the first writing; a file without marks is left alone.

use super::ModelConfig;
use crate::cost;
use crate::quantise::Engine;

const BEGIN: &str = "<!-- ofa: begin. These lines are rewritten by `ofa extract` and `ofa bench --update-card`. -->";
const END: &str = "<!-- ofa: end -->";

/// Figures of a model on one device.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceFigures {
    /// The processor and its instruction set.
    pub device: String,
    /// Accuracy, as a line of text.
    pub accuracy: Option<String>,
    /// Threads, images per run, median and 90th percentile in milliseconds, images per second.
    pub latencies: Vec<(usize, usize, f64, f64, f64)>,
}

/// The card of the model in the folder `name`, whose weights take `bytes`. `old` is the card that is there; `None` if
/// that one has no marks and stays.
pub fn text(
    old: Option<&str>,
    name: &str,
    config: &ModelConfig,
    bytes: usize,
    figures: &[DeviceFigures],
) -> Option<String> {
    let own = format!("{BEGIN}\n{}{END}", body(config, bytes, figures));
    let Some(old) = old else { return Some(format!("{}\n# {name}\n\n{own}\n", head(config))) };
    let begin = old.find(BEGIN)?;
    let end = begin + old[begin..].find(END)? + END.len();
    Some(format!("{}{own}{}", &old[..begin], &old[end..]))
}

/// The YAML head. A JSON string is one of YAML, too.
fn head(config: &ModelConfig) -> String {
    format!(
        "---\nlibrary_name: ofa\npipeline_tag: image-classification\ntags:\n- image-classification\n- once-for-all\n\
         - {}\nmetrics:\n- accuracy\n# Fill in the licence of these weights, for example apache-2.0.\nlicense:\n---\n",
        serde_json::Value::from(config.space.as_str())
    )
}

fn body(config: &ModelConfig, bytes: usize, figures: &[DeviceFigures]) -> String {
    let (network, normalisation) = (&config.network, &config.normalisation);
    let thousands = |number: u64, unit: f64| format!("{:.2}", number as f64 / unit);
    let accuracy = figures.iter().rev().find_map(|figures| figures.accuracy.clone());
    let rows = [
        ("accuracy", accuracy.unwrap_or("not measured yet".into())),
        ("classes", format!("{}: {}", config.labels.len(), shown_labels(&config.labels))),
        (
            "input",
            format!(
                "RGB, {r} x {r} pixels, `(pixel / 255 - mean) / std` with mean {:?} and std {:?}",
                normalisation.mean,
                normalisation.std,
                r = network.resolution
            ),
        ),
        ("multiply-accumulates", format!("{} M", thousands(cost::macs(network), 1e6))),
        ("parameters", format!("{} M", thousands(cost::parameters(network), 1e6))),
        ("weights", format!("{}, {} kB", config.dtype, thousands(bytes as u64, 1e3))),
        (
            "subnet",
            format!(
                "`{}` of the search space `{}`",
                config.subnet.to_string().replace('|', "\\|"),
                cell(&config.space)
            ),
        ),
    ];
    let mut text = String::from("\n| | |\n| --- | --- |\n");
    text.extend(rows.iter().map(|(what, value)| format!("| {what} | {value} |\n")));
    text.push_str("\n## Latency\n\n");
    if figures.iter().all(|figures| figures.latencies.is_empty()) {
        text.push_str("Not measured yet: `ofa bench FOLDER --data DIR --update-card`.\n");
    } else {
        text.push_str("| device | threads | images per run | median ms | 90 % ms | images/s |\n");
        text.push_str("| --- | --- | --- | --- | --- | --- |\n");
        for figures in figures {
            for (threads, batch, median, most, rate) in &figures.latencies {
                let device = cell(&figures.device);
                text.push_str(&format!("| {device} | {threads} | {batch} | {median:.3} | {most:.3} | {rate:.0} |\n"));
            }
        }
        let computed = if config.quantisation.is_some() { "int8" } else { "f32" };
        text.push_str(&format!("\nMeasured with the inference engine of `ofa bench`, in {computed}.\n"));
    }
    text + "\n## Training\n\n" + &training(config) + &loading(config) + &loading_of_int8(config)
}

fn training(config: &ModelConfig) -> String {
    let origin = config.origin.as_deref().unwrap_or("A model of `ofa`; its origin is not recorded.");
    let origin = origin.replace('<', "&lt;");
    let finetuned = config.finetuned.map_or(String::new(), |how| {
        format!(
            " Then fine-tuned for {} epochs from a learning rate of {}, with the supernet as teacher.",
            how.epochs, how.learning_rate
        )
    });
    let quantised = config.quantisation.as_ref().map_or(String::new(), |how| {
        let calibrated =
            format!(" Then quantised to int8 after training, calibrated on {} training images.", how.images);
        let tuned = how.finetuned.map_or(String::new(), |how| {
            format!(
                " The integers were fine-tuned with quantisation in the loop for {} epochs from a learning rate of {}, \
                 with the f32 model as teacher.",
                how.epochs, how.learning_rate
            )
        });
        calibrated + &tuned
    });
    format!("{origin}{finetuned}{quantised}\n")
}

/// How each runtime gets the model. Engines round int8 models at different places; files of other models are the same
/// for all.
fn loading(config: &ModelConfig) -> String {
    let export = |engine: Engine| match &config.quantisation {
        Some(_) => format!("`ofa export FOLDER --for {}`", engine.name()),
        None => "`ofa export FOLDER`".into(),
    };
    format!(
        "
## Loading

| runtime | how |
| --- | --- |
| ofa | `ofa bench FOLDER --data DIR`; in Rust `ofa_evaluate::Model::load(\"FOLDER\")` |
| PyTorch | `from load import load; model = load()` in this folder (needs torch and safetensors) |
| timm | `from load import load_timm; model = load_timm()`, for the MobileNets |
| ONNX Runtime | {}, then `onnxruntime.InferenceSession(\"model.onnx\")` |
| OpenVINO | {}, then `openvino.Core().compile_model(\"model.onnx\", \"CPU\")` |

PyTorch and the exported file take `input` `[1, 3, height, width]`, normalised, and return `logits` `[1, classes]`.
",
        export(Engine::OnnxRuntime),
        export(Engine::OpenVino)
    )
}

/// The model that `load.py` loads for an int8 folder.
fn loading_of_int8(config: &ModelConfig) -> String {
    let Some(quantisation) = &config.quantisation else { return String::new() };
    let integers = "the integers as real numbers, without the rounding of values between layers";
    match &quantisation.f32_model {
        Some(name) => format!(
            "\nIn PyTorch and timm, `load.py` loads the f32 model of the folder `../{name}` where that is there, otherwise \
             (PyTorch only) {integers}.\n"
        ),
        None => format!("\nIn PyTorch, `load.py` loads {integers}; `load_timm` needs an f32 model.\n"),
    }
}

/// The labels, or the first of many.
fn shown_labels(labels: &[String]) -> String {
    let shown: Vec<String> = labels.iter().take(20).map(|label| cell(label)).collect();
    let more = if labels.len() > shown.len() { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// A text as a cell of a Markdown table, which it can neither end nor fill with elements of HTML.
pub fn cell(text: &str) -> String {
    text.replace(char::is_control, " ").replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Normalisation, NumberType};
    use ofa_supernet::space::preset;

    #[test]
    fn a_cell_stays_one() {
        assert_eq!(cell("a|b\n<b>\\"), "a\\|b &lt;b>\\\\");
    }

    fn config() -> ModelConfig {
        let space = preset("tiny").unwrap();
        let subnet = space.smallest();
        let network = space.network(&subnet, 2).unwrap();
        let labels = vec!["a|b".to_string(), "new\nline".into()];
        ModelConfig::new("tiny", &subnet, network, labels, Normalisation::IMAGENET, NumberType::F32)
    }

    #[test]
    fn an_int8_model_is_exported_for_the_engine_that_loads_it() {
        use crate::model::Quantisation;
        let mut config = config();
        let rows = |config: &ModelConfig| {
            let text = text(None, "phone", config, 1000, &[]).unwrap();
            let row = |engine: &str| {
                let row = text.lines().find(|line| line.starts_with(&format!("| {engine} |"))).unwrap();
                row.split('`').nth(1).unwrap().to_string()
            };
            [row("ONNX Runtime"), row("OpenVINO")]
        };
        assert_eq!(rows(&config), ["ofa export FOLDER", "ofa export FOLDER"]);
        config.quantisation = Some(Quantisation {
            engine: Engine::Ofa,
            images: 100,
            weight_bits: 8,
            keep_f32: Default::default(),
            f32_model: None,
            finetuned: None,
            tried_finetuning: None,
            values: Default::default(),
            engine_values: Default::default(),
        });
        assert_eq!(rows(&config), ["ofa export FOLDER --for onnxruntime", "ofa export FOLDER --for openvino"]);
    }

    #[test]
    fn a_card_keeps_what_the_user_wrote() {
        let config = config();
        let first = text(None, "phone", &config, 1000, &[]).unwrap();
        assert!(first.starts_with("---\nlibrary_name: ofa\n") && first.contains("\n# phone\n"), "{first}");
        assert!(first.contains("not measured yet") && first.contains("| 2: a\\|b, new line |"), "{first}");
        let edited = first.replace("license:\n", "license: mit\n") + "\nMy own words.\n";
        let figures = DeviceFigures {
            device: "Some CPU".into(),
            accuracy: Some("90.00 % top-1".into()),
            latencies: vec![(1, 8, 2.0, 2.5, 4000.0)],
        };
        let second = text(Some(&edited), "other", &config, 1000, &[figures]).unwrap();
        for part in ["license: mit\n", "# phone\n", "| accuracy | 90.00 % top-1 |", "| Some CPU | 1 | 8 | 2.000 |"] {
            assert!(second.contains(part), "'{part}' is not in {second}");
        }
        assert!(second.ends_with("\nMy own words.\n") && !second.contains("easured yet"), "{second}");
        assert_eq!(text(Some(&second), "phone", &config, 1000, &[]).unwrap(), edited);
        // Somebody's own file.
        assert_eq!(text(Some("# Mine\n"), "phone", &config, 1000, &[]), None);
    }
}

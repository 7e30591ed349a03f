//! Seeds from the program's own writers, and small files of foreign formats.

#[path = "../../supernet/tests/torch_file/mod.rs"]
mod torch_file;

use anyhow::Result;
use image::{ColorType, ImageEncoder};
use ofa_evaluate::cost;
use ofa_evaluate::model::{Normalisation, NumberType, load_weights, save_quantised};
use ofa_evaluate::profile::{ProfileOptions, layers_csv, measure};
use ofa_evaluate::quantise::{Engine, LEAST_IMAGES, Options, quantise};
use ofa_extract::predictor::Method;
use ofa_extract::search::Evolution;
use ofa_extract::subnet::{Record, extract};
use ofa_extract::tune::{Outcome, Point, Ranges, Trial};
use ofa_extract::{FitSettings, Predictor, Problem, Sample, SearchSettings, search};
use ofa_supernet::data::{DataOptions, Dataset};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::Head;
use ofa_supernet::train::{Control, TrainConfig, train};
use ofa_supernet::{Ranks, SearchSpace, Supernet};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Static networks in the notation of the published code.
const MOBILENET: &str = r#"{"name": "MobileNetV3", "bn": {"momentum": 0.1, "eps": 1e-05},
"first_conv": {"in_channels": 3, "out_channels": 8, "kernel_size": 3, "stride": 2, "use_bn": true, "act_func": "h_swish"},
"blocks": [
{"mobile_inverted_conv": {"name": "MBInvertedConvLayer", "in_channels": 8, "out_channels": 8, "kernel_size": 3, "stride": 1,
"expand_ratio": 1, "mid_channels": 8, "act_func": "relu", "use_se": false}, "shortcut": {"name": "IdentityLayer"}},
{"mobile_inverted_conv": {"name": "MBInvertedConvLayer", "in_channels": 8, "out_channels": 16, "kernel_size": 5, "stride": 2,
"expand_ratio": 3, "mid_channels": 24, "act_func": "h_swish", "use_se": true}, "shortcut": null},
{"mobile_inverted_conv": {"name": "ZeroLayer", "stride": 1}, "shortcut": {"name": "IdentityLayer"}}],
"final_expand_layer": {"in_channels": 16, "out_channels": 32, "kernel_size": 1, "use_bn": true, "act_func": "h_swish"},
"feature_mix_layer": {"in_channels": 32, "out_channels": 24, "kernel_size": 1, "use_bn": false, "act_func": "h_swish"},
"classifier": {"name": "LinearLayer", "in_features": 24, "out_features": 4, "dropout_rate": 0.1}}"#;
const RESNET: &str = r#"{"name": "ResNets",
"input_stem": [{"in_channels": 3, "out_channels": 8, "kernel_size": 3, "stride": 2, "act_func": "relu"},
{"conv": {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "stride": 1, "act_func": "relu"}, "shortcut": {}},
{"in_channels": 8, "out_channels": 16, "kernel_size": 3, "stride": 1, "act_func": "relu"}],
"blocks": [{"in_channels": 16, "out_channels": 32, "kernel_size": 3, "stride": 1, "expand_ratio": 0.25, "mid_channels": 8,
"act_func": "relu", "groups": 1, "downsample_mode": "avgpool_conv"},
{"in_channels": 32, "out_channels": 32, "kernel_size": 3, "stride": 1, "expand_ratio": 0.35, "act_func": "relu",
"downsample_mode": "avgpool_conv"}],
"classifier": {"in_features": 32, "out_features": 4}}"#;

/// Subnets in the notation of the published code, as written and as printed.
const SETTINGS: [&str; 4] = [
    r#"{"wid": null, "ks": [3, 5, null, 3], "e": [2, 3, null, 2], "d": [2, 1], "r": [24]}"#,
    "{'ks': (3, 5, 5, 3,), 'e': [2, 3, 4, 2], 'd': [2, 2], 'image_size': 32}",
    r#"{"ks": 3, "e": 4, "d": 1}"#,
    "{'d': [2, 0, 1], 'e': [0.25, 0.5, 0.25, 0.5], 'w': [0, 1, 1, 0], 'ks': None}",
];

/// Blocks of custom kinds as their texts.
const BLOCKS: [&str; 3] = [
    "fused 8x8x8: conv_exp=conv 16 k3 s1; bn1=norm; relu; conv_pwl=conv 8 k1 s1; bn2=norm; add of 5 0",
    "gated 9x9x8: a=conv 8 k5 s2 g8; b=norm; hard_swish; global_average_pool; c=conv 8 k1 s1 bias; hard_sigmoid; gate of 3 6; \
     d=conv 16 k3 s1; e=norm",
    "pooled 8x8x8: a=conv 8 k1 s1; b=norm; relu6; average_pool 2; max_pool of 0; add of 4 5; relu; average_pool 2 of 0; \
     add of 7 8",
];

/// Writes a seed.
type Put<'a> = dyn Fn(&str, &[u8]) -> Result<()> + 'a;

/// Writes all seeds below `corpus`.
pub fn write(corpus: &Path) -> Result<()> {
    let put = |name: &str, bytes: &[u8]| -> Result<()> {
        let path = corpus.join(name);
        fs::create_dir_all(path.parent().unwrap_or(corpus))?;
        Ok(fs::write(path, bytes)?)
    };
    foreign(&put)?;

    let tiny = SearchSpace::named("tiny")?;
    put("subnet/smallest", tiny.smallest().to_string().as_bytes())?;
    put("subnet/middle", tiny.middle().to_string().as_bytes())?;
    put("subnet/fraction", b"r160 d2,3 k3,5|7,3,3 e0.5,6|3.333,3,4")?;
    put("subnet/resnet", SearchSpace::named("resnet-tiny")?.largest().to_string().as_bytes())?;
    for (index, block) in BLOCKS.iter().enumerate() {
        put(&format!("block/{index}"), block.as_bytes())?;
    }
    put("network-description/mobilenet", MOBILENET.as_bytes())?;
    put("network-description/resnet", RESNET.as_bytes())?;
    for (index, limit) in
        ["laptop:latency=12ms", "any:macs=1.5M", "any:params=800k", "any:memory=2MiB", "pi:latency=800 µs"]
            .iter()
            .enumerate()
    {
        put(&format!("limit/{index}"), limit.as_bytes())?;
    }
    for name in ["tiny", "cifar-mbv3", "mbv3-w1.0", "proxyless-w1.3", "resnet-tiny"] {
        put(&format!("space/{name}"), toml::to_string(&SearchSpace::named(name)?)?.as_bytes())?;
    }
    for name in TrainConfig::PRESETS {
        put(&format!("train-config/{name}"), toml::to_string(&TrainConfig::preset(name, &tiny)?)?.as_bytes())?;
    }

    put("latency-table/tiny", latency_table(&tiny)?.as_bytes())?;
    put("layer-times/tiny", layers_csv(&tiny, 4)?.replace(",\n", ",0.25\n").as_bytes())?;
    let ranges = Ranges::about(&TrainConfig::preset("tiny", &tiny)?, &tiny)?;
    put("ranges/about", toml::to_string(&ranges)?.as_bytes())?;
    let trial = |trial| Trial {
        trial,
        values: ranges.names().map(|name| (name, 16.0)).collect(),
        curve: vec![Point { progress: 0.5, accuracy: 0.25 }],
        objective: 0.25,
        outcome: Outcome::Finished,
        seconds: 1.5,
    };
    let trials: Result<Vec<String>, _> = (0..2).map(|index| serde_json::to_string(&trial(index))).collect();
    put("trials/two", (trials?.join("\n") + "\n").as_bytes())?;
    let tensors: Vec<torch_file::Named> = vec![
        ("first_conv.conv.weight".into(), vec![2, 1, 3, 3], (0..18).map(|i| i as f32).collect()),
        ("classifier.linear.bias".into(), vec![3], vec![0.5, -0.5, 0.25]),
    ];
    put("published/zip", &torch_file::zip(&torch_file::entries(&tensors)))?;
    put("published/old", &old_torch_file(&tensors))?;
    let prefixed = tensors.iter().cloned().map(|(name, s, v)| (format!("module._orig_mod.{name}"), s, v)).collect();
    let sets = [("state_dict_ema", tensors), ("model", prefixed)];
    put("published/wrapped", &torch_file::zip(&torch_file::wrapped(&sets)))?;
    for (index, setting) in SETTINGS.iter().enumerate() {
        put(&format!("setting/{index}"), setting.as_bytes())?;
    }

    of_a_run(&put, &tiny)?;

    let folder = tempfile::tempdir()?;
    let mut samples = Vec::new();
    for position in 0..30 {
        let subnet = tiny.sample(&mut generator(0, Stream::Sampling, &[position]));
        let size = cost::macs(&tiny.network(&subnet, 10)?) as f64;
        samples.push(Sample::new(subnet, (size.ln() / 20.0).clamp(0.0, 1.0)));
    }
    let result = search(
        &Problem { evaluations: Some(40), keep: 2, ..Problem::new(&tiny, &[], 0) },
        &SearchSettings::Evolution(Evolution::default()),
        &mut |subnets| Ok(subnets.iter().map(|subnet| subnet.resolution as f64 / 40.0).collect()),
        &mut |_| (),
    )?;
    put("search-result/evolution", serde_json::to_string_pretty(&result)?.as_bytes())?;
    let rows = samples.iter().take(6).map(|sample| (sample.subnet.to_string(), 100.0 * sample.accuracy));
    let csv: String = rows.clone().map(|(subnet, percent)| format!("\"{subnet}\",{percent}\n")).collect();
    put("accuracies-csv/six", format!("Sub-network,Top-1 Acc (%)\n{csv}").as_bytes())?;
    let json = |(subnet, percent)| serde_json::json!({ "subnet": subnet, "accuracy": percent }).to_string() + "\n";
    let published = std::iter::once((SETTINGS[1].replace("image_size", "r"), 71.5));
    put("accuracies-jsonl/seven", rows.chain(published).map(json).collect::<String>().as_bytes())?;
    let lines: Result<Vec<String>, _> = samples.iter().take(6).map(serde_json::to_string).collect();
    put("samples/six", (lines?.join("\n") + "\n").as_bytes())?;
    for (name, method) in [("predictor/small", Method::Ensemble), ("predictor/process", Method::GaussianProcess)] {
        let settings = FitSettings { method, hidden: 4, ..FitSettings::default() };
        let (predictor, _) = Predictor::fit(&tiny, &samples, &settings, 0, &mut |_, _, _| {})?;
        predictor.save(&folder.path().join("predictor"))?;
        put(name, &fs::read(folder.path().join("predictor"))?)?;
    }
    Ok(())
}

/// Files of a run over a few images in the narrowest network.
fn of_a_run(put: &Put, tiny: &SearchSpace) -> Result<()> {
    let mut narrow = SearchSpace { width_multiplier: 0.25, ..tiny.clone() };
    narrow.resolutions = vec![8, 12];
    narrow.head = narrow.head.map(|head| Head { feature_channels: 8, hidden_channels: Some(8), ..head });
    let folder = tempfile::tempdir()?;
    let data = Dataset::open(
        "builtin",
        &DataOptions { validation: Some(20), builtin_train: 60, builtin_test: 10, ..DataOptions::default() },
    )?;
    let mut config = TrainConfig::preset("tiny", &narrow)?.with_epochs(3.0);
    (config.log_every, config.keep_checkpoints) = (1, 1);
    let mut net = Supernet::new(&narrow, 10, 0)?;
    train(&mut net, &data, &config, &Ranks::alone(), folder.path(), false, &mut |_| Control::Continue)?;
    put("metrics/run", &fs::read(folder.path().join("metrics.jsonl"))?)?;
    for entry in fs::read_dir(folder.path().join("checkpoints"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(&path)?;
        if name == "supernet.safetensors" {
            put("checkpoint/supernet", &bytes)?;
        } else {
            put("checkpoint/step", &bytes)?;
            let (_, note): (_, serde_json::Value) = ofa_supernet::train::tensor_file::read(&path)?;
            put("checkpoint-note/step", serde_json::to_string(&note)?.as_bytes())?;
        }
    }

    let statistics = net.running_statistics(&narrow.smallest())?;
    let model = folder.path().join("model");
    let normalisation = Normalisation { mean: [0.5; 3], std: [0.25; 3] };
    extract(&net, &narrow.smallest(), &statistics, &data.classes, &normalisation, Record::of(NumberType::F32), &model)?;
    put("model-config/tiny.json", &fs::read(model.join("config.json"))?)?;
    put("model-weights/tiny", &fs::read(model.join("model.safetensors"))?)?;
    put("published/safetensors", &fs::read(model.join("model.safetensors"))?)?;
    let (config, weights) = load_weights(&model)?;
    let resolution = config.network.resolution;
    let images = data.evaluation_batch(&data.train, &(0..LEAST_IMAGES).collect::<Vec<_>>(), resolution)?.images;
    let options = Options { engine: Engine::Ofa, weight_bits: 8, keep_f32: ["conv_stem".to_string()].into() };
    let int8 = quantise(&config, &weights, &images, &options, &mut |_, _| ControlFlow::Continue(()))?;
    save_quantised(&model, &int8.config, &int8.network)?;
    put("int8-config/tiny.json", &fs::read(model.join("config.json"))?)?;
    put("int8-weights/tiny", &fs::read(model.join("model.safetensors"))?)?;

    let options =
        ProfileOptions { rounds: 1, calibration_subnets: 2, check_subnets: 2, ..ProfileOptions::new("seed", 3) };
    let one = SearchSpace { resolutions: vec![8], ..narrow.clone() };
    let profile = measure(&one, &options, None, &mut |_| ControlFlow::Continue(()))?;
    profile.save(folder.path().join("seed.json"))?;
    put("device-profile/seed", &fs::read(folder.path().join("seed.json"))?)?;
    Ok(())
}

/// A latency table of the smallest resolution, built by adding entries until the reader finds none missing.
fn latency_table(tiny: &SearchSpace) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("table.yaml");
    let stem = tiny.network(&tiny.smallest(), 4)?.stem;
    let (input, output, channels) = (stem[0].input_size, stem[0].output_size(), stem[0].out_channels);
    let mut table =
        format!("Conv-input:{input}x{input}x3-output:{output}x{output}x{channels}:\n  count: 3\n  mean: 1.5\n");
    loop {
        fs::write(&path, &table)?;
        let Err(error) = ofa_evaluate::profile::import(tiny, 4, "phone", std::slice::from_ref(&path)) else {
            return Ok(table);
        };
        let missing = error.to_string();
        let Some(key) = missing.split('\'').nth(1).filter(|_| missing.contains("has no entry")) else {
            return Err(error.into());
        };
        table += &format!("{key}:\n  count: 3\n  mean: 0.25\n");
    }
}

/// A PyTorch file of the format before version 1.6: pickles, then the bytes of the tensors.
fn old_torch_file(tensors: &[torch_file::Named]) -> Vec<u8> {
    let mut out = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}".to_vec();
    torch_file::text(&mut out, "little_endian");
    out.extend(b"\x88s.");
    out.extend(torch_file::program(tensors));
    out.extend(b"\x80\x02](");
    (0..tensors.len()).for_each(|index| torch_file::text(&mut out, &index.to_string()));
    out.extend(b"e.");
    for (_, _, values) in tensors {
        out.extend((values.len() as u64).to_le_bytes());
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    out
}

/// A tar file of these entries.
fn tar_file(entries: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes)?;
    }
    Ok(builder.into_inner()?)
}

/// A Parquet file of images with the labels 0, 1, ... in row groups of two.
fn parquet_file(images: &[&[u8]]) -> Result<Vec<u8>> {
    let schema = "message rows { optional group image { optional binary bytes; } optional int64 label; }";
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let schema = Arc::new(parse_message_type(schema)?);
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    for (number, images) in images.chunks(2).enumerate() {
        let mut group = writer.next_row_group()?;
        let bytes: Vec<ByteArray> = images.iter().map(|image| image.to_vec().into()).collect();
        let labels: Vec<i64> = (0..images.len() as i64).map(|label| 2 * number as i64 + label).collect();
        if let Some(mut column) = group.next_column()? {
            column.typed::<ByteArrayType>().write_batch(&bytes, Some(&vec![2; images.len()]), None)?;
            column.close()?;
        }
        if let Some(mut column) = group.next_column()? {
            column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; images.len()]), None)?;
            column.close()?;
        }
        group.close()?;
    }
    Ok(writer.into_inner()?)
}

/// IDX, CIFAR, PNG, JPEG and shards.
fn foreign(put: &Put) -> Result<()> {
    let header = |fields: &[u32]| -> Vec<u8> { fields.iter().flat_map(|field| field.to_be_bytes()).collect() };
    let mut images = header(&[0x0803, 6, 3, 2]);
    images.extend(0..36u8);
    put("idx-images/plain", &images)?;
    put("idx-images/short", &images[..40])?;
    let mut labels = header(&[0x0801, 6]);
    labels.extend([1, 2, 1, 2, 1, 2]);
    put("idx-labels/plain", &labels)?;
    let records =
        (0..10u8).flat_map(|label| [label].into_iter().chain((0..3072u32).map(move |i| (i * 7) as u8 ^ label)));
    put("cifar/ten", &records.collect::<Vec<u8>>())?;

    let png = |pixels: &[u8], side: u32, colour: ColorType| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes).write_image(pixels, side, side, colour.into())?;
        Ok(bytes)
    };
    let pixels: Vec<u8> = (0..8 * 8 * 8).map(|i| (i * 37) as u8).collect();
    put("image/rgb.png", &png(&pixels[..192], 8, ColorType::Rgb8)?)?;
    put("image/grey-alpha.png", &png(&pixels[..128], 8, ColorType::La8)?)?;
    put("image/deep.png", &png(&pixels[..384], 8, ColorType::Rgb16)?)?;
    let small = png(&pixels[..192], 8, ColorType::Rgb8)?;
    let json: &[u8] = br#"{"label": 1, "width": 8}"#;
    put("shard/two", &tar_file(&[("a.png", &small), ("a.cls", b"0"), ("b.png", &small), ("b.json", json)])?)?;
    put("table/two", &parquet_file(&[&small, &small])?)?;
    put("table/three", &parquet_file(&[&small, &small, &small])?)?;
    let long = "folder/".repeat(30) + "name.png";
    let cls = long.replace("png", "cls");
    let named = [(long.as_str(), &small[..]), (cls.as_str(), b"one"), ("._x.png", b"x"), ("x.txt", b"text")];
    put("shard/names", &tar_file(&named)?)?;
    for (name, channels, colour) in [("rgb", 3, ColorType::Rgb8), ("grey", 1, ColorType::L8)] {
        let mut bytes = Vec::new();
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 90);
        encoder.write_image(&pixels[..64 * channels], 8, 8, colour.into())?;
        put(&format!("image/{name}.jpg"), &bytes)?;
    }
    Ok(())
}

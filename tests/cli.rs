//! Every command end to end through the binary, on a very small run; and what it says to bad input.

#[path = "../supernet/tests/torch_file/mod.rs"]
mod torch_file;

mod common;

use candle_core::{Device, Tensor};
use common::{fails, succeeds};
use ofa_evaluate::Model;
use ofa_supernet::import::published;
use ofa_supernet::network::Mode;
use ofa_supernet::space::{BlockSpec, ConvSpec};
use ofa_supernet::{NetworkSpec, SearchSpace, Supernet};
use serde_json::{Value, json};
use std::path::Path;

const SMALL: &[&str] = &["--epochs", "3", "--images", "400", "--samples", "16"];

#[test]
fn quickstart_then_every_command_on_its_run() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let out = succeeds(folder, &[&["quickstart", "--out", "q"], SMALL].concat());
    for part in ["Kendall tau", "smallest", "largest", "this-latency-", "ofa train --preset cifar"] {
        assert!(out.contains(part), "'{part}' is not in: {out}");
    }
    for file in ["config.toml", "metrics.jsonl", "predictor/samples.jsonl", "predictor/fit.json", "devices/this.json"] {
        assert!(folder.join("q").join(file).exists(), "{file}");
    }
    let samples = || std::fs::read_to_string(folder.join("q/predictor/samples.jsonl")).unwrap();
    assert_eq!(samples().lines().count(), 16);

    // More samples: the earlier ones are kept.
    let before = samples();
    let out =
        succeeds(folder, &["predictor", "--run", "q", "--samples", "20", "--recalibration", "100", "--images", "50"]);
    assert!(out.contains("20 subnets, 4 held out"), "{out}");
    assert!(samples().starts_with(&before));

    succeeds(
        folder,
        &["profile", "--run", "q", "--name", "two", "--model-threads", "2", "--rounds", "3", "--check", "5"],
    );
    let out = succeeds(
        folder,
        &[
            "search",
            "--run",
            "q",
            "--limit",
            "two:latency=1s",
            "--limit",
            "any:macs=0.5M",
            "--generations",
            "5",
            "--json",
        ],
    );
    let results: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(results.as_array().unwrap().len(), 2);
    assert!(results[1]["constraints"][0]["value"].as_f64().unwrap() <= 0.5e6);
    assert!(folder.join("q/search/any-macs-500k.json").exists() || folder.join("q/search/any-macs-0.5M.json").exists());
    fails(folder, &["search", "--run", "q", "--limit", "any:macs=1k"], &["smallest"]);
    strategies(folder);
    fails(folder, &["search", "--run", "q", "--limit", "phone:latency=1ms"], &["phone", "this"]);

    let out = succeeds(
        folder,
        &["extract", "--run", "q", "--subnet", "smallest", "--name", "tuned", "--finetune", "1", "--dtype", "f16"],
    );
    assert!(out.contains("q/models/tuned"), "{out}");
    let models = ["q/models/tuned", "q/models/smallest"];
    let out = succeeds(folder, &["bench", models[0], models[1], "--data", "builtin", "--batch", "1,4", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(rows[0]["model"], "tuned");
    assert_eq!(rows[0]["latencies"].as_array().unwrap().len(), 2);
    assert!(rows[0]["file_bytes"].as_f64().unwrap() < 0.7 * rows[1]["file_bytes"].as_f64().unwrap());
    let csv = succeeds(folder, &["bench", models[1], "--csv"]);
    assert_eq!(csv.lines().count(), 2, "{csv}");

    // A quickstart replaces a quickstart, and nothing else.
    std::fs::create_dir(folder.join("mine")).unwrap();
    fails(folder, &["quickstart", "--out", "mine"], &["mine", "not an earlier quickstart"]);
    // A damaged model is named.
    std::fs::write(folder.join("q/models/smallest/model.safetensors"), b"short").unwrap();
    fails(folder, &["bench", models[1]], &["smallest"]);
}

/// Every strategy, scorer and option of the search on the run `q`.
fn strategies(folder: &Path) {
    let search = |arguments: &[&str]| -> serde_json::Value {
        let out = succeeds(folder, &[&["search", "--run", "q", "--json"], arguments].concat());
        serde_json::from_str(&out).unwrap()
    };
    // Limits that bind, on two devices and a size at once: a part of what the best subnet without limits has.
    let subjects = ["this:latency", "two:latency", "any:size-f16"];
    let free = search(&[
        "--limit",
        "this:latency=9s",
        "--limit",
        "two:latency=9s",
        "--limit",
        "any:size-f16=9GB",
        "--together",
    ]);
    let limits: Vec<String> = subjects
        .iter()
        .zip(["ms", "ms", "B"])
        .zip(free[0]["constraints"].as_array().unwrap())
        .flat_map(|((subject, unit), found)| {
            ["--limit".into(), format!("{subject}={:.6}{unit}", 0.8 * found["value"].as_f64().unwrap())]
        })
        .chain(["--together".into()])
        .collect();
    let limits: Vec<&str> = limits.iter().map(String::as_str).collect();
    for strategy in ["random", "grid", "evolution", "bayes", "ppo", "gradient"] {
        let results = search(&[&["--strategy", strategy, "--evaluations", "60"], &limits[..]].concat());
        let result = &results[0];
        assert_eq!(result["settings"]["strategy"], strategy);
        assert!(result["evaluations"].as_u64().unwrap() <= 60, "{strategy}");
        assert_eq!(result["constraints"].as_array().unwrap().len(), 3);
        for constraint in result["constraints"].as_array().unwrap() {
            assert!(constraint["value"].as_f64() <= constraint["limit"].as_f64(), "{strategy}: {constraint}");
        }
        assert_ne!(result["best"], free[0]["best"], "{strategy}");
    }
    let arguments = ["--strategy", "pareto", "--against", "any:macs", "--against", "any:params", "--generations", "5"];
    let front = search(&arguments)[0]["front"].as_array().unwrap().clone();
    assert!(front.len() > 3 && front.iter().all(|point| point["values"].as_array().unwrap().len() == 2), "{front:?}");
    assert!(folder.join("q/search/front+any-macs+any-params.json").exists());

    let images = ["--recalibration", "50", "--images", "50", "--limit", "any:macs=400k"];
    let verified = &search(&[&["--verify", "2", "--generations", "3"], &images[..]].concat())[0];
    assert!(verified["measured_accuracy"].as_f64().is_some(), "{verified}");
    assert_eq!(verified["top"].as_array().unwrap().len(), 2);
    let measured =
        &search(&[&["--score", "measured", "--strategy", "bayes", "--evaluations", "5"], &images[..]].concat())[0];
    assert_eq!(measured["measured_accuracy"], measured["predicted_accuracy"]);
    assert_eq!(measured["evaluations"], 5);

    let arguments =
        ["search", "--run", "q", "--limit", "any:macs=400k", "--compare", "--seeds", "2", "--evaluations", "50"];
    let out = succeeds(folder, &arguments);
    for name in ["evolution", "pareto", "random", "grid", "bayes", "ppo", "gradient", "spread"] {
        assert!(out.contains(name), "'{name}' is not in: {out}");
    }

    let bad = |arguments: &[&str], expected: &[&str]| {
        fails(folder, &[&["search", "--run", "q", "--limit", "any:macs=400k"], arguments].concat(), expected);
    };
    bad(&["--strategy", "random", "--population", "5"], &["--strategy random", "population"]);
    bad(&["--strategy", "pareto"], &["--against"]);
    bad(&["--against", "any:macs"], &["--strategy pareto"]);
    bad(&["--evaluations", "0"], &["evaluations"]);
    bad(&["--score", "measured", "--verify", "3"], &["--verify"]);
    bad(&["--data", "builtin"], &["--data", "--score measured"]);
    bad(&["--limit", "any:memory=1KB", "--together"], &["memory", "smallest value it can reach"]);
}

#[test]
fn training_from_an_edited_configuration_on_an_image_folder_resumes() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for (split, count) in [("train", 24), ("test", 6)] {
        for (class, value) in [("dark", 40u8), ("light", 200)] {
            let path = folder.join("images").join(split).join(class);
            std::fs::create_dir_all(&path).unwrap();
            for index in 0..count {
                let image =
                    image::RgbImage::from_fn(20, 18, |x, y| image::Rgb([value, (x * 9) as u8, (y * index) as u8]));
                image.save(path.join(format!("{index}.png"))).unwrap();
            }
        }
    }
    let config =
        succeeds(folder, &["config", "--preset", "tiny", "--epochs", "6", "--batch", "8", "--validation", "8"]);
    std::fs::write(folder.join("my.toml"), &config).unwrap();
    let train = ["train", "--config", "my.toml", "--data", "images", "--out", "run"];
    let out = succeeds(folder, &train);
    assert!(out.contains("supernet.safetensors written"), "{out}");
    assert!(!cfg!(target_os = "linux") || out.contains("peak memory "), "{out}");
    let weights = || std::fs::read(folder.join("run/checkpoints/supernet.safetensors")).unwrap();
    let first = weights();
    fails(folder, &train, &["--resume"]);
    fails(folder, &["train", "--out", "run", "--resume", "--batch", "9"], &["--resume", "config.toml"]);
    succeeds(folder, &["train", "--out", "run", "--resume"]);
    assert!(first == weights(), "resuming a finished run changed its weights");

    std::fs::write(folder.join("my.toml"), config.replace("momentum", "momentun")).unwrap();
    fails(folder, &train, &["my.toml", "momentun"]);
    fails(folder, &["train", "--data", "nowhere", "--out", "r"], &["nowhere"]);
    fails(folder, &["train", "--space", "mbv4", "--out", "r"], &["mbv4", "cifar-mbv3"]);
    fails(folder, &["predictor", "--run", "nowhere"], &["nowhere"]);
    std::fs::write(folder.join("images/train/dark/3.png"), b"no image").unwrap();
    fails(folder, &["train", "--preset", "tiny", "--data", "images", "--validation", "8", "--out", "r"], &["3.png"]);
}

#[test]
fn a_resnet_goes_the_whole_way() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let config = succeeds(folder, &["config", "--preset", "tiny", "--space", "resnet-tiny", "--epochs", "1.5"]);
    for part in ["family = \"resnet_d\"", "name = \"outer-1\"", "sort_outer_channels = 1"] {
        assert!(config.contains(part), "'{part}' is not in: {config}");
    }
    std::fs::write(folder.join("c.toml"), config.replace("recalibration_images = 200", "recalibration_images = 32"))
        .unwrap();
    succeeds(folder, &["train", "--config", "c.toml", "--data", "builtin", "--out", "run"]);
    let out =
        succeeds(folder, &["predictor", "--run", "run", "--samples", "10", "--recalibration", "20", "--images", "20"]);
    assert!(out.contains("10 subnets"), "{out}");
    succeeds(folder, &["profile", "--run", "run", "--name", "this", "--rounds", "2", "--check", "4"]);
    let limits = ["--limit", "this:latency=1s", "--limit", "any:macs=0.8M", "--limit", "any:memory=60KB"];
    let search = [&["search", "--run", "run", "--generations", "3", "--json"], &limits[..]].concat();
    let results: serde_json::Value = serde_json::from_str(&succeeds(folder, &search)).unwrap();
    for result in results.as_array().unwrap() {
        let constraint = &result["constraints"][0];
        assert!(constraint["value"].as_f64().unwrap() <= constraint["limit"].as_f64().unwrap(), "{constraint}");
        assert!(result["best"].as_str().unwrap().contains(" w"), "{result}");
    }
    let subnet = "r24 w0.5,1,1,0.5 s1 d2,1 e0.25,0.5|0.25";
    succeeds(folder, &["extract", "--run", "run", "--search-results", "--subnet", "largest"]);
    let setting = r#"{"d": [1, 1, 0], "e": [0.25, 0.5, 0.25, 0.5], "w": [0, 1, 1, 0], "r": 24}"#;
    let tuned = ["extract", "--run", "run", "--subnet", setting, "--name", "tuned", "--finetune", "0.1"];
    let out = succeeds(folder, &tuned);
    assert!(out.contains(subnet), "{out}");
    let out = succeeds(folder, &["bench", "run/models/tuned", "run/models/largest", "--batch", "1,3", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(rows[0]["parameters"].as_f64() < rows[1]["parameters"].as_f64(), "{out}");
    let outside = subnet.replace("w0.5", "w0.7");
    fails(folder, &["extract", "--run", "run", "--subnet", &outside], &["width multiplier is 0.7", "0.5, 1"]);

    std::fs::write(folder.join("net.pth"), checkpoint("resnet-tiny", 4)).unwrap();
    succeeds(folder, &["import", "net.pth", "--space", "resnet-tiny", "--out", "imported"]);
    fails(folder, &["import", "net.pth", "--space", "tiny", "--out", "other"], &["first_conv", "space 'tiny'"]);
}

#[test]
fn speed_reports_every_mode() {
    let temporary = tempfile::tempdir().unwrap();
    for mode in ["max", "elastic", "eval"] {
        let out = succeeds(
            temporary.path(),
            &[
                "speed",
                "--space",
                "tiny",
                "--resolution",
                "16",
                "--batch",
                "4",
                "--steps",
                "2",
                "--mode",
                mode,
                "--json",
            ],
        );
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert!(report["images_per_second"].as_f64().unwrap() > 0.0);
    }
    let config = succeeds(temporary.path(), &["config", "--preset", "tiny", "--epochs", "1", "--batch", "4"]);
    std::fs::write(temporary.path().join("c.toml"), &config).unwrap();
    // A space of one's own, from the space of a configuration.
    let mut space = toml::from_str::<toml::Table>(&config).unwrap()["space"].as_table().unwrap().clone();
    space.insert("name".into(), "mine".into());
    std::fs::write(temporary.path().join("space.toml"), space.to_string()).unwrap();
    let out = succeeds(temporary.path(), &["config", "--preset", "tiny", "--space", "space.toml"]);
    assert!(out.contains("name = \"mine\""), "{out}");
    let arguments =
        ["speed", "--space", "tiny", "--batch", "4", "--steps", "1", "--config", "c.toml", "--images", "100"];
    let out = succeeds(temporary.path(), &arguments);
    assert!(out.contains("the schedule takes about"), "{out}");
}

#[test]
fn the_example_configuration_is_valid_and_its_space_is_the_preset() {
    let root = env!("CARGO_MANIFEST_DIR");
    let temporary = tempfile::tempdir().unwrap();
    let example = format!("{root}/examples/cifar10.toml");
    let out = succeeds(temporary.path(), &["config", "--config", &example]);
    let preset = succeeds(temporary.path(), &["config", "--preset", "cifar"]);
    let space = |text: &str| toml::from_str::<toml::Table>(text).unwrap()["space"].clone();
    assert_eq!(space(&out), space(&preset));
}

/// A new supernet as a published checkpoint: the file's bytes.
fn checkpoint(space: &str, classes: usize) -> Vec<u8> {
    checkpoint_of(&Supernet::new(&SearchSpace::named(space).unwrap(), classes, 3).unwrap())
}

fn checkpoint_of(net: &Supernet) -> Vec<u8> {
    let mut tensors: Vec<torch_file::Named> = Vec::new();
    for (name, tensor) in net.state().unwrap() {
        let mut shape = tensor.dims().to_vec();
        if name == "hidden.weight" {
            shape.extend([1, 1]);
        }
        // The spelling of the published files.
        let name = published(&name, net.space()).unwrap().replace(".conv.", ".mobile_inverted_conv.");
        let name = name.replacen("first_conv.mobile_inverted_conv", "first_conv.conv", 1);
        tensors.push((name, shape, tensor.flatten_all().unwrap().to_vec1().unwrap()));
    }
    torch_file::zip(&torch_file::entries(&tensors))
}

#[test]
fn an_imported_checkpoint_serves_every_later_command() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("net.pth"), checkpoint("tiny", 10)).unwrap();
    let out = succeeds(folder, &["import", "net.pth", "--space", "tiny", "--out", "run"]);
    assert!(out.contains("10 classes") && out.contains("run/checkpoints/supernet.safetensors"), "{out}");
    succeeds(folder, &["profile", "--run", "run", "--name", "this", "--rounds", "2", "--check", "3"]);
    fails(folder, &["predictor", "--run", "run"], &["without images", "--data"]);
    let sampling = ["--samples", "12", "--recalibration", "50", "--images", "50"];
    succeeds(folder, &[&["predictor", "--run", "run", "--data", "builtin"], &sampling[..]].concat());
    succeeds(folder, &["search", "--run", "run", "--limit", "this:latency=1s", "--generations", "3"]);
    let out = succeeds(
        folder,
        &["extract", "--run", "run", "--search-results", "--data", "builtin", "--recalibration", "100"],
    );
    assert!(out.contains("--data builtin"), "{out}");
    let config = std::fs::read_to_string(folder.join("run/models/this-latency-1s/config.json")).unwrap();
    // The data's class names and ImageNet's normalisation.
    assert!(config.contains("0.485") && !config.contains("\"0\""), "{config}");
    succeeds(folder, &["bench", "run/models/this-latency-1s", "--data", "builtin"]);
    // A subnet as the published code writes it.
    let setting = r#"{"ks": [3, 5, 5, 3], "e": 4, "d": [1, 2], "r": [24]}"#;
    let out = succeeds(
        folder,
        &["extract", "--run", "run", "--subnet", setting, "--data", "builtin", "--recalibration", "50"],
    );
    assert!(out.contains("r24 d1,2 k3|5,3 e4|4,4"), "{out}");
    // The published files are for other spaces.
    std::fs::write(folder.join("t.yaml"), "Conv-input:16x16x3-output:8x8x8:\n  count: 1\n  mean: 1.0\n").unwrap();
    fails(
        folder,
        &["profile", "--run", "run", "--name", "phone", "--import", "t.yaml"],
        &["t.yaml", "no entry 'expanded_conv"],
    );
    fails(folder, &["predictor", "--run", "run", "--import", "net.pth"], &["net.pth", "five stages"]);

    fails(folder, &["import", "net.pth", "--space", "tiny", "--out", "run"], &["there is a run in it already"]);
    fails(folder, &["train", "--preset", "tiny", "--out", "run"], &["already holds a supernet"]);
    // Nothing is left of an import that fails.
    fails(
        folder,
        &["import", "net.pth", "--space", "cifar-mbv3", "--out", "other"],
        &["net.pth", "tensor '", "--space"],
    );
    fails(folder, &["import", "t.yaml", "--space", "tiny", "--out", "other"], &["t.yaml", "safetensors"]);
    std::fs::write(folder.join("few.pth"), checkpoint("tiny", 3)).unwrap();
    let arguments = ["import", "few.pth", "--space", "tiny", "--out", "other", "--data", "builtin"];
    fails(folder, &arguments, &["few.pth", "3 classes", "has 10"]);
    assert!(!folder.join("other").exists());
    succeeds(folder, &["import", "few.pth", "--space", "tiny", "--resolutions", "16,24", "--out", "few"]);
    fails(
        folder,
        &["extract", "--run", "few", "--subnet", "smallest", "--data", "builtin"],
        &["classes are 3 (0, 1, 2)"],
    );
}

/// A network as the published code describes it.
fn description(network: &NetworkSpec) -> Value {
    let conv = |conv: &ConvSpec| {
        json!({
            "name": "ConvLayer", "in_channels": conv.in_channels, "out_channels": conv.out_channels, "kernel_size": conv.kernel,
            "stride": conv.stride, "groups": 1, "use_bn": true, "act_func": conv.activation.to_string().replace("hsw", "h_sw"),
        })
    };
    let block = |block: &BlockSpec| match block {
        BlockSpec::InvertedResidual(block) => json!({
            "name": "MobileInvertedResidualBlock",
            "mobile_inverted_conv": {
                "name": "MBInvertedConvLayer", "in_channels": block.in_channels, "out_channels": block.out_channels,
                "kernel_size": block.kernel, "stride": block.stride, "mid_channels": block.middle_channels,
                "expand_ratio": block.middle_channels as f64 / block.in_channels as f64, "use_se": block.squeeze_excite.is_some(),
                "act_func": block.activation.to_string().replace("hsw", "h_sw"),
            },
            "shortcut": block.residual.then(|| json!({"name": "IdentityLayer"})),
        }),
        BlockSpec::Bottleneck(block) => json!({
            "name": "ResNetBottleneckBlock", "in_channels": block.in_channels, "out_channels": block.out_channels,
            "kernel_size": block.kernel, "stride": block.stride, "mid_channels": block.middle_channels, "groups": 1,
            "expand_ratio": block.middle_channels as f64 / block.out_channels as f64, "act_func": "relu",
            "downsample_mode": "avgpool_conv",
        }),
    };
    let mut blocks: Vec<Value> = network.blocks().map(block).collect();
    let classifier = json!({"in_features": network.classifier_channels(), "out_features": network.classes});
    let bn = json!({"momentum": 0.1, "eps": network.batch_norm_epsilon});
    let (Some(feature), Some(hidden)) = (&network.feature, network.hidden_channels) else {
        let stem =
            |spec: &ConvSpec| if spec.residual { json!({"conv": conv(spec), "shortcut": {}}) } else { conv(spec) };
        let stem: Vec<Value> = network.stem.iter().map(stem).collect();
        return json!({"name": "ResNets", "bn": bn, "input_stem": stem, "blocks": blocks, "classifier": classifier});
    };
    // One that was searched away.
    blocks.push(
        json!({"mobile_inverted_conv": {"name": "ZeroLayer", "stride": 1}, "shortcut": {"name": "IdentityLayer"}}),
    );
    let mix = json!({
        "in_channels": feature.out_channels, "out_channels": hidden, "kernel_size": 1, "use_bn": false,
        "act_func": network.hidden_activation.to_string().replace("hsw", "h_sw"),
    });
    json!({
        "name": "MobileNetV3", "bn": bn, "first_conv": conv(&network.stem[0]), "blocks": blocks,
        "final_expand_layer": conv(feature), "feature_mix_layer": mix, "classifier": classifier,
    })
}

#[test]
fn a_published_specialised_network_becomes_a_model() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for name in ["tiny", "resnet-tiny"] {
        let mut space = SearchSpace::named(name).unwrap();
        // Kernel transforms are the supernet's alone.
        space.kernel_sizes.drain(..space.kernel_sizes.len() - 1);
        let net = Supernet::new(&space, 10, 3).unwrap();
        let largest = space.largest();
        let network = space.network(&largest, 10).unwrap();
        std::fs::write(folder.join("net.config"), description(&network).to_string()).unwrap();
        std::fs::write(folder.join("init"), checkpoint_of(&net)).unwrap();
        let import =
            ["import", "init", "--network", "net.config", "--resolution", "32", "--data", "builtin", "--out", name];
        let out = succeeds(folder, &import);
        assert!(out.contains("10 classes") && out.contains(&format!("ofa bench {name}")), "{out}");
        succeeds(folder, &["bench", name, "--data", "builtin"]);
        fails(folder, &import, &[name, "exists already"]);

        // It computes what the supernet's largest subnet does.
        let mut model = Model::load(folder.join(name)).unwrap();
        assert_eq!((&model.config().network, &model.config().subnet.stages), (&network, &largest.stages));
        let images: Vec<f32> = (0..2 * 32 * 32 * 3).map(|i| (i as f32 * 0.7).sin()).collect();
        let tensor = Tensor::from_slice(&images, (2, 32, 32, 3), &Device::Cpu).unwrap();
        let statistics = net.running_statistics(&largest).unwrap();
        let expected = net.forward(&tensor, &largest, Mode::Evaluate(&statistics)).unwrap();
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let found = model.network().run(&images, 2).unwrap();
        let size = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(expected.iter().zip(found).all(|(a, b)| (a - b).abs() <= 1e-4 * size), "{expected:?} {found:?}");
    }
    let import = |config: &str, init: &str, words: &[&str]| {
        std::fs::write(folder.join("bad.config"), config).unwrap();
        fails(folder, &["import", init, "--network", "bad.config", "--resolution", "32", "--out", "bad"], words);
        assert!(!folder.join("bad").exists());
    };
    let good = std::fs::read_to_string(folder.join("net.config")).unwrap();
    import("{}", "init", &["bad.config", "describes no published network"]);
    import(&good[..100], "init", &["bad.config", "describes no published network"]);
    import(&good.replace("\"relu\"", "\"swish\""), "init", &["bad.config", "the activation 'swish'"]);
    import(&good.replace("avgpool_conv", "conv"), "init", &["bad.config", "the shortcut 'conv'"]);
    import(&good.replace("\"kernel_size\":3", "\"kernel_size\":4"), "init", &["bad.config", "odd"]);
    import(&good.replace("\"out_features\":10", "\"out_features\":9"), "init", &["init", "classifier", "[9, "]);
    import(&good.replace("\"stride\":1", "\"stride\":0"), "init", &["bad.config", "stride 0"]);
    import(&good, "net.config", &["net.config"]);
}

#[test]
fn the_published_predictor_and_tables_are_searched() {
    let reference = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/official");
    if !reference.exists() {
        eprintln!("skipped: no reference data in {}", reference.display());
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("net.pth"), checkpoint("mbv3-w1.2", 1000)).unwrap();
    succeeds(folder, &["import", "net.pth", "--space", "mbv3-w1.2", "--out", "run"]);
    let file = |name: &str| reference.join(name).to_str().unwrap().to_string();
    succeeds(folder, &["predictor", "--run", "run", "--import", &file("acc_predictor.pth")]);
    let tables = [160, 192, 224].map(|r| file(&format!("note10_{r}_lookup_table.yaml")));
    let mut arguments = vec!["profile", "--run", "run", "--name", "note10", "--import"];
    arguments.extend(tables.iter().map(String::as_str));
    let out = succeeds(folder, &arguments);
    assert!(out.contains("[160, 192, 224]"), "{out}");
    let out = succeeds(
        folder,
        &[
            "search",
            "--run",
            "run",
            "--limit",
            "note10:latency=20ms",
            "--generations",
            "20",
            "--local-search",
            "0",
            "--json",
        ],
    );
    let results: serde_json::Value = serde_json::from_str(&out).unwrap();
    let latency = results[0]["constraints"][0]["value"].as_f64().unwrap();
    assert!(latency <= 20.0 && latency > 15.0, "{out}");
    let best = results[0]["best"].as_str().unwrap();
    assert!(["r160 ", "r192 ", "r224 "].iter().any(|r| best.starts_with(r)), "{best}");
}

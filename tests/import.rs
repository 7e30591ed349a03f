//! `ofa import` through the binary, and every later command on what was imported.

#[path = "../supernet/tests/torch_file/mod.rs"]
mod torch_file;

mod common;

use candle_core::{Device, Tensor};
use common::{fails, finished_run, ofa, succeeds, write_images};
use ofa_evaluate::Model;
use ofa_supernet::import::published;
use ofa_supernet::network::Mode;
use ofa_supernet::space::{BlockSpec, ConvSpec};
use ofa_supernet::{NetworkSpec, SearchSpace, Supernet};
use serde_json::{Value, json};

/// Bytes of a published checkpoint with a new supernet.
fn checkpoint(space: &str, classes: usize) -> Vec<u8> {
    checkpoint_of(&Supernet::new(&SearchSpace::named(space).unwrap(), classes, 3).unwrap())
}

fn checkpoint_of(net: &Supernet) -> Vec<u8> {
    torch_file::zip(&torch_file::entries(&published_tensors(net)))
}

/// The tensors of a supernet as the published files have them.
fn published_tensors(net: &Supernet) -> Vec<torch_file::Named> {
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
    tensors
}

#[test]
fn a_wrapped_checkpoint_is_imported_and_the_chosen_weights_are_named() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let tensors = published_tensors(&Supernet::new(&SearchSpace::named("tiny").unwrap(), 10, 3).unwrap());
    let prefixed: Vec<torch_file::Named> =
        tensors.iter().cloned().map(|(name, s, v)| (format!("module._orig_mod.{name}"), s, v)).collect();
    let sets = [("state_dict_ema", tensors), ("model", prefixed)];
    std::fs::write(folder.join("net.pth"), torch_file::zip(&torch_file::wrapped(&sets))).unwrap();
    let output = ofa(folder, &["import", "net.pth", "--space", "tiny", "--out", "run"]);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    assert_eq!(err.trim(), "net.pth: the weights are those of 'model', not of 'state_dict_ema'");
}

#[test]
fn what_an_attentive_checkpoint_holds_beside_the_supernet_is_skipped_and_told() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let mut tensors = published_tensors(&Supernet::new(&SearchSpace::named("attentive-tiny").unwrap(), 10, 3).unwrap());
    tensors.push(("first_conv.bn.bn_tracking.0.running_mean".into(), vec![2], vec![0.0; 2]));
    tensors.push(("blocks.2.shortcut.conv.conv.weight".into(), vec![24, 24, 1, 1], vec![0.0; 576]));
    std::fs::write(folder.join("net.pth"), torch_file::zip(&torch_file::entries(&tensors))).unwrap();
    let output = ofa(folder, &["import", "net.pth", "--space", "attentive-tiny", "--out", "run"]);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    assert!(err.contains("1 statistics of single subnets") && err.contains("1 convolutions of shortcuts"), "{err}");
    succeeds(
        folder,
        &["extract", "--run", "run", "--subnet", "smallest", "--recalibration", "20", "--data", "builtin"],
    );
    fails(folder, &["import", "net.pth", "--space", "tiny", "--out", "other"], &["net.pth", "--space"]);
}

#[test]
fn a_git_lfs_pointer_is_named_with_the_way_out() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 31\n";
    for (file, command) in [
        ("net.pth", &["import", "net.pth", "--space", "tiny", "--out", "new"][..]),
        ("run/models/smallest/model.safetensors", &["bench", "run/models/smallest"]),
        ("run/predictor/predictor.safetensors", &["search", "--run", "run", "--limit", "any:macs=1M"]),
        ("run/checkpoints/supernet.safetensors", &["predictor", "--run", "run"]),
    ] {
        std::fs::write(folder.join(file), pointer).unwrap();
        fails(folder, command, &[&format!("error: {file}: "), "Git LFS pointer", "git lfs pull"]);
    }
}

#[test]
fn the_note_about_the_epsilon_of_proxyless_spaces_is_one_sentence() {
    let temporary = tempfile::tempdir().unwrap();
    let err =
        fails(temporary.path(), &["import", "none.pth", "--space", "proxyless-w0.5"], &["--batch-norm-epsilon 1e-3"]);
    assert!(!err.contains("  "), "{err}");
}

#[test]
fn an_imported_checkpoint_serves_every_later_command() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("net.pth"), checkpoint("tiny", 10)).unwrap();
    let out = succeeds(folder, &["import", "net.pth", "--space", "tiny", "--out", "run"]);
    assert!(out.contains("10 classes") && out.contains("run/checkpoints/supernet.safetensors"), "{out}");
    assert!(out.ends_with("ofa profile --run run --name this, ofa predictor --run run --data DIR\n"), "{out}");
    succeeds(folder, &["profile", "--run", "run", "--name", "this", "--rounds", "2", "--check", "3"]);
    fails(folder, &["predictor", "--run", "run"], &["without images", "--data"]);
    let sampling = ["--samples", "12", "--recalibration", "50", "--images", "50"];
    succeeds(folder, &[&["predictor", "--run", "run", "--data", "builtin"], &sampling[..]].concat());
    let out = succeeds(folder, &["search", "--run", "run", "--limit", "this:latency=1s", "--generations", "3"]);
    assert!(out.ends_with("Next: ofa extract --run run --search-results --data DIR\n"), "{out}");
    let out = succeeds(
        folder,
        &["extract", "--run", "run", "--search-results", "--data", "builtin", "--recalibration", "100"],
    );
    assert!(out.contains("--data builtin"), "{out}");
    let config = std::fs::read_to_string(folder.join("run/models/this-latency-1s/config.json")).unwrap();
    // The configuration has the data's class names and ImageNet's normalisation.
    assert!(config.contains("0.485") && !config.contains("\"0\""), "{config}");
    succeeds(folder, &["bench", "run/models/this-latency-1s", "--data", "builtin"]);
    // A subnet as the published code writes it.
    let setting = r#"{"ks": [3, 5, 5, 3], "e": 4, "d": [1, 2], "r": [24]}"#;
    let out = succeeds(
        folder,
        &["extract", "--run", "run", "--subnet", setting, "--data", "builtin", "--recalibration", "50"],
    );
    assert!(out.contains("r24 d1,2 k3|5,3 e4|4,4"), "{out}");
    fails(folder, &["train", "--preset", "tiny", "--out", "run"], &["already holds a supernet"]);
}

#[test]
fn a_resnet_checkpoint_is_imported_into_its_own_space_only() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("net.pth"), checkpoint("resnet-tiny", 4)).unwrap();
    succeeds(folder, &["import", "net.pth", "--space", "resnet-tiny", "--out", "imported"]);
    fails(folder, &["import", "net.pth", "--space", "tiny", "--out", "other"], &["first_conv", "space 'tiny'"]);
}

#[test]
fn an_import_that_fails_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("net.pth"), checkpoint("tiny", 10)).unwrap();
    let import = ["import", "net.pth", "--space", "cifar-mbv3", "--out", "other"];
    fails(folder, &import, &["net.pth", "tensor '", "--space"]);
    std::fs::write(folder.join("t.yaml"), "count: 1\n").unwrap();
    fails(folder, &["import", "t.yaml", "--space", "tiny", "--out", "other"], &["t.yaml", "safetensors"]);
    std::fs::write(folder.join("few.pth"), checkpoint("tiny", 3)).unwrap();
    let arguments = ["import", "few.pth", "--space", "tiny", "--out", "other", "--data", "builtin"];
    fails(folder, &arguments, &["few.pth", "3 classes", "has 10"]);
    assert!(!folder.join("other").exists());
}

#[test]
fn an_import_does_not_replace_a_run() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("net.pth"), checkpoint("tiny", 10)).unwrap();
    let import = ["import", "net.pth", "--space", "tiny", "--out", "run"];
    succeeds(folder, &import);
    fails(folder, &import, &["already holds a run"]);
}

#[test]
fn data_of_other_classes_than_the_checkpoint_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("few.pth"), checkpoint("tiny", 3)).unwrap();
    succeeds(folder, &["import", "few.pth", "--space", "tiny", "--resolutions", "16,24", "--out", "few"]);
    fails(folder, &["extract", "--run", "few", "--subnet", "smallest", "--data", "builtin"], &["classes 3 (0, 1, 2)"]);
}

/// A checkpoint of twelve classes that takes every image for class 2.
fn always_two() -> Vec<u8> {
    let net = Supernet::new(&SearchSpace::named("tiny").unwrap(), 12, 3).unwrap();
    let mut state = net.state().unwrap();
    for name in ["classifier.weight", "classifier.bias"] {
        let zeros = state[name].zeros_like().unwrap();
        state.insert(name.into(), zeros);
    }
    let bias: Vec<f32> = (0..12).map(|class| if class == 2 { 5.0 } else { 0.0 }).collect();
    state.insert("classifier.bias".into(), Tensor::new(bias, &Device::Cpu).unwrap());
    net.load_state(&state).unwrap();
    checkpoint_of(&net)
}

/// Twelve classes called `name`(0) to `name`(11) with one test image each, but for class 2, which has nine.
fn twelve_classes(folder: &std::path::Path, name: impl Fn(u32) -> String) {
    for class in 0..12 {
        write_images(&folder.join("train").join(name(class)), 2, 20 * class as u8);
        write_images(&folder.join("val").join(name(class)), 1, 20 * class as u8);
        write_images(&folder.join("test").join(name(class)), if class == 2 { 9 } else { 1 }, 20 * class as u8);
    }
}

#[test]
fn numbered_outputs_meet_the_class_folders_of_their_numbers() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("two.pth"), always_two()).unwrap();
    // As text, 10 and 11 come before 2.
    twelve_classes(&folder.join("plain"), |class| class.to_string());
    twelve_classes(&folder.join("prefix"), |class| format!("class_{class}"));
    twelve_classes(&folder.join("padded"), |class| format!("{class:02}"));
    for data in ["plain", "prefix", "padded"] {
        for (run, with) in [("without", &[][..]), ("with", &["--data", data])] {
            let run = format!("{data}-{run}");
            succeeds(folder, &[&["import", "two.pth", "--space", "tiny", "--out", &run], with].concat());
            let extract = ["extract", "--run", &run, "--subnet", "smallest", "--data", data, "--recalibration", "12"];
            succeeds(folder, &extract);
            let model = format!("{run}/models/smallest");
            let out = succeeds(folder, &["bench", &model, "--data", data, "--json"]);
            let rows: Value = serde_json::from_str(&out).unwrap();
            assert_eq!(rows["models"][0]["accuracy"]["top1"].as_f64().unwrap(), 9.0 / 20.0, "{run}");
            // One of twelve validation images.
            let sampling = ["predictor", "--run", &run, "--data", data, "--samples", "10", "--recalibration", "12"];
            let _ = ofa(folder, &sampling);
            let samples = std::fs::read_to_string(folder.join(&run).join("predictor/samples.jsonl")).unwrap();
            assert!(samples.contains("0.0833"), "{samples}");
        }
    }
}

#[test]
fn class_folders_whose_numbers_may_be_either_order_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("two.pth"), always_two()).unwrap();
    twelve_classes(&folder.join("one"), |class| (class + 1).to_string());
    let both = ["12 (0, 1, 2, 3", "12 (1, 10, 11, 12, 2", "rename"];
    let import = ["import", "two.pth", "--space", "tiny"];
    fails(folder, &[&import[..], &["--data", "one", "--out", "a"]].concat(), &both);
    assert!(!folder.join("a").exists());
    succeeds(folder, &[&import[..], &["--out", "b"]].concat());
    fails(folder, &["extract", "--run", "b", "--subnet", "smallest", "--data", "one"], &both);
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
            "shortcut": json!({"name": if block.residual { "IdentityLayer" } else { "ZeroLayer" }}),
        }),
        BlockSpec::Bottleneck(block) => json!({
            "name": "ResNetBottleneckBlock", "in_channels": block.in_channels, "out_channels": block.out_channels,
            "kernel_size": block.kernel, "stride": block.stride, "mid_channels": block.middle_channels, "groups": 1,
            "expand_ratio": block.middle_channels as f64 / block.out_channels as f64, "act_func": "relu",
            "downsample_mode": "avgpool_conv",
        }),
        other => unreachable!("published networks have no {other}"),
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
    // A block that the search removed.
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
        // Only the supernet has kernel transforms.
        space.kernel_sizes.drain(..space.kernel_sizes.len() - 1);
        let net = Supernet::new(&space, 10, 3).unwrap();
        let largest = space.largest();
        let network = space.network(&largest, 10).unwrap();
        std::fs::write(folder.join("net.config"), description(&network).to_string()).unwrap();
        std::fs::write(folder.join("init"), checkpoint_of(&net)).unwrap();
        let import =
            ["import", "init", "--network", "net.config", "--resolution", "32", "--data", "builtin", "--out", name];
        // The remainder of an import that was killed between its two files.
        std::fs::create_dir(folder.join(name)).unwrap();
        for left in ["model.safetensors", ".config.json.7.tmp"] {
            std::fs::write(folder.join(name).join(left), "x").unwrap();
        }
        let out = succeeds(folder, &import);
        let mut names: Vec<_> =
            std::fs::read_dir(folder.join(name)).unwrap().map(|file| file.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["README.md", "config.json", "graph.json", "load.py", "model.safetensors"]);
        assert!(out.contains("10 classes") && out.contains(&format!("ofa bench {name}")), "{out}");
        succeeds(folder, &["bench", name, "--data", "builtin"]);
        succeeds(folder, &["export", name]);
        let card = std::fs::read_to_string(folder.join(name).join("README.md")).unwrap();
        assert!(
            card.contains("A published network, imported") && folder.join(name).join("model.onnx").exists(),
            "{card}"
        );
        fails(folder, &import, &[name, "already exists"]);

        // The model computes the same as the supernet's largest subnet.
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
    // Without images the classes are numbered, and get the names of the classes that the model is measured on.
    let import = ["import", "init", "--network", "net.config", "--resolution", "32", "--out", "numbered"];
    succeeds(folder, &import);
    let output = ofa(folder, &["bench", "numbered", "--data", "builtin"]);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && err.contains("0 to 9 get the names 'plain' to 'four'"), "{err}");
    write_images(&folder.join("one/test/cat"), 1, 9);
    fails(folder, &["bench", "numbered", "--data", "one"], &["numbered", "10 (0, 1, 2", "1 (cat)"]);

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
#[ignore = "needs the reference data"]
fn the_published_predictor_and_tables_are_searched() {
    let reference = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/official");
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("net.pth"), checkpoint("mbv3-w1.2", 1000)).unwrap();
    succeeds(folder, &["import", "net.pth", "--space", "mbv3-w1.2", "--out", "run"]);
    let file = |name: &str| reference.join(name).to_str().unwrap().to_string();
    std::fs::create_dir(folder.join("run/predictor")).unwrap();
    std::fs::write(folder.join("run/predictor/fit.json"), "the report of another predictor").unwrap();
    succeeds(folder, &["predictor", "--run", "run", "--import", &file("acc_predictor.pth")]);
    assert!(!folder.join("run/predictor/fit.json").exists());
    // The weights that the published predictor was fitted for are not known.
    let output = ofa(folder, &["search", "--run", "run", "--limit", "any:macs=500M", "--generations", "2"]);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !err.contains("warning"), "{err}");
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
    let results = &serde_json::from_str::<serde_json::Value>(&out).unwrap()["results"];
    let latency = results[0]["constraints"][0]["value"].as_f64().unwrap();
    assert!(latency <= 20.0 && latency > 15.0, "{out}");
    let best = results[0]["best"].as_str().unwrap();
    assert!(["r160 ", "r192 ", "r224 "].iter().any(|r| best.starts_with(r)), "{best}");
}

#[test]
fn a_subnet_that_cannot_be_read_is_refused_in_one_line() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let depths = format!("r32 w1 s0 d{} e1", ["4000000000"; 10_000].join(","));
    for (subnet, reason) in [
        (depths.as_str(), "expected the form 'r160 d2,3"),
        ("{'ks': 5, 'e': 4}", "'d', the depths, is missing"),
        ("{'kernels': 5}", "'kernels' is not known; expected {"),
        ("{\"ks\": 5,", "cannot be read from column"),
        ("{'ks': 5, 'e': 4, 'd': [2, 9], 'r': 32}", "'d' asks for 9 blocks in stage 2, which has 2"),
    ] {
        let err = fails(folder, &["extract", "--run", "run", "--subnet", subnet], &["error: subnet: ", reason]);
        assert!(err.lines().count() == 1 && err.len() < 700, "{err}");
    }
}

//! The C library with `examples/classify.c`, against `ofa predict`. The gate builds the library and names its folder in
//! `OFA_C_LIBRARY`.

mod common;

use common::{finished_run, succeeds, write_images};
use std::path::Path;
use std::process::Command;

const MEMCHECK: [&str; 5] =
    ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"];

/// Standard output and standard error of a command that exits with `code`.
#[track_caller]
fn ends(command: &mut Command, code: i32) -> (String, String) {
    let output = command.output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{out}\n{err}");
    (out, err)
}

#[test]
#[ignore = "needs a C compiler and valgrind"]
fn a_c_program_classifies_as_predict_does_and_valgrind_finds_nothing() {
    let library = std::env::var("OFA_C_LIBRARY").expect("OFA_C_LIBRARY names the folder of libofa_c");
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    succeeds(folder, &["quantise", "run/models/largest", "--data", "builtin", "--images", "50"]);
    write_images(folder, 1, 120);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (program, link) in [("dynamic", "-lofa_c"), ("static", "-l:libofa_c.a")] {
        let mut cc = Command::new("cc");
        cc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-o", program, "-I"]).arg(root.join("evaluate/c"));
        cc.arg(root.join("examples/classify.c")).args([
            "-L",
            &library,
            link,
            "-Wl,--gc-sections",
            "-lm",
            "-lpthread",
            "-ldl",
        ]);
        ends(cc.arg(format!("-Wl,-rpath,{library}")).current_dir(folder), 0);
        let classify = |run_with: &[&str], model: &str, image: &str| {
            let mut command = Command::new(run_with[0]);
            command.args(&run_with[1..]).args([&*format!("./{program}"), model, image]).current_dir(folder);
            command
        };
        for model in ["run/models/largest", "run/models/largest-int8"] {
            let json = succeeds(folder, &["predict", model, "0.png", "--json", "--top", "1"]);
            let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
            let best = &rows["images"][0]["classes"][0];
            let expected = (best["class"].as_str().unwrap(), best["probability"].as_f64().unwrap());
            for run_with in [&["env"][..], &MEMCHECK] {
                let (out, err) = ends(&mut classify(run_with, model, "0.png"), 0);
                let (class, probability) = out.trim().rsplit_once(' ').unwrap();
                // Other numbers of threads, and the instructions that valgrind knows, round otherwise.
                let difference = probability.parse::<f64>().unwrap() - expected.1;
                assert!(class == expected.0 && difference.abs() < 1e-4, "{run_with:?} {out}{expected:?}");
                assert_eq!(err, "", "{run_with:?}");
            }
        }
        for (model, image, part) in
            [("absent", "0.png", "absent/config.json"), ("run/models/largest", "no.png", "no.png")]
        {
            let (_, err) = ends(&mut classify(&MEMCHECK, model, image), 1);
            assert!(err.contains(part), "{err}");
        }
    }
}

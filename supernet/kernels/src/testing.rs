//! Helpers of tests: repeatable values, one comparison with a stated tolerance, and random shapes. The tests of
//! `ofa-supernet` that compare kernels with its interpreter compile this file, too.

use super::InstructionSet;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand::{Rng, SeedableRng};

/// `len` values in -1..1, a different sequence for each `stream`.
pub(crate) fn values(len: usize, stream: u64) -> Vec<f32> {
    let mut rng = rand::rngs::StdRng::seed_from_u64(stream);
    (0..len).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// Asserts that `found` is within `tolerance` times the largest expected magnitude (at least 1e-2) of `expected`.
#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_close_above(1e-2, found, expected, tolerance, what);
}

/// Asserts that `found` is within `tolerance` times the largest expected magnitude (at least `least`) of `expected`.
/// `least` is the magnitude of terms that cancel: f32 rounds them, however small their sum is.
#[track_caller]
pub(crate) fn assert_close_above(least: f64, found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(least, |m, v| m.max(v.abs()));
    for (index, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(f) - e).abs();
        assert!(difference <= tolerance * scale, "{what}[{index}]: {f} instead of {e} (scale {scale})");
    }
}

/// Draws the same shapes in each run; a failure names the smallest shape that fails.
pub(crate) fn for_each_of<T: std::fmt::Debug>(cases: u32, shapes: impl Strategy<Value = T>, check: impl Fn(T)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let checked = |shape| {
        check(shape);
        Ok(())
    };
    runner.run(&shapes, checked).unwrap_or_else(|failure| panic!("{failure}"));
}

/// Runs the tests of this program that `filter` selects once per other instruction set that this CPU has, since kernels
/// are compiled for each. Without `dot`, only one of two sets runs that differ in dot products of bytes alone: for
/// kernels that have none.
pub(crate) fn repeat_with_each_instruction_set(filter: &[&str], dot: bool) {
    if std::env::var_os("OFA_ISA").is_some() {
        return; // this is such a run
    }
    let code = |set: InstructionSet| match set.name() {
        name if dot => name,
        name => name.trim_end_matches("-vnni").trim_end_matches("-dot"),
    };
    // The run that this is a test of has the active set.
    let mut done = vec![code(InstructionSet::active())];
    for set in InstructionSet::available() {
        if done.contains(&code(set)) {
            continue;
        }
        done.push(code(set));
        let output = std::process::Command::new(std::env::current_exe().expect("a running program"))
            .args(filter)
            .arg("--test-threads=2")
            .env("OFA_ISA", set.name())
            .output()
            .expect("the program starts again");
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}:\n{out}", set.name());
        assert!(!out.contains(" 0 passed"), "{filter:?} selects no test:\n{out}");
    }
}

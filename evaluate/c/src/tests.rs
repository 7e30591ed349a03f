//! The functions as a C program calls them, with good and with bad arguments.

use super::*;
use ofa_evaluate::StaticNetwork;
use ofa_evaluate::model::{ModelConfig, Normalisation, NumberType, save};
use ofa_evaluate::runtime::random_weights;
use ofa_supernet::SearchSpace;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::thread;

const CLASSES: usize = 3;

/// Writes a model folder, and returns its network.
fn write_model(folder: &Path) -> StaticNetwork {
    let space = SearchSpace::named("tiny").unwrap();
    let network = space.network(&space.largest(), CLASSES).unwrap();
    let weights = random_weights(&network, 1).unwrap();
    let labels = ["cat", "dog", "zero \0 byte"].map(String::from).to_vec();
    let (normalisation, dtype) = (Normalisation { mean: [0.5; 3], std: [0.25; 3] }, NumberType::F32);
    let config = ModelConfig::new(&space.name, &space.largest(), network.clone(), labels, normalisation, dtype);
    save(folder, &config, &weights).unwrap();
    StaticNetwork::new(&network, &weights).unwrap()
}

fn load(folder: &Path, threads: usize) -> Option<Box<OfaModel>> {
    // SAFETY: a string that ends with a zero byte.
    unsafe { ofa_load(text(folder.to_str().unwrap()).as_ptr(), threads) }
}

/// The text of the last error.
fn error() -> String {
    // SAFETY: the text is copied before another call.
    unsafe { CStr::from_ptr(ofa_error()) }.to_str().unwrap().to_string()
}

fn run(model: Option<&OfaModel>, images: &[f32], logits: &mut [f32]) -> c_int {
    // SAFETY: lengths are those of the slices.
    unsafe { ofa_run(model, images.as_ptr(), images.len(), logits.as_mut_ptr(), logits.len()) }
}

fn run_pixels(model: Option<&OfaModel>, pixels: &[u8], (width, height): (usize, usize), logits: &mut [f32]) -> c_int {
    // SAFETY: the tests pass a size that the pixels have, or one that is refused before they are read.
    unsafe { ofa_run_pixels(model, pixels.as_ptr(), width, height, logits.as_mut_ptr(), logits.len()) }
}

fn run_file(model: Option<&OfaModel>, image: &str, logits: &mut [f32]) -> c_int {
    // SAFETY: a string that ends with a zero byte, and the slice's length.
    unsafe { ofa_run_file(model, text(image).as_ptr(), logits.as_mut_ptr(), logits.len()) }
}

#[test]
fn logits_are_those_of_the_network_from_any_thread() {
    let temporary = tempfile::tempdir().unwrap();
    let mut network = write_model(temporary.path());
    let loaded = load(temporary.path(), 2);
    let model = loaded.as_deref();
    assert!(model.is_some(), "{}", error());
    let resolution = ofa_resolution(model);
    assert_eq!((resolution, ofa_class_count(model)), (network.spec().resolution, CLASSES));
    // SAFETY: names end with a zero byte.
    let names = [0, 1, 2].map(|index| unsafe { CStr::from_ptr(ofa_class_name(model, index)) }.to_str().unwrap());
    assert_eq!(names, ["cat", "dog", "zero   byte"]);
    let images: Vec<f32> = (0..2 * resolution * resolution * 3).map(|i| (i % 97) as f32 / 48.0 - 1.0).collect();
    let expected = with_threads(2, || network.run(&images, 2).unwrap().to_vec());
    // Callers that share a model wait for one another. The compiler checks that they may share it.
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let mut logits = [0.0; 2 * CLASSES];
                    assert_eq!(run(model, &images, &mut logits), 0, "{}", error());
                    assert_eq!(logits, *expected);
                }
            });
        }
    });
    let picture = image::RgbImage::from_fn(50, 40, |x, y| image::Rgb([x as u8, 3 * y as u8, (x * y) as u8]));
    let path = temporary.path().join("a.png");
    picture.save(&path).unwrap();
    let input = Model::load(temporary.path()).unwrap().read_image(&path).unwrap();
    let expected = with_threads(2, || network.run(&input, 1).unwrap().to_vec());
    let mut logits = [0.0; CLASSES];
    assert_eq!(run_pixels(model, &picture, (50, 40), &mut logits), 0, "{}", error());
    assert_eq!(logits, *expected);
    // From memory, and as a batch.
    let content = std::fs::read(&path).unwrap();
    let mut batch = vec![0.0; 2 * input.len()];
    let (first, second) = batch.split_at_mut(input.len());
    let (mut again, len) = ([0.0; CLASSES], input.len());
    // SAFETY: lengths are those of the slices.
    unsafe {
        assert_eq!(ofa_run_bytes(model, content.as_ptr(), content.len(), again.as_mut_ptr(), CLASSES), 0);
        assert_eq!(ofa_read_bytes(model, content.as_ptr(), content.len(), first.as_mut_ptr(), len), 0);
        assert_eq!(ofa_read_pixels(model, picture.as_ptr(), 50, 40, second.as_mut_ptr(), len), 0);
        assert_eq!(ofa_read_bytes(model, content.as_ptr(), content.len(), first.as_mut_ptr(), len - 1), -1);
        assert!(error().contains("were expected"), "{}", error());
        assert_eq!(ofa_run_bytes(model, content.as_ptr(), 30, again.as_mut_ptr(), CLASSES), -1);
        assert!(error().contains("the image is"), "{}", error());
        assert_eq!(CStr::from_ptr(ofa_version()).to_str().unwrap(), env!("CARGO_PKG_VERSION"));
    }
    assert_eq!((&again[..], &batch[..len], &batch[len..]), (&expected[..], &input[..], &input[..]));
    let mut both = [0.0; 2 * CLASSES];
    assert_eq!(run(model, &batch, &mut both), 0, "{}", error());
    logits.fill(0.0);
    assert_eq!(run_file(model, path.to_str().unwrap(), &mut logits), 0, "{}", error());
    assert_eq!(logits, *expected);
    ofa_free(loaded);
    ofa_free(None);
}

#[test]
fn bad_arguments_are_refused_with_a_text() {
    let temporary = tempfile::tempdir().unwrap();
    let refused = |failed: bool, part: &str| assert!(failed && error().contains(part), "{part}: {}", error());
    refused(load(&temporary.path().join("absent"), 1).is_none(), "absent");
    write_model(temporary.path());
    refused(load(temporary.path(), 0).is_none(), "0 threads");
    refused(load(temporary.path(), usize::MAX).is_none(), "threads");
    // SAFETY: NULL is refused, and the other string ends with a zero byte.
    unsafe {
        refused(ofa_load(null(), 1).is_none(), "NULL");
        refused(ofa_load(c"\xff".as_ptr(), 1).is_none(), "UTF-8");
    }
    refused(ofa_resolution(None) == 0, "the model is NULL");
    let loaded = load(temporary.path(), 1);
    let model = loaded.as_deref();
    refused(ofa_class_name(model, CLASSES).is_null(), "no class 3");
    let resolution = ofa_resolution(model);
    let mut images = vec![0.5; resolution * resolution * 3];
    let mut logits = [7.0; CLASSES];
    refused(run(None, &images, &mut logits) == -1, "the model is NULL");
    refused(run(model, &images[1..], &mut logits) == -1, "were expected");
    refused(run(model, &[], &mut []) == -1, "were expected");
    refused(run(model, &images, &mut logits[1..]) == -1, "room for 2 logits");
    let (input, len, output) = (images.as_ptr(), images.len(), logits.as_mut_ptr());
    // SAFETY: pointers are NULL, not aligned, or have a length that no memory has, and therefore are not read.
    unsafe {
        refused(ofa_run(model, null(), len, output, CLASSES) == -1, "images is NULL");
        refused(ofa_run(model, input.byte_add(1), len - 1, output, CLASSES) == -1, "not aligned");
        refused(ofa_run(model, input, usize::MAX, output, CLASSES) == -1, "no memory");
        refused(ofa_run(model, input, len, null_mut(), CLASSES) == -1, "logits is NULL");
        refused(ofa_run_pixels(model, null(), 5, 5, output, CLASSES) == -1, "pixels is NULL");
        refused(ofa_run_file(model, null(), output, CLASSES) == -1, "the path of the image is NULL");
        refused(ofa_run_file(model, c"\xff".as_ptr(), output, CLASSES) == -1, "the image is not UTF-8");
    }
    refused(run_pixels(model, &[0; 12], (usize::MAX, 2), &mut logits) == -1, "no memory");
    refused(run_pixels(model, &[0; 12], (0, 2), &mut logits) == -1, "0x2");
    refused(run_file(None, "a.png", &mut logits) == -1, "the model is NULL");
    refused(run_file(model, "absent.png", &mut logits) == -1, "absent.png");
    images[4] = f32::NAN;
    refused(run(model, &images, &mut logits) == -1, "value 4 of the images is NaN");
    assert_eq!(logits, [7.0; CLASSES]);
    let other = thread::spawn(error).join().unwrap();
    assert_eq!(other, "", "errors belong to their thread");
    ofa_free(loaded);
}

#[test]
fn a_panic_becomes_an_error_text_and_a_model_that_it_left_is_not_used() {
    assert_eq!(answer(-1, || panic!("number {}", 5)), -1);
    assert_eq!(error(), "internal error: number 5");
    let temporary = tempfile::tempdir().unwrap();
    write_model(temporary.path());
    let model = OfaModel::load(temporary.path().to_str().unwrap(), 1).unwrap();
    let mut logits = [MaybeUninit::uninit(); CLASSES];
    let mut run = |call: fn() -> (Vec<f32>, usize)| answer(-1, || model.run(&mut logits, |_| Ok(call())));
    assert_eq!(run(|| panic!("while it runs")), -1);
    assert!(error().contains("while it runs"), "{}", error());
    assert_eq!(run(|| (Vec::new(), 1)), -1);
    assert!(error().contains("load the model again"), "{}", error());
}

#[test]
fn the_header_declares_every_function() {
    let functions = include_str!("lib.rs").lines().filter_map(|line| line.split_once("extern \"C\" fn "));
    let names: Vec<&str> = functions.filter_map(|(_, rest)| Some(rest.split_once('(')?.0)).collect();
    assert!(names.contains(&"ofa_run_file"), "{names:?}");
    let header = include_str!("../ofa.h");
    assert!(names.iter().all(|name| header.contains(&format!("{name}("))), "{names:?}");
}

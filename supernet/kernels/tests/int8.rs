//! Kernels of 8-bit networks against plain integer sums, on odd shapes; results have to be equal.

use ofa_kernels::inference::int8::{
    self, Affine, DenseConv, Depthwise, Gate, Int8Weights, OrderedConv, Pointwise, Target, average_pool,
    average_windows, dequantise, max_pool, quantise,
};
use ofa_kernels::{Activation, InstructionSet};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[path = "../src/testing.rs"]
#[allow(dead_code)] // the file serves several tests
mod testing;

const ACTIVATIONS: [Activation; 5] =
    [Activation::Identity, Activation::Relu, Activation::Relu6, Activation::HardSwish, Activation::Swish];

/// Numbers of a layer and its input.
struct Case {
    x: Vec<u8>,
    from: Affine,
    weight: Vec<i8>,
    bias: Vec<i32>,
    multipliers: Vec<f32>,
    to: Affine,
}

impl Case {
    fn new(rng: &mut impl Rng, inputs: usize, outputs: usize, per_output: usize) -> Self {
        let affine = |rng: &mut _, scale: f32| Affine { scale, zero_point: Rng::random(rng) };
        let from = affine(rng, 0.013);
        Case {
            x: (0..inputs).map(|_| rng.random()).collect(),
            from,
            weight: (0..outputs * per_output).map(|_| rng.random_range(-128..=127)).collect(),
            bias: (0..outputs).map(|_| rng.random_range(-5000..5000)).collect(),
            multipliers: (0..outputs).map(|_| rng.random_range(1e-5..4e-4) / (per_output as f32).sqrt()).collect(),
            // Some of these bytes end below 6, some above.
            to: affine(rng, 0.031),
        }
    }

    fn weights(&self) -> Int8Weights<'_> {
        let Case { weight, bias, multipliers, from, .. } = self;
        Int8Weights { weight, bias, multipliers, zero_point: from.zero_point }
    }
}

fn rng(position: u64) -> impl Rng {
    StdRng::seed_from_u64(position)
}

fn round(value: f32, to: Affine) -> u8 {
    let rounded = (value * (1.0 / to.scale)).round_ties_even() + f32::from(to.zero_point);
    rounded.clamp(0.0, 255.0) as u8
}

fn number(byte: u8, affine: Affine) -> f32 {
    (i32::from(byte) - i32::from(affine.zero_point)) as f32 * affine.scale
}

/// Swish as the kernels define it, with the products and sums that they have.
fn activate(activation: Activation, x: f32) -> f32 {
    if activation != Activation::Swish {
        return activation.apply(x);
    }
    const ABOVE: [f32; 5] = [1.304_183_1e-11, 8.050_477e-8, 5.461_870_4e-5, 8.363_146e-3, 2.5e-1];
    const BELOW: [f32; 5] = [3.037_747_2e-9, 5.133_826_6e-6, 1.617_313_6e-3, 1.167_858_8e-1, 1.0];
    let inside = x.clamp(-18.0, 18.0);
    let polynomial = |terms: [f32; 5]| terms.into_iter().reduce(|sum, term| sum * (inside * inside) + term).unwrap();
    let sigmoid = inside * polynomial(ABOVE) / polynomial(BELOW) + 0.5;
    if x > -18.0 { x * sigmoid } else { 0.0 }
}

/// Sums of a convolution `[batch, out_height, out_width, out]`; depthwise where `groups` is not 1.
fn sums(
    case: &Case,
    batch: usize,
    (height, width): (usize, usize),
    kernel: usize,
    stride: usize,
    groups: usize,
) -> Vec<i32> {
    let out = case.bias.len();
    let inputs = case.weight.len() / out / (kernel * kernel);
    let channels = inputs * groups;
    let mut sums = Vec::new();
    for (image, y, x, o) in positions(batch, height.div_ceil(stride), width.div_ceil(stride), out) {
        let mut sum = case.bias[o];
        for (tap, input) in (0..kernel * kernel).flat_map(|tap| (0..inputs).map(move |input| (tap, input))) {
            let row = (y * stride + tap / kernel).checked_sub(kernel / 2).filter(|&row| row < height);
            let column = (x * stride + tap % kernel).checked_sub(kernel / 2).filter(|&column| column < width);
            if let Some((row, column)) = row.zip(column) {
                let channel = if groups == 1 { input } else { o };
                let byte = case.x[((image * height + row) * width + column) * channels + channel];
                let weight = case.weight[(o * inputs + input) * kernel * kernel + tap];
                sum += (i32::from(byte) - i32::from(case.from.zero_point)) * i32::from(weight);
            }
        }
        sums.push(sum);
    }
    sums
}

fn positions(batch: usize, height: usize, width: usize, channels: usize) -> Vec<(usize, usize, usize, usize)> {
    let all = 0..batch * height * width * channels;
    all.map(|i| (i / (height * width * channels), i / (width * channels) % height, i / channels % width, i % channels))
        .collect()
}

/// Runs a layer with several numbers of threads, to bytes and to floats, and compares with the values of `expected`.
#[track_caller]
fn check(case: &Case, expected: &[f32], what: &str, run: impl Fn(Target) + Sync) {
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (mut bytes, mut floats) = (vec![0; expected.len()], vec![0.0; expected.len()]);
            run(Target::Bytes(&mut bytes, case.to));
            run(Target::Floats(&mut floats));
            assert_eq!(floats, expected, "{what}, {threads} threads");
            let rounded: Vec<u8> = expected.iter().map(|&value| round(value, case.to)).collect();
            assert_eq!(bytes, rounded, "{what}, {threads} threads");
        });
    }
}

/// Values after the activation.
fn finished(case: &Case, sums: &[i32], activation: Activation, residual: Option<(&[u8], Affine)>) -> Vec<f32> {
    let value = |(place, &sum): (usize, &i32)| {
        let value = sum as f32 * case.multipliers[place % case.multipliers.len()];
        let value = residual.map_or(value, |(bytes, affine)| value + number(bytes[place], affine));
        activate(activation, value)
    };
    sums.iter().enumerate().map(value).collect()
}

#[test]
fn products_are_exact() {
    let shapes = [
        (1, 1, 1, 1),
        (3, 5, 7, 13),
        (1, 49, 16, 24),
        (1, 97, 40, 61),
        (3, 17, 23, 50),
        (1, 33, 8, 100),
        (2, 1, 130, 10),
        // Rows that are long enough for smaller blocks of them.
        (1, 61, 301, 24),
        (1, 61, 1100, 20),
    ];
    for (index, (batch, pixels, inputs, outputs)) in shapes.into_iter().enumerate() {
        let mut rng = rng(index as u64);
        let case = Case::new(&mut rng, batch * pixels * inputs, outputs, inputs);
        let layer = Pointwise::new(case.weights(), inputs);
        let sums = sums(&case, batch, (pixels, 1), 1, 1, 1);
        let residual: Vec<u8> = (0..sums.len()).map(|_| rng.random()).collect();
        let with = Affine { scale: 0.017, zero_point: 119 };
        for activation in ACTIVATIONS {
            for residual in [None, Some((&residual[..], with))] {
                let expected = finished(&case, &sums, activation, residual);
                check(&case, &expected, &format!("{activation} of {inputs} to {outputs}"), |target| {
                    layer.run(&case.x, batch, pixels, activation, None, residual, target);
                });
            }
        }
    }
}

#[test]
fn extreme_bytes_do_not_saturate() {
    let mut case = Case::new(&mut rng(50), 9 * 68, 33, 68);
    case.x.fill(255);
    case.from.zero_point = 0;
    for weight in [-127, 127] {
        case.weight.fill(weight);
        let layer = Pointwise::new(case.weights(), 68);
        let expected = finished(&case, &sums(&case, 1, (9, 1), 1, 1, 1), Activation::Identity, None);
        check(&case, &expected, "extremes", |target| {
            layer.run(&case.x, 1, 9, Activation::Identity, None, None, target)
        });
        let mut case =
            Case { x: vec![255; 33 * 25], weight: vec![weight; 33 * 25], ..Case::new(&mut rng(51), 0, 33, 0) };
        case.from.zero_point = 0;
        let layer = Depthwise::new(case.weights(), 5, 1);
        let expected = finished(&case, &sums(&case, 1, (5, 5), 5, 1, 33), Activation::Identity, None);
        check(&case, &expected, "extremes", |target| layer.run(&case.x, 1, 5, 5, Activation::Identity, target));
    }
}

#[test]
fn numbers_beyond_all_integers_have_the_outermost_bytes() {
    let mut case = Case::new(&mut rng(60), 9 * 24, 40, 24);
    for (number, multiplier) in case.multipliers.iter_mut().enumerate() {
        *multiplier = if number % 2 == 0 { 1e9 } else { 1e30 };
    }
    let layer = Pointwise::new(case.weights(), 24);
    let sums = sums(&case, 1, (9, 1), 1, 1, 1);
    for activation in ACTIVATIONS {
        let expected = finished(&case, &sums, activation, None);
        check(&case, &expected, &format!("{activation} of large numbers"), |target| {
            layer.run(&case.x, 1, 9, activation, None, None, target);
        });
    }
}

#[test]
fn gated_maps_are_rounded_before_the_product() {
    for (index, (batch, pixels, inputs, outputs)) in
        [(1, 5, 7, 3), (3, 7, 24, 17), (2, 60, 33, 8), (1, 61, 301, 24)].into_iter().enumerate()
    {
        let mut rng = rng(100 + index as u64);
        let mut case = Case::new(&mut rng, batch * pixels * inputs, outputs, inputs);
        let factors: Vec<f32> = (0..batch * inputs).map(|_| rng.random_range(0.0..1.0)).collect();
        let gate = Gate { factors: &factors, from: Affine { scale: 0.03, zero_point: 9 }, to: case.from };
        let layer = Pointwise::new(case.weights(), inputs);
        let map = case.x.clone();
        for (place, (x, &byte)) in case.x.iter_mut().zip(&map).enumerate() {
            let factor = gate.from.scale * factors[place / (pixels * inputs) * inputs + place % inputs];
            *x = round((i32::from(byte) - i32::from(gate.from.zero_point)) as f32 * factor, gate.to);
        }
        let product = |(place, &byte): (usize, &u8)| {
            let factor = gate.from.scale * factors[place / (pixels * inputs) * inputs + place % inputs];
            (i32::from(byte) - i32::from(gate.from.zero_point)) as f32 * factor
        };
        let products: Vec<f32> = map.iter().enumerate().map(product).collect();
        let mut floats = vec![0.0; map.len()];
        int8::gate(&map, gate.from, &factors, (pixels, inputs), Target::Floats(&mut floats));
        assert_eq!(floats, products);
        let mut bytes = vec![0; map.len()];
        int8::gate(&map, gate.from, &factors, (pixels, inputs), Target::Bytes(&mut bytes, gate.to));
        assert_eq!(bytes, case.x);
        let expected = finished(&case, &sums(&case, batch, (pixels, 1), 1, 1, 1), Activation::Relu, None);
        check(&case, &expected, "gated", |target| {
            layer.run(&map, batch, pixels, Activation::Relu, Some(gate), None, target);
        });
    }
}

#[test]
fn convolutions_are_exact_on_odd_maps() {
    // The last one is computed in bands and strips, and threads begin inside it; all kernels would take long there.
    let maps = [
        (1, 1, 1, 1),
        (1, 7, 7, 16),
        (1, 3, 2, 9),
        (3, 5, 3, 13),
        (1, 9, 11, 24),
        (3, 2, 17, 37),
        (1, 12, 8, 48),
        (1, 60, 60, 64),
    ];
    for (index, (batch, height, width, channels)) in maps.into_iter().enumerate() {
        for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2), (1, 2), (2, 1), (2, 2)] {
            if height * width > 1000 && !matches!((kernel, stride), (3, 1) | (5, 2)) {
                continue;
            }
            let activation = ACTIVATIONS[(index + kernel / 2 + stride) % 5];
            let rng = &mut rng((200 + index * 100 + kernel * 10 + stride) as u64);
            let inputs = batch * height * width * channels;
            let what = format!("{kernel}x{kernel} stride {stride} on {batch}x{height}x{width}x{channels}");
            if Depthwise::supports(kernel, stride) {
                let case = Case::new(rng, inputs, channels, kernel * kernel);
                let layer = Depthwise::new(case.weights(), kernel, stride);
                let exact = sums(&case, batch, (height, width), kernel, stride, channels);
                check(&case, &finished(&case, &exact, activation, None), &format!("depthwise {what}"), |target| {
                    layer.run(&case.x, batch, height, width, activation, target);
                });
            }
            let case = Case::new(rng, inputs, 11, channels * kernel * kernel);
            let layer = DenseConv::new(case.weights(), channels, kernel, stride);
            let exact = sums(&case, batch, (height, width), kernel, stride, 1);
            check(&case, &finished(&case, &exact, activation, None), &format!("dense {what}"), |target| {
                layer.run(&case.x, batch, height, width, activation, target);
            });
        }
    }
}

#[test]
fn f32_layers_sum_in_order() {
    for (index, (kernel, stride, depthwise)) in
        [(1, 1, false), (3, 2, false), (3, 1, true), (5, 2, true)].into_iter().enumerate()
    {
        let rng = &mut rng(900 + index as u64);
        let (batch, height, width, inputs) = (2, 7, 5, 19);
        let outputs = if depthwise { inputs } else { 10 };
        let per_output = if depthwise { 1 } else { inputs };
        let mut values = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let x = values(batch * height * width * inputs);
        let weight = values(outputs * per_output * kernel * kernel);
        let bias = values(outputs);
        let mut expected = Vec::new();
        for (image, y, column, o) in positions(batch, height.div_ceil(stride), width.div_ceil(stride), outputs) {
            let mut sum = bias[o];
            for tap in 0..kernel * kernel {
                let (row, column) = (y * stride + tap / kernel, column * stride + tap % kernel);
                let inside = |place: usize, length: usize| (kernel / 2..length + kernel / 2).contains(&place);
                if !inside(row, height) || !inside(column, width) {
                    continue;
                }
                let pixel = (image * height + row - kernel / 2) * width + column - kernel / 2;
                for input in 0..per_output {
                    let channel = if depthwise { o } else { input };
                    sum += weight[(o * per_output + input) * kernel * kernel + tap] * x[pixel * inputs + channel];
                }
            }
            expected.push(Activation::HardSwish.apply(sum));
        }
        let layer = OrderedConv::new(&weight, &bias, inputs, kernel, stride, depthwise);
        let mut output = vec![0.0; expected.len()];
        layer.run(&x, batch, height, width, Activation::HardSwish, &mut output);
        assert_eq!(output, expected, "{kernel}x{kernel}, stride {stride}, depthwise {depthwise}");
    }
}

#[test]
fn averages_and_conversions_are_those_of_the_integers() {
    let affine = Affine { scale: 0.037, zero_point: 77 };
    let mut rng = rng(1000);
    for (batch, height, width, channels) in [(1, 1, 1, 1), (3, 5, 7, 13), (2, 7, 3, 40)] {
        let x: Vec<u8> = (0..batch * height * width * channels).map(|_| rng.random()).collect();
        let centred = |place: usize| i32::from(x[place]) - 77;
        let mut means = vec![0.0; batch * channels];
        average_pool(&x, affine, height * width, channels, &mut means);
        for (place, mean) in means.iter().enumerate() {
            let first = place / channels * height * width * channels + place % channels;
            let sum: i32 = (0..height * width).map(|pixel| centred(first + pixel * channels)).sum();
            assert_eq!(*mean, sum as f32 * (affine.scale / (height * width) as f32));
        }
        // Windows of 2 with padding 1: the first row and column hold one row and column of pixels, and count two.
        let (rows, columns) = ((height + 1).div_ceil(2), (width + 1).div_ceil(2));
        let mut windows = vec![0.0; batch * rows * columns * channels];
        average_windows(&x, affine, (height, width, channels), 2, 1, &mut windows);
        for ((image, row, column, channel), mean) in positions(batch, rows, columns, channels).into_iter().zip(&windows)
        {
            let inside = |start: usize, length: usize| (2 * start).saturating_sub(1)..(2 * start + 1).min(length);
            let count = |start: usize, length: usize| 2.min(length + 1 - 2 * start);
            let places = inside(row, height).flat_map(|y| inside(column, width).map(move |x| (y, x)));
            let sum: i32 = places.map(|(y, x)| centred(((image * height + y) * width + x) * channels + channel)).sum();
            assert_eq!(*mean, sum as f32 * (affine.scale / (count(row, height) * count(column, width)) as f32));
        }
        let (rows, columns) = (height.div_ceil(2), width.div_ceil(2));
        let mut largest = vec![0; batch * rows * columns * channels];
        max_pool(&x, height, width, channels, &mut largest);
        for ((image, row, column, channel), &found) in
            positions(batch, rows, columns, channels).into_iter().zip(&largest)
        {
            let inside = |start: usize, length: usize| (2 * start).saturating_sub(1)..(2 * start + 2).min(length);
            let places = inside(row, height).flat_map(|y| inside(column, width).map(move |x| (y, x)));
            let bytes = places.map(|(y, column)| x[((image * height + y) * width + column) * channels + channel]);
            assert_eq!(Some(found), bytes.max());
        }
        let mut numbers = vec![0.0; x.len()];
        dequantise(&x, affine, &mut numbers);
        assert!(numbers.iter().zip(&x).all(|(&found, &byte)| found == number(byte, affine)));
        let mut bytes = vec![0; x.len()];
        quantise(&numbers, affine, &mut bytes);
        assert_eq!(bytes, x);
    }
    let ties = [0.5, 1.5, -0.5, -76.5, -1e30, 1e30, f32::INFINITY, f32::NEG_INFINITY];
    let mut bytes = [0; 8];
    quantise(&ties, Affine { scale: 1.0, zero_point: 77 }, &mut bytes);
    assert_eq!(bytes, [77, 79, 77, 1, 0, 255, 255, 0]);
}

#[test]
fn every_instruction_set_passes_the_same_tests() {
    testing::repeat_with_each_instruction_set(&[], true);
}

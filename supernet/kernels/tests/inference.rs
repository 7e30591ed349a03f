//! Layers of inference against their definitions, at random shapes, such as one image, prime numbers of channels, maps
//! of one pixel, stride 2 on odd maps.

use ofa_kernels::inference::{DenseConv, Depthwise, Pointwise, max_pool};
use ofa_kernels::{Activation, InstructionSet, with_threads};
use proptest::prelude::*;
use testing::{assert_close, for_each_of, repeat_with_each_instruction_set, values};

#[path = "../src/testing.rs"]
#[allow(dead_code)] // the file serves several tests
mod testing;

fn any_activation() -> impl Strategy<Value = Activation> {
    use Activation::{HardSwish, Identity, Relu, Relu6};
    prop_oneof![Just(Relu), Just(Relu6), Just(Identity), Just(HardSwish)]
}

/// Batch, height and width.
fn maps() -> impl Strategy<Value = [usize; 3]> {
    [1..=4usize, 1..=9usize, 1..=9usize]
}

fn odd_kernel() -> impl Strategy<Value = usize> {
    (0..=3usize).prop_map(|half| 2 * half + 1)
}

/// A convolution of `[batch, height, width, inputs]` by definition; `weight(out, in, tap)`.
fn convolution(
    x: &[f32],
    [batch, height, width]: [usize; 3],
    (inputs, outputs): (usize, usize),
    (kernel, stride): (usize, usize),
    weight: impl Fn(usize, usize, usize) -> f64,
) -> Vec<f64> {
    let mut result = Vec::new();
    for image in 0..batch {
        for (top, left) in (0..height).step_by(stride).flat_map(|y| (0..width).step_by(stride).map(move |x| (y, x))) {
            for out in 0..outputs {
                let mut sum = 0.0;
                for tap in 0..kernel * kernel {
                    let (y, column) = (top + tap / kernel, left + tap % kernel);
                    let (Some(y), Some(column)) = (y.checked_sub(kernel / 2), column.checked_sub(kernel / 2)) else {
                        continue;
                    };
                    if y < height && column < width {
                        let pixel = ((image * height + y) * width + column) * inputs;
                        sum += (0..inputs).map(|i| weight(out, i, tap) * f64::from(x[pixel + i])).sum::<f64>();
                    }
                }
                result.push(sum);
            }
        }
    }
    result
}

/// `activation(v + bias)` of each channel's values.
fn activated(v: &[f64], bias: &[f32], activation: Activation) -> Vec<f64> {
    let bias = bias.iter().cycle();
    v.iter().zip(bias).map(|(v, &b)| f64::from(activation.apply((v + f64::from(b)) as f32))).collect()
}

#[test]
fn inference_layers_of_any_shape_equal_their_definitions() {
    let shapes = (maps(), (1..=33usize, 1..=40usize), odd_kernel(), 1..=2usize, any_activation());
    for_each_of(80, shapes, |(maps, (inputs, outputs), kernel, stride, activation)| {
        let [batch, height, width] = maps;
        let taps = kernel * kernel;
        let pixels = height.div_ceil(stride) * width.div_ceil(stride);
        let x = values(batch * height * width * inputs, 1);

        let (weight, bias) = (values(outputs * inputs * taps, 2), values(outputs, 3));
        let of = |out: usize, i: usize, tap: usize| f64::from(weight[(out * inputs + i) * taps + tap]);
        let mut found = vec![7.0; batch * pixels * outputs];
        DenseConv::new(&weight, &bias, inputs, outputs, kernel, stride)
            .run(&x, batch, height, width, activation, &mut found);
        let expected = convolution(&x, maps, (inputs, outputs), (kernel, stride), of);
        assert_close(&found, &activated(&expected, &bias, activation), 1e-4, "dense");

        let (weight, bias) = (values(inputs * taps, 4), values(inputs, 5));
        let of = |out: usize, i: usize, tap: usize| if out == i { f64::from(weight[i * taps + tap]) } else { 0.0 };
        let (mut found, mut pooled) = (vec![7.0; batch * pixels * inputs], vec![7.0; batch * inputs]);
        Depthwise::new(&weight, &bias, inputs, kernel, stride).run(
            &x,
            None,
            batch,
            height,
            width,
            activation,
            &mut found,
            Some(&mut pooled),
        );
        let expected = activated(&convolution(&x, maps, (inputs, inputs), (kernel, stride), of), &bias, activation);
        assert_close(&found, &expected, 1e-4, "depthwise");
        let mean = |index: usize| {
            let image = &expected[index / inputs * pixels * inputs..][..pixels * inputs];
            image.iter().skip(index % inputs).step_by(inputs).sum::<f64>() / pixels as f64
        };
        assert_close(&pooled, &(0..batch * inputs).map(mean).collect::<Vec<_>>(), 1e-4, "pooled");

        let (expand, own) = (values(inputs * outputs, 6), values(outputs, 7));
        let (weight, bias) = (values(outputs * taps, 4), values(outputs, 5));
        let of = |out: usize, i: usize, _: usize| f64::from(expand[out * inputs + i]);
        let map = activated(&convolution(&x, maps, (inputs, outputs), (1, 1), of), &own, activation);
        let map: Vec<f32> = map.into_iter().map(|value| value as f32).collect();
        let of = |out: usize, i: usize, tap: usize| if out == i { f64::from(weight[i * taps + tap]) } else { 0.0 };
        let expected = convolution(&map, maps, (outputs, outputs), (kernel, stride), of);
        let (mut found, layer) = (vec![7.0; expected.len()], Depthwise::new(&weight, &bias, outputs, kernel, stride));
        let expand = Pointwise::new(&expand, &own, inputs, outputs);
        layer.run(&x, Some((&expand, activation)), batch, height, width, activation, &mut found, None);
        assert_close(&found, &activated(&expected, &bias, activation), 1e-4, "expanded depthwise");

        let (weight, bias) = (values(outputs * inputs, 6), values(outputs, 7));
        let (gate, residual) = (values(batch * inputs, 8), values(batch * height * width * outputs, 9));
        let gated: Vec<f32> =
            x.iter().enumerate().map(|(i, v)| v * gate[i / (height * width * inputs) * inputs + i % inputs]).collect();
        let of = |out: usize, i: usize, _: usize| f64::from(weight[out * inputs + i]);
        let mut found = vec![7.0; residual.len()];
        let layer = Pointwise::new(&weight, &bias, inputs, outputs);
        layer.run(&x, batch, height * width, activation, Some(&gate), Some(&residual), &mut found);
        let mut expected = convolution(&gated, maps, (inputs, outputs), (1, 1), of);
        expected.iter_mut().zip(&residual).for_each(|(v, r)| *v += f64::from(*r));
        assert_close(&found, &activated(&expected, &bias, activation), 1e-4, "pointwise");
    });
}

#[test]
#[should_panic(expected = "stride")]
fn a_stride_that_no_kernel_is_made_for_is_refused() {
    let layer = Depthwise::new(&[1.0; 9], &[0.0], 1, 3, 3);
    layer.run(&[0.0; 36], None, 1, 6, 6, Activation::Identity, &mut [0.0; 4], None);
}

#[test]
fn large_maps_are_convolved_in_strips() {
    let (height, width, inputs, outputs) = (39, 60, 64, 5);
    let values = |len: usize, step: usize| -> Vec<f32> { (0..len).map(|i| (i * step % 17) as f32 - 8.0).collect() };
    let (x, weight, bias) = (values(height * width * inputs, 7), values(outputs * inputs * 9, 5), values(outputs, 3));
    let layer = DenseConv::new(&weight, &bias, inputs, outputs, 3, 1);
    for threads in [1, 3] {
        let mut found = vec![0.0; height * width * outputs];
        with_threads(threads, || layer.run(&x, 1, height, width, Activation::Identity, &mut found));
        for (place, found) in found.into_iter().enumerate() {
            let (y, column, o) = (place / outputs / width, place / outputs % width, place % outputs);
            let mut sum = bias[o];
            for (tap, input) in (0..9).flat_map(|tap| (0..inputs).map(move |input| (tap, input))) {
                let (y, column) = ((y + tap / 3).wrapping_sub(1), (column + tap % 3).wrapping_sub(1));
                if y < height && column < width {
                    sum += x[(y * width + column) * inputs + input] * weight[(o * inputs + input) * 9 + tap];
                }
            }
            // Sums of small integers are exact.
            assert_eq!(found, sum, "{threads} threads, output {o} at {y}, {column}");
        }
    }
}

#[test]
fn numbers_have_their_largest_and_nan_only_where_there_is_nothing_else() {
    for (batch, height, width, channels) in
        [(1, 1, 1, 1), (2, 5, 7, 13), (3, 8, 6, 16), (1, 3, 40, 33), (1, 70, 90, 32)]
    {
        let value = |i: usize| if i.is_multiple_of(5) { f32::NAN } else { -((i * 37 % 101) as f32) };
        let x: Vec<f32> = (0..batch * height * width * channels).map(value).collect();
        let (rows, columns) = (height.div_ceil(2), width.div_ceil(2));
        let mut found = vec![0.0; batch * rows * columns * channels];
        max_pool(&x, height, width, channels, &mut found);
        for (place, found) in found.into_iter().enumerate() {
            let (pixel, channel) = (place / channels, place % channels);
            let (image, y, column) = (pixel / (rows * columns), pixel / columns % rows, pixel % columns);
            let inside = |start: usize, length: usize| (2 * start).saturating_sub(1)..(2 * start + 2).min(length);
            let places = inside(y, height).flat_map(|y| inside(column, width).map(move |x| (y, x)));
            let values = places.map(|(y, column)| x[((image * height + y) * width + column) * channels + channel]);
            let expected = values.fold(f32::NAN, f32::max);
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{found} is not {expected}");
        }
    }
}

#[test]
fn every_instruction_set_passes_the_same_tests() {
    repeat_with_each_instruction_set(&[], false);
}

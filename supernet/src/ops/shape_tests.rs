//! Property tests: kernels against f64 references at random shapes, such as one image, prime numbers of channels, maps
//! of one pixel, stride 2 on odd maps. `tests` runs them with every instruction set of this CPU.

use super::inference::{DenseConv, Depthwise, Pointwise};
use super::matmul::{Packed, accumulate_transposed, multiply, multiply_add};
use super::simd::InstructionSet;
use super::testing::{assert_close, interpreted_dense, values};
use super::tests::{
    Found, check_block, evaluate, f32s, fused_average_pool, fused_dense, fused_max_pool, parameters, statistics,
};
use super::*;
use crate::graph::interpreter;
use crate::ops::Activation;
use candle_core::Tensor;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Draws the same shapes in each run; a failure names the smallest shape that fails.
fn for_each_of<T: std::fmt::Debug>(cases: u32, shapes: impl Strategy<Value = T>, check: impl Fn(T)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let checked = |shape| {
        check(shape);
        Ok(())
    };
    runner.run(&shapes, checked).unwrap_or_else(|failure| panic!("{failure}"));
}

/// Activations that are smooth where the values lie: at a kink, rounding would decide the slope.
fn smooth() -> impl Strategy<Value = Activation> {
    prop_oneof![Just(Activation::Identity), Just(Activation::HardSwish)]
}

fn any_activation() -> impl Strategy<Value = Activation> {
    prop_oneof![Just(Activation::Relu), Just(Activation::Relu6), smooth()]
}

/// Batch, height and width.
fn maps() -> impl Strategy<Value = [usize; 3]> {
    [1..=4usize, 1..=9usize, 1..=9usize]
}

fn odd_kernel() -> impl Strategy<Value = usize> {
    (0..=3usize).prop_map(|half| 2 * half + 1)
}

#[test]
fn blocks_of_any_shape_equal_the_reference() {
    let channels = (1..=40usize, 1..=6usize, 1..=37usize);
    let options = (any::<bool>(), any::<bool>(), proptest::option::of(1..=6usize));
    let shapes = (maps(), channels, odd_kernel(), 1..=2usize, smooth(), options);
    for_each_of(60, shapes, |(maps, (inputs, ratio, outputs), kernel, stride, activation, (expand, residual, se))| {
        let residual = residual && stride == 1;
        let shape = BlockShape {
            batch: maps[0],
            height: maps[1],
            width: maps[2],
            in_channels: inputs,
            middle: if expand { inputs * ratio } else { inputs },
            out_channels: if residual { inputs } else { outputs },
            kernel,
            stride,
            activation,
            expand,
            squeeze_excite: se,
            residual,
            eps: 1e-5,
        };
        check_block(&shape, Some(statistics(&shape)));
        let (height, width) = shape.output_size();
        // The variance of a few values can be tiny, and its root divides rounding errors.
        if shape.batch * height * width >= 16 {
            check_block(&shape, None);
        }
    });
}

#[test]
fn dense_and_depthwise_convolutions_of_any_shape_equal_the_reference() {
    let kinds = (any::<bool>(), any::<bool>());
    let shapes = (maps(), (1..=33usize, 1..=40usize), odd_kernel(), 1..=2usize, smooth(), kinds);
    for_each_of(90, shapes, |([batch, height, width], (inputs, outputs), kernel, stride, activation, kind)| {
        let (pool, depthwise) = kind;
        let inputs = if depthwise { outputs } else { inputs };
        let shape = DenseShape {
            batch,
            height,
            width,
            in_channels: inputs,
            out_channels: outputs,
            kernel,
            stride,
            depthwise,
            activation,
            pool,
            eps: 1e-5,
        };
        let dims = [batch, height, width, inputs];
        let x = values(dims.iter().product(), 6);
        let p = parameters(outputs * shape.columns() + 2 * outputs);
        let given = ChannelStatistics {
            mean: values(outputs, 7),
            variance: values(outputs, 8).iter().map(|v| v * v + 0.3).collect(),
            count: 1,
        };
        let (out_height, out_width) = shape.output_size();
        for given in [Some(given), None] {
            // As for blocks: the variance of a few values can be tiny.
            if given.is_none() && batch * out_height * out_width < 16 {
                continue;
            }
            let fused = fused_dense(&x, &p, &shape, given.as_ref());
            let exact = evaluate(&x, &p, &dims, &|x, p| interpreted_dense(x, p, &shape, given.as_ref()));
            assert_close(&f32s(&fused.output), &exact.output, 2e-4, "output");
            assert_close(&f32s(&fused.dp), &exact.dp, 1e-3, "parameter gradient");
            assert_close(&f32s(&fused.dx), &exact.dx, 1e-3, "input gradient");
        }
    });
}

/// Asserts sums of at most 60 products, each given as the exact sum and the sum of magnitudes. Rounding in f32, in any
/// order, is at most 61 times 2^-24 of the sum of magnitudes.
#[track_caller]
fn assert_sums(found: &[f32], expected: impl ExactSizeIterator<Item = (f64, f64)>, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    for (index, (&found, (sum, magnitude))) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(found) - sum).abs() <= 4e-6 * magnitude, "{what}[{index}]: {found} instead of {sum}");
    }
}

/// The exact sum of products and the sum of their magnitudes.
fn sums(products: impl Iterator<Item = (f32, f32)>) -> (f64, f64) {
    products.map(|(a, b)| f64::from(a) * f64::from(b)).fold((0.0, 0.0), |(sum, all), v| (sum + v, all + v.abs()))
}

#[test]
fn products_of_any_extents_equal_plain_sums() {
    for_each_of(150, (1..=60usize, 1..=50usize, 1..=70usize), |(rows, k, n)| {
        let (a, b) = (values(rows * k, 1), values(k * n, 2));
        let at = |index: usize| sums((0..k).map(|i| (a[index / n * k + i], b[i * n + index % n])));
        let packed = Packed::new(&b, k, n, n, 1);
        // The value beyond the output must stay.
        let mut c = vec![7.0; rows * n + 1];
        multiply(&a, k, rows, &packed, &mut c, n);
        assert_sums(&c[..rows * n], (0..rows * n).map(at), "product");
        multiply_add(&a, k, rows, &packed, &mut c, n);
        let twice = |index| (2.0 * at(index).0, 2.0 * at(index).1);
        assert_sums(&c[..rows * n], (0..rows * n).map(twice), "added product");
        assert_eq!(c[rows * n], 7.0);

        // `a` transposed, times a matrix with the same number of rows.
        let stride = n.next_multiple_of(InstructionSet::active().lanes());
        let right = values(rows * stride, 3);
        let mut c = vec![0.0; k * stride];
        accumulate_transposed(&a, k, &right, stride, rows, k, n, &mut c, stride);
        for (i, row) in c.chunks_exact(stride).enumerate() {
            let at = |j: usize| sums((0..rows).map(|row| (a[row * k + i], right[row * stride + j])));
            assert_sums(&row[..n], (0..n).map(at), "transposed product");
        }
    });
}

#[test]
fn pools_of_any_shape_equal_the_reference() {
    for_each_of(60, (maps(), 1..=37usize, (1..=4usize, 1..=4usize)), |([batch, height, width], channels, window)| {
        let dims = [batch, height, width, channels];
        let x = values(dims.iter().product(), 6);
        let check = |fused: Found, exact: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>, what: &str| {
            let exact = evaluate(&x, &[], &dims, &|x, _| exact(x));
            assert_close(&f32s(&fused.output), &exact.output, 1e-6, what);
            assert_close(&f32s(&fused.dx), &exact.dx, 1e-6, what);
        };
        check(fused_max_pool(&x, dims), &|x| interpreter::max_pool(x, 3, 2, 1), "max pool");
        let window = (window.0.min(height), window.1.min(width));
        check(fused_average_pool(&x, dims, window, 0), &|x| interpreter::average_pool(x, window), "average pool");
        let (window, padding) = (1 + window.0, window.1.min(window.0));
        let exact = |x: &Tensor| {
            let padded = x.pad_with_zeros(1, padding, 0)?.pad_with_zeros(2, padding, 0)?;
            interpreter::average_pool(&padded, (window, window))
        };
        check(fused_average_pool(&x, dims, (window, window), padding), &exact, "padded average pool");
    });
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

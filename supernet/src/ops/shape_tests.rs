//! Property tests: kernels against f64 references at random shapes, such as one image, prime numbers of channels, maps
//! of one pixel, stride 2 on odd maps. `tests` runs them with every instruction set of this CPU.

use super::testing::{assert_close, for_each_of, interpreted_dense, values};
use super::tests::{
    Found, check_block, evaluate, f32s, fused_average_pool, fused_dense, fused_max_pool, parameters, statistics,
};
use super::*;
use crate::graph::interpreter;
use candle_core::Tensor;
use proptest::prelude::*;

/// Activations that are smooth where the values lie: at a kink, rounding would decide the slope.
fn smooth() -> impl Strategy<Value = Activation> {
    prop_oneof![Just(Activation::Identity), Just(Activation::HardSwish)]
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

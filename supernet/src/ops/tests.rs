//! The fused ops against f64 references and finite differences, at odd sizes, with every instruction set of this CPU.

use super::testing::{
    assert_close, assert_close_above, interpreted_block, interpreted_dense, repeat_with_each_instruction_set, values,
};
use super::*;
use crate::graph::interpreter;
use candle_core::{DType, Device, Result, Tensor, Var};

fn block(dims: [usize; 3], channels: [usize; 3], kernel: usize, stride: usize) -> BlockShape {
    BlockShape {
        batch: dims[0],
        height: dims[1],
        width: dims[2],
        in_channels: channels[0],
        middle: channels[1],
        out_channels: channels[2],
        kernel,
        stride,
        activation: Activation::HardSwish,
        expand: true,
        squeeze_excite: None,
        residual: false,
        eps: 1e-5,
    }
}

fn block_cases() -> Vec<BlockShape> {
    use Activation::{Relu, Relu6};
    vec![
        BlockShape { residual: true, activation: Relu, ..block([2, 8, 8], [16, 48, 16], 7, 1) },
        BlockShape { residual: true, squeeze_excite: Some(8), ..block([3, 5, 7], [8, 24, 8], 5, 1) },
        BlockShape { activation: Relu6, ..block([1, 7, 5], [13, 29, 11], 3, 2) },
        BlockShape { squeeze_excite: Some(5), ..block([2, 9, 6], [7, 17, 19], 5, 2) },
        BlockShape { activation: Activation::Swish, squeeze_excite: Some(5), ..block([2, 9, 6], [7, 17, 19], 5, 2) },
        BlockShape { activation: Activation::Swish, residual: true, ..block([3, 5, 7], [24, 72, 24], 3, 1) },
        BlockShape { activation: Activation::Swish, expand: false, ..block([3, 5, 5], [16, 16, 24], 5, 1) },
        BlockShape { activation: Relu, squeeze_excite: Some(3), ..block([5, 1, 1], [5, 7, 3], 7, 1) },
        BlockShape { activation: Relu, expand: false, residual: true, ..block([2, 6, 4], [9, 9, 9], 3, 1) },
        BlockShape { expand: false, ..block([3, 4, 4], [16, 16, 8], 3, 1) },
        block([2, 11, 10], [3, 40, 24], 7, 2),
        block([4, 3, 3], [6, 33, 8], 1, 1),
        // Enough channels that more is stored, and maps small enough that several images share a group.
        BlockShape { squeeze_excite: Some(8), residual: true, ..block([7, 4, 4], [40, 72, 40], 5, 1) },
        BlockShape { activation: Relu, ..block([5, 5, 3], [37, 50, 45], 7, 2) },
        block([3, 9, 8], [34, 21, 12], 3, 1),
        block([2, 12, 9], [4, 18, 5], 9, 1),
        // A kernel that skips rows, and several images per group.
        block([9, 4, 4], [6, 20, 8], 1, 2),
    ]
}

/// Output, input gradient and parameter gradient of `sum(output * weights)`.
pub(super) struct Found {
    pub output: Vec<f64>,
    pub dx: Vec<f64>,
    pub dp: Vec<f64>,
}

pub(super) fn evaluate(x: &[f32], p: &[f32], dims: &[usize], f: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>) -> Found {
    let run = || -> Result<Found> {
        let x = Var::from_tensor(&Tensor::from_slice(x, dims, &Device::Cpu)?.to_dtype(DType::F64)?)?;
        let p = Var::from_tensor(&Tensor::from_slice(p, p.len(), &Device::Cpu)?.to_dtype(DType::F64)?)?;
        let output = f(&x, &p)?;
        let gradients = (output.clone() * weights(&output)?)?.sum_all()?.backward()?;
        let list = |t: &Tensor| t.flatten_all()?.to_vec1::<f64>();
        let gradient = |v: &Var| gradients.get(v).map(list).unwrap_or(Ok(Vec::new()));
        Ok(Found { output: list(&output)?, dx: gradient(&x)?, dp: gradient(&p)? })
    };
    run().unwrap()
}

/// As [`evaluate`], of kernels: their output, and their gradients at input and parameters, given the one at the output.
pub(super) fn of_kernels(output: Vec<f32>, backward: impl FnOnce(&[f32]) -> LayerGradients) -> Found {
    let LayerGradients { input, parameters } = backward(&values(output.len(), 77));
    Found { output: wide(&output), dx: wide(&input.unwrap()), dp: wide(&parameters) }
}

/// The gradient of an operation without parameters.
fn of_input(input: Vec<f32>) -> LayerGradients {
    LayerGradients { input: Some(input), parameters: Vec::new() }
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&v| f64::from(v)).collect()
}

/// An incoming gradient that is not constant.
fn weights(output: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values(output.elem_count(), 77), output.shape(), &Device::Cpu)?.to_dtype(output.dtype())
}

pub(super) fn f32s(v: &[f64]) -> Vec<f32> {
    v.iter().map(|&v| v as f32).collect()
}

/// Parameters of a magnitude found in networks: batch-norm weights around one.
pub(super) fn parameters(len: usize) -> Vec<f32> {
    values(len, 11).iter().map(|v| 0.4 * v + 0.25).collect()
}

fn block_parameters(shape: &BlockShape) -> usize {
    super::parameter_count(shape)
}

pub(super) fn statistics(shape: &BlockShape) -> BlockStatistics {
    let one = |channels: usize, stream| ChannelStatistics {
        mean: values(channels, stream),
        variance: values(channels, stream + 1).iter().map(|v| v * v + 0.3).collect(),
        count: 1,
    };
    [one(if shape.expand { shape.middle } else { 0 }, 31), one(shape.middle, 33), one(shape.out_channels, 35)]
}

fn fused_block(x: &[f32], p: &[f32], shape: &BlockShape, given: Option<&BlockStatistics>) -> Found {
    let (output, saved, _) = super::inverted_residual(x, p, shape, given, None, true).unwrap();
    of_kernels(output, |g| saved.unwrap().backward(shape, x, p, None, g))
}

pub(super) fn fused_dense(x: &[f32], p: &[f32], shape: &DenseShape, given: Option<&ChannelStatistics>) -> Found {
    let (output, saved) = super::dense(x, p, shape, given, None).unwrap();
    of_kernels(output, |g| saved.backward(shape, x, p, None, g, true))
}

pub(super) fn check_block(shape: &BlockShape, given: Option<BlockStatistics>) {
    let dims = [shape.batch, shape.height, shape.width, shape.in_channels];
    let x = values(dims.iter().product(), 5);
    let p = parameters(block_parameters(shape));
    let fused = fused_block(&x, &p, shape, given.as_ref());
    let exact = evaluate(&x, &p, &dims, &|x, p| interpreted_block(x, p, shape, given.as_ref()));
    assert_close(&f32s(&fused.output), &exact.output, 2e-4, &format!("{shape:?} output"));
    assert_close(&f32s(&fused.dx), &exact.dx, 1e-3, &format!("{shape:?} input gradient"));
    assert_close(&f32s(&fused.dp), &exact.dp, 1e-3, &format!("{shape:?} parameter gradient"));
}

#[test]
fn blocks_equal_the_f64_reference_with_batch_statistics() {
    for shape in block_cases() {
        check_block(&shape, None);
    }
}

#[test]
fn blocks_equal_the_f64_reference_with_given_statistics() {
    for shape in block_cases() {
        check_block(&shape, Some(statistics(&shape)));
    }
}

#[test]
fn images_in_parts_give_the_same_bits_as_all_at_once() {
    for shape in block_cases() {
        // More images than parts, and not a multiple of them.
        let shape = BlockShape { batch: 8 * rayon::current_num_threads() + 5, ..shape };
        let x = values(shape.batch * shape.height * shape.width * shape.in_channels, 5);
        let p = parameters(block_parameters(&shape));
        let given = statistics(&shape);
        let output = |keep| super::inverted_residual(&x, &p, &shape, Some(&given), None, keep).unwrap().0;
        assert!(output(false) == output(true), "{shape:?}");
    }
}

#[test]
fn the_backward_pass_may_run_on_another_number_of_threads() {
    // Maps of few pixels: how many images are one product depends on the threads.
    let shape = block([4, 4, 4], [6, 40, 6], 3, 1);
    let x = values(shape.batch * shape.height * shape.width * shape.in_channels, 5);
    let p = parameters(block_parameters(&shape));
    let gradients = |forward: usize, backward: usize| {
        let (output, saved, _) =
            super::with_threads(forward, || super::inverted_residual(&x, &p, &shape, None, None, true).unwrap());
        let saved = saved.unwrap();
        super::with_threads(backward, || saved.backward(&shape, &x, &p, None, &output))
    };
    let (same, other) = (gradients(1, 1), gradients(4, 1));
    assert_close(&other.parameters, &wide(&same.parameters), 1e-4, "parameter gradient");
    assert_close(&other.input.unwrap(), &wide(&same.input.unwrap()), 1e-4, "input gradient");
}

#[test]
fn averages_of_large_maps_and_sums_with_nan_are_exact() {
    let (pixels, mut mean) = (1 << 20, [0.0; 2]);
    super::inference::average_pool(&vec![0.1; 2 * pixels], 1, pixels, 2, &mut mean);
    assert!(mean.iter().all(|mean| (mean - 0.1).abs() < 1e-6), "{mean:?}");
    let sum = super::add(&[f32::NAN, -2.0, 1.0], &[1.0, 1.0, 1.0], true);
    assert!(sum[0].is_nan() && sum[1..] == [0.0, 2.0], "{sum:?}");
}

#[test]
fn block_gradients_equal_finite_differences() {
    let shape = BlockShape { residual: true, squeeze_excite: Some(4), ..block([2, 5, 3], [6, 11, 6], 3, 1) };
    let dims = [shape.batch, shape.height, shape.width, shape.in_channels];
    let x = values(dims.iter().product(), 5);
    let p = parameters(block_parameters(&shape));
    let fused = fused_block(&x, &p, &shape, None);
    let loss = |x: &[f64], p: &[f64]| -> f64 {
        let run = || -> Result<f64> {
            let x = Tensor::from_slice(x, &dims[..], &Device::Cpu)?;
            let p = Tensor::from_slice(p, p.len(), &Device::Cpu)?;
            let output = interpreted_block(&x, &p, &shape, None)?;
            (output.clone() * weights(&output)?)?.sum_all()?.to_scalar::<f64>()
        };
        run().unwrap()
    };
    let h = 1e-5;
    for (of_x, found) in [(true, &fused.dx), (false, &fused.dp)] {
        for index in (0..found.len()).step_by(7) {
            let slope = |direction: f64| {
                let (mut x, mut p) = (wide(&x), wide(&p));
                (if of_x { &mut x } else { &mut p })[index] += direction * h;
                loss(&x, &p)
            };
            let numeric = (slope(1.0) - slope(-1.0)) / (2.0 * h);
            let tolerance = 2e-3 * numeric.abs().max(0.1);
            assert!((found[index] - numeric).abs() < tolerance, "{of_x} {index}: {} against {numeric}", found[index]);
        }
    }
}

#[test]
fn dense_convolutions_equal_the_f64_reference() {
    for (kernel, stride, pool, dims, out) in [
        (3, 2, false, [2, 7, 9, 3], 16),
        (3, 1, false, [1, 5, 5, 3], 13),
        (3, 1, false, [3, 8, 6, 16], 24),
        (3, 2, false, [2, 6, 5, 17], 9),
        (5, 2, false, [2, 3, 1, 4], 8),
        (1, 2, false, [2, 5, 4, 7], 8),
        (1, 1, true, [3, 4, 4, 24], 40),
        (1, 1, true, [2, 1, 1, 7], 11),
        (1, 1, false, [2, 3, 5, 8], 8),
    ] {
        let shape = DenseShape {
            batch: dims[0],
            height: dims[1],
            width: dims[2],
            in_channels: dims[3],
            out_channels: out,
            kernel,
            stride,
            depthwise: false,
            activation: Activation::HardSwish,
            pool,
            eps: 1e-5,
        };
        let x = values(dims.iter().product(), 6);
        let p = parameters(out * dims[3] * kernel * kernel + 2 * out);
        let fused = fused_dense(&x, &p, &shape, None);
        let exact = evaluate(&x, &p, &dims, &|x, p| interpreted_dense(x, p, &shape, None));
        assert_close(&f32s(&fused.output), &exact.output, 2e-4, "dense output");
        assert_close(&f32s(&fused.dp), &exact.dp, 1e-3, "dense parameter gradient");
        // With two values per channel batch norm yields -1 and 1 for any input: almost all of their gradients cancels.
        let positions = dims[0] * dims[1].div_ceil(stride) * dims[2].div_ceil(stride);
        let least = if positions == 2 { 0.1 } else { 1e-2 };
        assert_close_above(least, &f32s(&fused.dx), &exact.dx, 1e-3, "dense input gradient");
        // Images need no gradient.
        let (output, saved) = super::dense(&x, &p, &shape, None, None).unwrap();
        let computed = saved.backward(&shape, &x, &p, None, &values(output.len(), 77), false);
        assert!(computed.input.is_none());
        assert_eq!(wide(&computed.parameters), fused.dp);
    }
}

#[test]
fn convolution_and_pool_gradients_equal_finite_differences() {
    // Chain: an average pool, a strided 3x3 convolution, a max pool, and its sum with itself, activated.
    let dims = [2, 9, 7, 5];
    let shape = DenseShape {
        batch: 2,
        height: 5,
        width: 4,
        in_channels: 5,
        out_channels: 6,
        kernel: 3,
        stride: 1,
        depthwise: false,
        activation: Activation::Relu,
        pool: false,
        eps: 1e-5,
    };
    let x = values(dims.iter().product(), 5);
    let p = parameters(6 * 5 * 9 + 12);
    let (average, max) = (Windows::side_by_side(9, 7, 5, (2, 2), 0), Windows::max_pool(5, 4, 6));
    let averages = super::average_pool(&average, &x);
    let (y, saved) = super::dense(&averages, &p, &shape, None, None).unwrap();
    let largest = super::max_pool(&max, &y);
    let output = super::add(&largest, &largest, true);
    let fused = of_kernels(output.clone(), |g| {
        let g = super::relu_gradient(&output, g);
        let g = super::max_pool_gradient(&max, &y, &largest, &super::add(&g, &g, false));
        let LayerGradients { input, parameters } = saved.backward(&shape, &averages, &p, None, &g, true);
        LayerGradients { input: input.map(|g| super::average_pool_gradient(&average, &g)), parameters }
    });
    let loss = |x: &[f64], p: &[f64]| -> f64 {
        let run = || -> Result<f64> {
            let x = Tensor::from_slice(x, &dims[..], &Device::Cpu)?;
            let p = Tensor::from_slice(p, p.len(), &Device::Cpu)?;
            let y = interpreted_dense(&interpreter::average_pool(&x, (2, 2))?, &p, &shape, None)?;
            let output = (interpreter::max_pool(&y, 3, 2, 1)? * 2.0)?.relu()?;
            (output.clone() * weights(&output)?)?.sum_all()?.to_scalar::<f64>()
        };
        run().unwrap()
    };
    let h = 1e-6;
    for (of_x, found) in [(true, &fused.dx), (false, &fused.dp)] {
        for index in (0..found.len()).step_by(7) {
            let slope = |direction: f64| {
                let (mut x, mut p) = (wide(&x), wide(&p));
                (if of_x { &mut x } else { &mut p })[index] += direction * h;
                loss(&x, &p)
            };
            let numeric = (slope(1.0) - slope(-1.0)) / (2.0 * h);
            let tolerance = 2e-3 * numeric.abs().max(0.1);
            assert!((found[index] - numeric).abs() < tolerance, "{of_x} {index}: {} against {numeric}", found[index]);
        }
    }
}

#[test]
fn pools_and_sums_equal_the_f64_reference() {
    for dims in [[2, 8, 6, 16], [3, 7, 5, 3], [1, 1, 1, 9], [2, 2, 3, 40], [1, 33, 30, 20]] {
        // At exactly zero the slope of ReLU is a convention: 0 here as in PyTorch, 1 in candle.
        let x: Vec<f32> = values(dims.iter().product(), 6).iter().map(|&v| if v == 0.0 { 0.5 } else { v }).collect();
        let check = |fused: Found, exact: &dyn Fn(&Tensor) -> Result<Tensor>, what: &str| {
            let exact = evaluate(&x, &[], &dims, &|x, _| exact(x));
            assert_close(&f32s(&fused.output), &exact.output, 1e-6, what);
            assert_close(&f32s(&fused.dx), &exact.dx, 1e-6, what);
        };
        check(fused_max_pool(&x, dims), &|x| interpreter::max_pool(x, 3, 2, 1), &format!("max pool {dims:?}"));
        for window in [(2, 2), (1, 1), (dims[1], dims[2]), (3, 2)] {
            let exact = |x: &Tensor| interpreter::average_pool(x, window);
            check(fused_average_pool(&x, dims, window, 0), &exact, &format!("average pool {dims:?} {window:?}"));
        }
        for relu in [false, true] {
            // The sum has the sign of x, so rounding decides no slope.
            let exact = |x: &Tensor| {
                let sum = (x + (x * 0.5)?)?;
                if relu { sum.relu() } else { Ok(sum) }
            };
            let output = super::add(&x, &x.iter().map(|v| 0.5 * v).collect::<Vec<_>>(), relu);
            let fused = of_kernels(output.clone(), |g| {
                let g = if relu { super::relu_gradient(&output, g) } else { g.to_vec() };
                of_input(g.iter().map(|g| 1.5 * g).collect())
            });
            check(fused, &exact, "sum");
        }
    }
}

pub(super) fn fused_max_pool(x: &[f32], [_, height, width, channels]: [usize; 4]) -> Found {
    let windows = Windows::max_pool(height, width, channels);
    let output = super::max_pool(&windows, x);
    of_kernels(output.clone(), |g| of_input(super::max_pool_gradient(&windows, x, &output, g)))
}

pub(super) fn fused_average_pool(
    x: &[f32],
    [_, height, width, channels]: [usize; 4],
    window: (usize, usize),
    padding: usize,
) -> Found {
    let windows = Windows::side_by_side(height, width, channels, window, padding);
    of_kernels(super::average_pool(&windows, x), |g| of_input(super::average_pool_gradient(&windows, g)))
}

#[test]
fn fully_connected_layers_equal_the_f64_reference() {
    for (rows, inputs, outputs) in [(1, 1, 1), (1, 37, 5), (7, 48, 33), (64, 20, 10), (101, 13, 64)] {
        let (x, w) = (values(rows * inputs, 5), values(outputs * inputs, 6));
        let exact = |x: &Tensor, w: &Tensor| x.matmul(&w.reshape((outputs, inputs))?.t()?);
        let extents = [rows, inputs, outputs];
        let found = of_kernels(super::linear(&x, &w, extents).unwrap(), |g| super::linear_backward(&x, &w, extents, g));
        let expected = evaluate(&x, &w, &[rows, inputs], &exact);
        let what = |part: &str| format!("{rows} x {inputs} x {outputs} {part}");
        assert_close(&f32s(&found.output), &expected.output, 1e-5, &what("output"));
        assert_close(&f32s(&found.dx), &expected.dx, 1e-5, &what("input gradient"));
        assert_close(&f32s(&found.dp), &expected.dp, 1e-5, &what("weight gradient"));
    }
    assert!(super::linear(&[0.0; 6], &[0.0; 6], [2, 3, 3]).unwrap_err().to_string().contains("do not fit"));
}

#[test]
fn same_threads_same_bits() {
    let shape = BlockShape { residual: true, ..block([5, 6, 6], [16, 64, 16], 5, 1) };
    let x = values(5 * 36 * 16, 5);
    let p = parameters(block_parameters(&shape));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let found = fused_block(&x, &p, &shape, None);
            (found.output, found.dx, found.dp)
        })
    };
    assert_eq!(run(2), run(2));
    assert_eq!(run(3), run(3));
}

#[test]
fn wrong_shapes_are_errors() {
    let shape = block([2, 4, 4], [8, 16, 8], 3, 1);
    let result = super::inverted_residual(&[0.0; 256], &[0.0; 7], &shape, None, None, false);
    let error = result.err().unwrap().to_string();
    assert!(error.contains("7 parameters"), "{error}");
}

#[test]
fn every_instruction_set_passes_the_same_tests() {
    repeat_with_each_instruction_set(&["ops::"], false);
}

//! Time of each kernel, and the fraction of it that the hardware would need at least: `cargo bench -p ofa-supernet
//! --bench kernels`.
//!
//! The floor of a kernel is its operations over the rate of a large matrix product, plus the bytes that it must move
//! over the rate of a copy; both rates are measured first, with all threads. Values that are written and read again
//! later count twice. A kernel whose values are in the caches can be faster than its floor.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ofa_supernet::ops::inference::{DenseConv, Depthwise, Pointwise};
use ofa_supernet::ops::{
    BlockShape, DenseShape, SparseLayer, SparseRows, Windows, average_pool, dense, inverted_residual, max_pool,
    parameter_count,
};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::Activation;
use rand::Rng;
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Images per call of every bench.
const BATCH: usize = 64;

/// Operations and bytes per second.
struct Rates {
    operations: f64,
    bytes: f64,
}

/// Wall time, with throughput shown as the floor's fraction of it.
struct ShareOfFloor(WallTime);

impl Measurement for ShareOfFloor {
    type Intermediate = <WallTime as Measurement>::Intermediate;
    type Value = Duration;
    fn start(&self) -> Self::Intermediate {
        self.0.start()
    }
    fn end(&self, start: Self::Intermediate) -> Duration {
        self.0.end(start)
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        self.0.add(a, b)
    }
    fn zero(&self) -> Duration {
        self.0.zero()
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        self.0.to_f64(value)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        &Formatter
    }
}

struct Formatter;

impl ValueFormatter for Formatter {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }
    /// Elements of the throughput are the nanoseconds of the floor.
    fn scale_throughputs(&self, _typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let Throughput::Elements(floor) = *throughput else { return "?" };
        values.iter_mut().for_each(|nanoseconds| *nanoseconds = 100.0 * floor as f64 / *nanoseconds);
        "% of time is floor"
    }
    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}

fn values(count: usize) -> Vec<f32> {
    let mut rng = generator(0, Stream::Weights, &[count as u64]);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// The best of several repetitions: what the machine can do, not its average.
fn best(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..30).map(time).fold(f64::INFINITY, f64::min)
}

fn rates() -> &'static Rates {
    static RATES: OnceLock<Rates> = OnceLock::new();
    RATES.get_or_init(|| {
        // The best of shapes that occur in networks.
        let product = |(rows, from, to): (usize, usize, usize)| {
            let layer = Pointwise::new(&values(from * to), &values(to), from, to);
            let (input, mut output) = (values(rows * from), vec![0.0; rows * to]);
            let seconds = best(|| layer.run(&input, 1, rows, Activation::Identity, None, None, black_box(&mut output)));
            2.0 * (rows * from * to) as f64 / seconds
        };
        let shapes = [(4096, 240, 40), (1024, 80, 480), (64, 640, 1000), (8192, 384, 384)];
        let operations = shapes.map(product).into_iter().fold(0.0, f64::max);
        // Larger than the caches.
        let (from, mut to) = (values(32 << 20), vec![0.0f32; 32 << 20]);
        let share = from.len() / rayon::current_num_threads();
        let copy = best(|| {
            rayon::scope(|scope| {
                for (from, to) in from.chunks(share).zip(black_box(&mut to).chunks_mut(share)) {
                    scope.spawn(move |_| to.copy_from_slice(from));
                }
            });
        });
        let rates = Rates { operations, bytes: 8.0 * from.len() as f64 / copy };
        println!("matrix product {:.0} GFLOP/s, copy {:.1} GB/s\n", rates.operations / 1e9, rates.bytes / 1e9);
        rates
    })
}

/// Smallest number of nanoseconds for `multiply_adds` and `moved` values.
fn floor(multiply_adds: usize, moved: usize) -> Throughput {
    let rates = rates();
    Throughput::Elements(
        (1e9 * (2.0 * multiply_adds as f64 / rates.operations + 4.0 * moved as f64 / rates.bytes)) as u64,
    )
}

fn inference(c: &mut Criterion<ShareOfFloor>) {
    let mut group = c.benchmark_group("inference");
    for (side, from, to) in [(32, 12, 72), (16, 20, 120), (8, 240, 40), (4, 80, 480), (1, 640, 1000)] {
        let rows = BATCH * side * side;
        let layer = Pointwise::new(&values(from * to), &values(to), from, to);
        let (input, mut output) = (values(rows * from), vec![0.0; rows * to]);
        group.throughput(floor(rows * from * to, rows * (from + to) + from * to));
        group.bench_function(BenchmarkId::new("pointwise", format!("{side} px {from} to {to}")), |b| {
            b.iter(|| layer.run(&input, BATCH, side * side, Activation::Relu, None, None, black_box(&mut output)));
        });
    }
    for (side, channels, kernel, stride) in [
        (32, 72, 3, 1),
        (32, 72, 5, 1),
        (32, 72, 7, 1),
        (32, 72, 5, 2),
        (16, 120, 7, 1),
        (8, 240, 7, 1),
        (7, 241, 5, 2),
        (4, 480, 7, 1),
    ] {
        let layer = Depthwise::new(&values(channels * kernel * kernel), &values(channels), channels, kernel, stride);
        let out = BATCH * usize::div_ceil(side, stride).pow(2) * channels;
        let (input, mut output) = (values(BATCH * side * side * channels), vec![0.0; out]);
        group.throughput(floor(out * kernel * kernel, input.len() + out));
        group.bench_function(BenchmarkId::new("depthwise", format!("{side} px {channels} k{kernel} s{stride}")), |b| {
            b.iter(|| layer.run(&input, None, BATCH, side, side, Activation::Relu, black_box(&mut output), None));
        });
    }
    for (side, from, to, stride) in [(32, 3, 8, 1), (64, 3, 16, 2), (16, 64, 64, 1)] {
        let layer = DenseConv::new(&values(from * to * 9), &values(to), from, to, 3, stride);
        let rows = BATCH * usize::div_ceil(side, stride).pow(2);
        let (input, mut output) = (values(BATCH * side * side * from), vec![0.0; rows * to]);
        group.throughput(floor(rows * from * to * 9, input.len() + rows * to));
        group.bench_function(BenchmarkId::new("dense 3x3", format!("{side} px {from} to {to} s{stride}")), |b| {
            b.iter(|| layer.run(&input, BATCH, side, side, Activation::Relu, black_box(&mut output)));
        });
    }
    group.finish();
}

fn block(side: usize, channels: [usize; 3], kernel: usize, stride: usize, squeeze_excite: bool) -> BlockShape {
    let [in_channels, middle, out_channels] = channels;
    BlockShape {
        batch: BATCH,
        height: side,
        width: side,
        in_channels,
        middle,
        out_channels,
        kernel,
        stride,
        activation: if squeeze_excite { Activation::HardSwish } else { Activation::Relu },
        expand: true,
        squeeze_excite: squeeze_excite.then_some(middle / 4),
        residual: stride == 1 && in_channels == out_channels,
        eps: 1e-5,
    }
}

/// Number of channels beyond which the fused block stores more; see the documentation of the block.
const RECOMPUTED: usize = 32;

/// The fused blocks as in training. Products that a block recomputes instead of storing their results do not count for
/// the floor.
fn training(c: &mut Criterion<ShareOfFloor>) {
    let mut group = c.benchmark_group("training");
    for (side, channels, kernel, stride, squeeze_excite) in [
        (32, [12, 72, 12], 7, 1, false),
        (32, [12, 72, 20], 7, 2, true),
        (16, [20, 120, 20], 7, 1, true),
        (16, [20, 120, 20], 3, 1, true),
        (8, [40, 240, 40], 7, 1, false),
        (4, [80, 480, 80], 7, 1, true),
    ] {
        let shape = block(side, channels, kernel, stride, squeeze_excite);
        let (height, _) = shape.output_size();
        let (inside, outside) = (BATCH * side * side, BATCH * height * height);
        let multiply_adds =
            inside * channels[0] * channels[1] + outside * channels[1] * (kernel * kernel + channels[2]);
        let (x, y1) = (inside * channels[0], inside * channels[1]);
        let (y2, y3) = (outside * channels[1], outside * channels[2]);
        let (kept_y1, kept_g2) =
            (if channels[0] > RECOMPUTED { y1 } else { 0 }, if channels[2] > RECOMPUTED { y2 } else { 0 });
        // The input is read for its moments and once more; y2 and y3 are written and read; the output is written.
        let forward = 2 * x + kept_y1 + 2 * y2 + 3 * y3;
        // The output's gradient and y3 are read twice, the raw gradient is written and read; y2 is read twice; the
        // input's gradient is written, read with the input and written again.
        let backward = 6 * y3 + 2 * y2 + kept_y1 + 2 * kept_g2 + 5 * x;
        let (input, packed, gradient) = (values(x), values(parameter_count(&shape)), vec![1.0; y3]);
        let name = format!("{side} px {channels:?} k{kernel} s{stride}{}", if squeeze_excite { " se" } else { "" });
        group.throughput(floor(multiply_adds, forward));
        group.bench_function(BenchmarkId::new("block forward", &name), |b| {
            b.iter(|| inverted_residual(&input, &packed, &shape, None, None, false).expect("fitting shapes"));
        });
        group.throughput(floor(3 * multiply_adds, forward + backward));
        group.bench_function(BenchmarkId::new("block forward and backward", &name), |b| {
            b.iter(|| {
                let passed = inverted_residual(&input, &packed, &shape, None, None, true).expect("fitting shapes");
                passed.1.expect("saved values").backward(&shape, &input, &packed, None, &gradient)
            });
        });
    }
    for (side, from, to, kernel, pool) in [(32, 3, 8, 3, false), (4, 80, 480, 1, true)] {
        let shape = DenseShape {
            batch: BATCH,
            height: side,
            width: side,
            in_channels: from,
            out_channels: to,
            kernel,
            stride: 1,
            depthwise: false,
            activation: Activation::HardSwish,
            pool,
            eps: 1e-5,
        };
        let rows = BATCH * side * side;
        let (x, y) = (rows * from, rows * to);
        let (input, packed) = (values(x), values(to * from * kernel * kernel + 2 * to));
        let gradient = vec![1.0; if pool { BATCH * to } else { y }];
        group.throughput(floor(3 * rows * from * to * kernel * kernel, 3 * x + 5 * y));
        let name = format!("{side} px {from} to {to} k{kernel}{}", if pool { " pooled" } else { "" });
        group.bench_function(BenchmarkId::new("dense forward and backward", name), |b| {
            b.iter(|| {
                let (_, saved) = dense(&input, &packed, &shape, None, None).expect("fitting shapes");
                saved.backward(&shape, &input, &packed, None, &gradient, true)
            });
        });
    }
    let map = values(BATCH * 32 * 32 * 32);
    group.throughput(floor(0, map.len() * 5 / 4));
    group.bench_function("max pool", |b| b.iter(|| max_pool(&Windows::max_pool(32, 32, 32), &map)));
    group.bench_function("average pool", |b| {
        b.iter(|| average_pool(&Windows::side_by_side(32, 32, 32, (2, 2), 0), &map));
    });
    group.finish();
}

/// The predictor's layers: a hundred subnets, about half of whose values are zero.
fn sparse(c: &mut Criterion<ShareOfFloor>) {
    let mut group = c.benchmark_group("predictor");
    let layer = SparseLayer::new(&values(400 * 400), &values(400));
    let ones: Vec<Vec<usize>> =
        (0..100).map(|row| (0..400).filter(|i| (i * 7 + row * 13) % 10 == 0).collect()).collect();
    let rows = layer.forward(&SparseRows::ones(400, ones.iter().map(Vec::as_slice)));
    group.throughput(floor(100 * 200 * 400, 400 * 400 + 2 * 100 * 400));
    group.bench_function("sparse layer", |b| b.iter(|| layer.forward(&rows)));
    group.finish();
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .with_measurement(ShareOfFloor(WallTime))
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = inference, training, sparse
}
criterion_main!(kernels);

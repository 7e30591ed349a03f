//! The kernels as plain loops with f64 sums: what the fast ones are tested against.

use ofa_supernet::space::Activation;

fn activate(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::Relu6 => x.clamp(0.0, 6.0),
        Activation::HardSwish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
    }
}

/// 1x1 convolution.
pub struct Pointwise {
    weight: Vec<f32>,
    bias: Vec<f32>,
    input: usize,
}

impl Pointwise {
    pub fn new(weight: &[f32], bias: &[f32], in_channels: usize, out_channels: usize) -> Self {
        assert_eq!((weight.len(), bias.len()), (in_channels * out_channels, out_channels));
        Pointwise { weight: weight.to_vec(), bias: bias.to_vec(), input: in_channels }
    }

    #[allow(clippy::too_many_arguments)] // the signature of the kernel it stands in for
    pub fn run(
        &self,
        input: &[f32],
        batch: usize,
        pixels_per_image: usize,
        activation: Activation,
        gate: Option<&[f32]>,
        residual: Option<&[f32]>,
        output: &mut [f32],
    ) {
        let (ins, outs) = (self.input, self.bias.len());
        assert_eq!((input.len(), output.len()), (batch * pixels_per_image * ins, batch * pixels_per_image * outs));
        for pixel in 0..batch * pixels_per_image {
            for o in 0..outs {
                let mut sum = f64::from(self.bias[o]);
                for i in 0..ins {
                    let gate = gate.map_or(1.0, |gate| f64::from(gate[pixel / pixels_per_image * ins + i]));
                    sum += f64::from(self.weight[o * ins + i]) * f64::from(input[pixel * ins + i]) * gate;
                }
                let residual = residual.map_or(0.0, |residual| f64::from(residual[pixel * outs + o]));
                output[pixel * outs + o] = activate(sum + residual, activation) as f32;
            }
        }
    }
}

/// Depthwise convolution.
pub struct Depthwise(DenseConv);

impl Depthwise {
    pub fn new(weight: &[f32], bias: &[f32], channels: usize, kernel: usize, stride: usize) -> Self {
        let mut dense = vec![0.0; channels * channels * kernel * kernel];
        for (c, filter) in weight.chunks_exact(kernel * kernel).enumerate() {
            dense[(c * channels + c) * kernel * kernel..][..kernel * kernel].copy_from_slice(filter);
        }
        Depthwise(DenseConv::new(&dense, bias, channels, channels, kernel, stride))
    }

    #[allow(clippy::too_many_arguments)] // the signature of the kernel it stands in for
    pub fn run(
        &self,
        input: &[f32],
        batch: usize,
        height: usize,
        width: usize,
        activation: Activation,
        output: &mut [f32],
        pooled: Option<&mut [f32]>,
    ) {
        self.0.run(input, batch, height, width, activation, output);
        let Some(pooled) = pooled else { return };
        let channels = self.0.bias.len();
        let pixels = output.len() / batch / channels;
        for (index, mean) in pooled.iter_mut().enumerate() {
            let image = &output[index / channels * pixels * channels..][..pixels * channels];
            let sum: f64 = image.iter().skip(index % channels).step_by(channels).map(|&v| f64::from(v)).sum();
            *mean = (sum / pixels as f64) as f32;
        }
    }
}

/// Dense convolution.
pub struct DenseConv {
    weight: Vec<f32>,
    bias: Vec<f32>,
    input: usize,
    kernel: usize,
    stride: usize,
}

impl DenseConv {
    pub fn new(
        weight: &[f32],
        bias: &[f32],
        in_channels: usize,
        out_channels: usize,
        kernel: usize,
        stride: usize,
    ) -> Self {
        assert_eq!((weight.len(), bias.len()), (in_channels * out_channels * kernel * kernel, out_channels));
        DenseConv { weight: weight.to_vec(), bias: bias.to_vec(), input: in_channels, kernel, stride }
    }

    pub fn run(
        &self,
        input: &[f32],
        batch: usize,
        height: usize,
        width: usize,
        activation: Activation,
        output: &mut [f32],
    ) {
        let (ins, outs, k) = (self.input, self.bias.len(), self.kernel);
        let (out_height, out_width) = (height.div_ceil(self.stride), width.div_ceil(self.stride));
        assert_eq!((input.len(), output.len()), (batch * height * width * ins, batch * out_height * out_width * outs));
        for (index, value) in output.iter_mut().enumerate() {
            let (o, x, y, n) = (
                index % outs,
                index / outs % out_width,
                index / outs / out_width % out_height,
                index / outs / out_width / out_height,
            );
            let mut sum = f64::from(self.bias[o]);
            for ky in 0..k {
                for kx in 0..k {
                    let (iy, ix) = (y * self.stride + ky, x * self.stride + kx);
                    if iy < k / 2 || ix < k / 2 || iy - k / 2 >= height || ix - k / 2 >= width {
                        continue;
                    }
                    let pixel = (n * height + iy - k / 2) * width + ix - k / 2;
                    for i in 0..ins {
                        sum += f64::from(self.weight[((o * ins + i) * k + ky) * k + kx])
                            * f64::from(input[pixel * ins + i]);
                    }
                }
            }
            *value = activate(sum, activation) as f32;
        }
    }
}

/// Means over the pixels: `map` `[batch, pixels, channels]` to `means` `[batch, channels]`.
pub fn average_pool(map: &[f32], pixels: usize, channels: usize, means: &mut [f32]) {
    for (image, means) in map.chunks_exact(pixels * channels).zip(means.chunks_exact_mut(channels)) {
        means.fill(0.0);
        for pixel in image.chunks_exact(channels) {
            for (mean, value) in means.iter_mut().zip(pixel) {
                *mean += value;
            }
        }
        for mean in means {
            *mean /= pixels as f32;
        }
    }
}

/// `of` the values that every window sees, of square maps `[batch, size, size, channels]`; output size is `size / stride` rounded up.
pub fn pool(
    map: &[f32],
    size: usize,
    channels: usize,
    window: usize,
    stride: usize,
    padding: usize,
    of: impl Fn(&[f32]) -> f32,
) -> Vec<f32> {
    let out = size.div_ceil(stride);
    let mut output = Vec::new();
    for image in map.chunks_exact(size * size * channels) {
        for place in 0..out * out {
            let range = |place: usize| {
                let start = place * stride;
                start.saturating_sub(padding)..(start + window - padding).min(size)
            };
            for channel in 0..channels {
                let mut seen = Vec::new();
                for y in range(place / out) {
                    seen.extend(range(place % out).map(|x| image[(y * size + x) * channels + channel]));
                }
                output.push(of(&seen));
            }
        }
    }
    output
}

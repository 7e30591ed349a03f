//! Ops of ResNets between the convolutions: the sum of a block and its shortcut, max pool, average pool.

use super::parallel;
use super::{contiguous_f32, tensor_values};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use std::ops::Range;

/// `x + y` for equal shapes, followed by ReLU if `relu`.
///
/// # Errors
/// Shapes or types do not fit.
pub fn add(x: &Tensor, y: &Tensor, relu: bool) -> Result<Tensor> {
    if x.dims() != y.dims() {
        bail!("a sum needs equal shapes, found {:?} and {:?}", x.dims(), y.dims());
    }
    x.contiguous()?.apply_op2(&y.contiguous()?, Add { relu })
}

struct Add {
    relu: bool,
}

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, y: &CpuStorage, yl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, y) = (contiguous_f32(x, xl)?, contiguous_f32(y, yl)?);
        let least = if self.relu { 0.0 } else { f32::NEG_INFINITY };
        let mut sum = vec![0.0; x.len()];
        in_parallel(&mut sum, 1, |range, sum| {
            for ((sum, &x), &y) in sum.iter_mut().zip(&x[range.clone()]).zip(&y[range]) {
                *sum = (x + y).max(least);
            }
        });
        Ok((CpuStorage::F32(sum), xl.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, sum: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if !self.relu {
            return Ok((Some(g.clone()), Some(g.clone())));
        }
        let masked = tensor_values(sum, |sum| {
            tensor_values(g, |g| {
                let mut masked = vec![0.0; g.len()];
                in_parallel(&mut masked, 1, |range, masked| {
                    for ((out, &g), &sum) in masked.iter_mut().zip(&g[range.clone()]).zip(&sum[range]) {
                        *out = if sum > 0.0 { g } else { 0.0 };
                    }
                });
                Ok(masked)
            })
        })?;
        let masked = Tensor::from_vec(masked, g.shape(), g.device())?;
        Ok((Some(masked.clone()), Some(masked)))
    }
}

/// Splits `output` into one part per thread, each a whole multiple of `grain`.
fn in_parallel(output: &mut [f32], grain: usize, work: impl Fn(Range<usize>, &mut [f32]) + Sync) {
    let total = output.len();
    // At least some thousand values per thread.
    parallel::map_parts(output, 1, total, grain.max(4096 / grain.max(1) * grain), work);
}

/// Pooling windows over maps `[batch, height, width, channels]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    /// Height and width of a window.
    pub size: (usize, usize),
    pub stride: (usize, usize),
    /// Rows and columns by which the first window starts before the first pixel; fewer than those of a window.
    pub padding: usize,
    /// Height and width of the output map.
    pub output_size: (usize, usize),
}

impl Windows {
    /// 3x3 windows with stride 2 and padding 1.
    pub(crate) fn max_pool(height: usize, width: usize, channels: usize) -> Self {
        let output_size = (height.div_ceil(2), width.div_ceil(2));
        Windows { height, width, channels, size: (3, 3), stride: (2, 2), padding: 1, output_size }
    }

    /// Adjacent windows that begin `padding` rows and columns before the first pixel; the last may extend over the
    /// border.
    pub(crate) fn side_by_side(
        height: usize,
        width: usize,
        channels: usize,
        size: (usize, usize),
        padding: usize,
    ) -> Self {
        assert!(padding < size.0.min(size.1), "every window holds a pixel");
        let output_size = ((height + padding).div_ceil(size.0), (width + padding).div_ceil(size.1));
        Windows { height, width, channels, size, stride: size, padding, output_size }
    }

    fn out_pixels(&self) -> usize {
        self.output_size.0 * self.output_size.1
    }

    fn in_values(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Rows and columns of the input in the window of output pixel `pixel` (within its image).
    fn seen(&self, pixel: usize) -> (Range<usize>, Range<usize>) {
        let out_width = self.output_size.1;
        let part = |position: usize, stride: usize, size: usize, length: usize| {
            let start = position * stride;
            start.saturating_sub(self.padding)..(start + size - self.padding).min(length)
        };
        (
            part(pixel / out_width, self.stride.0, self.size.0, self.height),
            part(pixel % out_width, self.stride.1, self.size.1, self.width),
        )
    }

    /// One over the pixels in the window of output pixel `pixel`, the padding before the map included.
    fn mean_factor(&self, pixel: usize) -> f32 {
        let out_width = self.output_size.1;
        let count = |position: usize, size: usize, length: usize| size.min(length + self.padding - position * size);
        let rows = count(pixel / out_width, self.size.0, self.height);
        1.0 / (rows * count(pixel % out_width, self.size.1, self.width)) as f32
    }

    /// Offsets, within an image, of the input pixels in the window of output pixel `pixel`.
    fn offsets(&self, pixel: usize) -> impl Iterator<Item = usize> + use<> {
        let (rows, columns) = self.seen(pixel);
        let (width, channels) = (self.width, self.channels);
        rows.flat_map(move |y| columns.clone().map(move |x| (y * width + x) * channels))
    }
}

/// Writes the largest value of every window of `input` `[batch, height, width, channels]`.
pub(crate) fn max_windows(windows: &Windows, input: &[f32], output: &mut [f32]) {
    pool_windows(windows, input, output, |out, position, values| {
        if position == 0 {
            out.copy_from_slice(values);
        } else {
            out.iter_mut().zip(values).for_each(|(out, &v)| *out = out.max(v));
        }
    });
}

/// Writes the mean of every window of `input` `[batch, height, width, channels]`: padding before the map counts as
/// zeros, pixels beyond its end do not count.
pub(crate) fn mean_windows(windows: &Windows, input: &[f32], output: &mut [f32]) {
    pool_windows(windows, input, output, |out, position, values| {
        if position == 0 {
            out.copy_from_slice(values);
        } else {
            out.iter_mut().zip(values).for_each(|(out, &v)| *out += v);
        }
    });
    let (channels, pixels) = (windows.channels, windows.out_pixels());
    in_parallel(output, channels, |range, output| {
        for (pixel, out) in output.chunks_exact_mut(channels).enumerate() {
            let factor = windows.mean_factor((range.start / channels + pixel) % pixels);
            out.iter_mut().for_each(|v| *v *= factor);
        }
    });
}

/// Calls `add(output channels, number of the pixel in its window, input channels)` for all pixels of all windows.
fn pool_windows(windows: &Windows, input: &[f32], output: &mut [f32], add: impl Fn(&mut [f32], usize, &[f32]) + Sync) {
    let (channels, pixels) = (windows.channels, windows.out_pixels());
    assert_eq!(input.len() / windows.in_values() * pixels * channels, output.len());
    in_parallel(output, channels, |range, output| {
        for (index, out) in output.chunks_exact_mut(channels).enumerate() {
            let pixel = range.start / channels + index;
            let image = &input[pixel / pixels * windows.in_values()..][..windows.in_values()];
            for (position, start) in windows.offsets(pixel % pixels).enumerate() {
                add(out, position, &image[start..start + channels]);
            }
        }
    });
}

/// 3x3 max pool with stride 2 of `[batch, height, width, channels]`. Among equal values the first in the window gets
/// the gradient.
///
/// # Errors
/// Shapes or types do not fit.
pub fn max_pool(x: &Tensor) -> Result<Tensor> {
    let (_, height, width, channels) = x.dims4()?;
    pooled(x, Pool { windows: Windows::max_pool(height, width, channels), kind: Kind::Max })
}

/// Average over adjacent windows of `(height, width)` pixels of `[batch, height, width, channels]`; windows that cross
/// the right or lower border average their existing pixels.
///
/// # Errors
/// Shapes or types do not fit.
pub fn average_pool(x: &Tensor, window: (usize, usize)) -> Result<Tensor> {
    let (_, height, width, channels) = x.dims4()?;
    if window.0 * window.1 == 0 {
        bail!("a pool needs windows, found {window:?}");
    }
    pooled(x, Pool { windows: Windows::side_by_side(height, width, channels, window, 0), kind: Kind::Average })
}

/// Average over adjacent windows of `window x window` pixels of `[batch, height, width, channels]` after `padding` rows
/// and columns of zeros, which count in the mean.
///
/// # Errors
/// Shapes or types do not fit; padding of a window or more.
pub fn padded_average_pool(x: &Tensor, window: usize, padding: usize) -> Result<Tensor> {
    let (_, height, width, channels) = x.dims4()?;
    if padding >= window {
        bail!("an average pool of {window} pixels cannot have a padding of {padding}");
    }
    let windows = Windows::side_by_side(height, width, channels, (window, window), padding);
    pooled(x, Pool { windows, kind: Kind::Average })
}

fn pooled(x: &Tensor, pool: Pool) -> Result<Tensor> {
    if x.elem_count() == 0 {
        bail!("a pool needs pixels, found {:?}", x.dims());
    }
    x.contiguous()?.apply_op1(pool)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Max,
    Average,
}

struct Pool {
    windows: Windows,
    kind: Kind,
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_f32(x, layout)?;
        let windows = &self.windows;
        let batch = x.len() / windows.in_values();
        let (height, width) = windows.output_size;
        let mut output = vec![0.0; batch * height * width * windows.channels];
        match self.kind {
            Kind::Max => max_windows(windows, x, &mut output),
            Kind::Average => mean_windows(windows, x, &mut output),
        }
        Ok((CpuStorage::F32(output), (batch, height, width, windows.channels).into()))
    }

    fn bwd(&self, x: &Tensor, output: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let dx = tensor_values(x, |x| {
            tensor_values(output, |output| tensor_values(g, |g| Ok(self.gradient(x, output, g))))
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

impl Pool {
    fn gradient(&self, x: &[f32], output: &[f32], g: &[f32]) -> Vec<f32> {
        let windows = &self.windows;
        let (channels, values) = (windows.channels, windows.in_values());
        let image_outputs = windows.out_pixels() * channels;
        let mut dx = vec![0.0; x.len()];
        parallel::map_parts(&mut dx, values, x.len() / values, 1, |images, dx| {
            let mut taken = vec![false; channels];
            for (image, dx) in images.zip(dx.chunks_exact_mut(values)) {
                let x = &x[image * values..][..values];
                let outputs = &output[image * image_outputs..][..image_outputs];
                let gradients = &g[image * image_outputs..][..image_outputs];
                for (pixel, (out, g)) in
                    outputs.chunks_exact(channels).zip(gradients.chunks_exact(channels)).enumerate()
                {
                    match self.kind {
                        Kind::Max => {
                            taken.fill(false);
                            for start in windows.offsets(pixel) {
                                let (x, dx) = (&x[start..start + channels], &mut dx[start..start + channels]);
                                for c in 0..channels {
                                    if !taken[c] && x[c] == out[c] {
                                        taken[c] = true;
                                        dx[c] += g[c];
                                    }
                                }
                            }
                        }
                        Kind::Average => {
                            let factor = windows.mean_factor(pixel);
                            for start in windows.offsets(pixel) {
                                for (dx, &g) in dx[start..start + channels].iter_mut().zip(g) {
                                    *dx += factor * g;
                                }
                            }
                        }
                    }
                }
            }
        });
        dx
    }
}

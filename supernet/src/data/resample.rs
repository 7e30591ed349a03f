//! Resampling of a window of stored pixels to a square of normalised f32, with one interpolation.
//!
//! The filter is a triangle as wide as the scale when shrinking (antialiased, like the bilinear resize of PIL and
//! torchvision) and plain bilinear when enlarging. Pixels outside the window have no influence.

/// Pixels of a rectangle in an image: RGB u8 rows, `stride` bytes apart.
pub(super) struct Window<'a> {
    pub pixels: &'a [u8],
    pub stride: usize,
    pub width: usize,
    pub height: usize,
}

/// The map of a channel's byte value: `v * scale + offset`.
#[derive(Clone, Copy)]
pub(super) struct Affine {
    pub scale: [f32; 3],
    pub offset: [f32; 3],
}

/// Buffers of one thread, reused from image to image.
#[derive(Default)]
pub(super) struct Resampler {
    columns: Taps,
    rows: Taps,
    row: Vec<f32>,
}

impl Resampler {
    /// Writes the window as `[side, side, 3]` into `out`, mirrored left to right if `flip`.
    pub fn write(&mut self, window: &Window, side: usize, flip: bool, affine: Affine, out: &mut [f32]) {
        let bytes = window.width * 3;
        if window.width == side && window.height == side {
            for (y, line) in out.chunks_exact_mut(side * 3).enumerate() {
                copy(&window.pixels[y * window.stride..][..bytes], flip, affine, line);
            }
            return;
        }
        self.columns.set(window.width, side);
        self.rows.set(window.height, side);
        self.row.resize(bytes, 0.0);
        for (y, line) in out.chunks_exact_mut(side * 3).enumerate() {
            // Rows first, since they are added as whole vectors.
            let (start, weights) = self.rows.of(y);
            let mut first = true;
            for (k, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
                let source = &window.pixels[(start + k) * window.stride..][..bytes];
                let pairs = self.row.iter_mut().zip(source);
                if first {
                    pairs.for_each(|(sum, &value)| *sum = weight * f32::from(value));
                } else {
                    pairs.for_each(|(sum, &value)| *sum += weight * f32::from(value));
                }
                first = false;
            }
            for x in 0..side {
                let (start, weights) = self.columns.of(x);
                let mut sum = [0.0f32; 3];
                for (value, &weight) in self.row[start * 3..].chunks_exact(3).zip(weights) {
                    for channel in 0..3 {
                        sum[channel] += weight * value[channel];
                    }
                }
                let x = if flip { side - 1 - x } else { x };
                for channel in 0..3 {
                    line[x * 3 + channel] = sum[channel] * affine.scale[channel] + affine.offset[channel];
                }
            }
        }
    }
}

fn copy(source: &[u8], flip: bool, affine: Affine, line: &mut [f32]) {
    let put = |(to, from): (&mut [f32], &[u8])| {
        for channel in 0..3 {
            to[channel] = f32::from(from[channel]) * affine.scale[channel] + affine.offset[channel];
        }
    };
    let pixels = line.chunks_exact_mut(3);
    if flip {
        pixels.zip(source.chunks_exact(3).rev()).for_each(put)
    } else {
        pixels.zip(source.chunks_exact(3)).for_each(put)
    }
}

/// Weights along one axis: output `o` is a sum over `count` inputs from `starts[o]`.
#[derive(Default)]
struct Taps {
    sizes: (usize, usize),
    count: usize,
    starts: Vec<usize>,
    weights: Vec<f32>,
}

impl Taps {
    /// Prepares `output` sums over `input` values; does nothing if the sizes are those of the last image.
    fn set(&mut self, input: usize, output: usize) {
        if self.sizes == (input, output) {
            return;
        }
        self.sizes = (input, output);
        let scale = input as f64 / output as f64;
        let support = scale.max(1.0);
        self.count = ((2.0 * support).ceil() as usize + 1).min(input);
        self.starts.clear();
        self.weights.clear();
        for o in 0..output {
            let centre = (o as f64 + 0.5) * scale;
            let start = ((centre - support).floor().max(0.0) as usize).min(input - self.count);
            let weight = |i: usize| (1.0 - ((i as f64 + 0.5 - centre) / support).abs()).max(0.0);
            let sum: f64 = (start..start + self.count).map(weight).sum();
            self.starts.push(start);
            self.weights.extend((start..start + self.count).map(|i| (weight(i) / sum) as f32));
        }
    }

    fn of(&self, output: usize) -> (usize, &[f32]) {
        (self.starts[output], &self.weights[output * self.count..][..self.count])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in f64 and two-dimensional, with a weight for every pixel of the window.
    fn reference(window: &Window, side: usize) -> Vec<f64> {
        let axis = |size: usize, o: usize, i: usize| {
            let scale = size as f64 / side as f64;
            let distance = (i as f64 + 0.5) - (o as f64 + 0.5) * scale;
            (1.0 - distance.abs() / scale.max(1.0)).max(0.0)
        };
        let mut out = Vec::new();
        for oy in 0..side {
            for ox in 0..side {
                for channel in 0..3 {
                    let (mut sum, mut total) = (0.0, 0.0);
                    for y in 0..window.height {
                        for x in 0..window.width {
                            let weight = axis(window.height, oy, y) * axis(window.width, ox, x);
                            sum += weight * f64::from(window.pixels[y * window.stride + x * 3 + channel]);
                            total += weight;
                        }
                    }
                    out.push(sum / total);
                }
            }
        }
        out
    }

    const AFFINE: Affine = Affine { scale: [0.5, 1.0, 2.0], offset: [1.0, 0.0, -3.0] };

    #[test]
    fn agrees_with_the_definition_at_odd_sizes() {
        let pixels: Vec<u8> = (0..60 * 50 * 3).map(|i: usize| (i * 7919 % 256) as u8).collect();
        let mut resampler = Resampler::default();
        for (width, height, side) in
            [(32, 32, 24), (32, 32, 16), (17, 40, 9), (5, 3, 11), (1, 1, 4), (45, 50, 50), (60, 2, 1)]
        {
            let window = Window { pixels: &pixels[9..], stride: 60 * 3, width: width.min(57), height: height.min(49) };
            let expected = reference(&window, side);
            for flip in [false, true] {
                let mut out = vec![f32::NAN; side * side * 3];
                resampler.write(&window, side, flip, AFFINE, &mut out);
                for (i, &value) in out.iter().enumerate() {
                    let (y, x, channel) = (i / 3 / side, i / 3 % side, i % 3);
                    let x = if flip { side - 1 - x } else { x };
                    let wanted = expected[(y * side + x) * 3 + channel] * f64::from(AFFINE.scale[channel])
                        + f64::from(AFFINE.offset[channel]);
                    assert!(
                        (f64::from(value) - wanted).abs() < 2e-4,
                        "{width}x{height} to {side}: {value}, not {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn equal_sizes_are_copied_exactly() {
        let pixels: Vec<u8> = (0..7 * 7 * 3).map(|i| (i * 5) as u8).collect();
        let window = Window { pixels: &pixels[3..], stride: 21, width: 6, height: 6 };
        let mut out = vec![0.0; 6 * 6 * 3];
        let plain = Affine { scale: [1.0; 3], offset: [0.0; 3] };
        Resampler::default().write(&window, 6, true, plain, &mut out);
        assert_eq!(out[..3], [18.0, 19.0, 20.0].map(|i| f32::from((i as usize * 5) as u8)));
    }
}

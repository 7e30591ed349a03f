//! The images of the built-in dataset: drawn 32x32 images of ten classes, in which a network's size matters.
//!
//! Each image shows one object in random colours, place, size and turn, on a background with a gradient, specks and
//! noise. Seven classes differ in shape or coarse pattern, which a small network sees at 16 pixels. The others differ
//! in details of two to four pixels (fine stripes, fine checks, the gap of a ring), which shrinking blurs and which
//! take width and depth to tell apart. Contrasts go down to the noise, so that no network is perfect. Every class looks
//! the same in a mirror.

use super::pixels::Image;
use crate::seed::{Stream, generator};
use rand::Rng;
use rand::rngs::StdRng;
use std::borrow::Cow;
use std::f32::consts::TAU;
use std::ops::Range;

pub(super) const SIDE: usize = 32;
pub(super) const CLASSES: [&str; 10] = [
    "plain",
    "fine stripes",
    "fine checks",
    "coarse stripes",
    "coarse checks",
    "ring",
    "open ring",
    "cross",
    "pair",
    "four",
];

/// Range of an image's largest noise, in grey levels.
const NOISE: Range<f32> = 8.0..48.0;
/// Ranges of the colour channels of the background and of objects.
const GROUND: Range<f32> = 20.0..130.0;
const OBJECT: Range<f32> = 100.0..215.0;
/// Range of an object's size in pixels.
const RADIUS: Range<f32> = 8.0..12.0;
/// Largest distance of an object from the centre in each direction, in pixels.
const SHIFT: f32 = 5.0;
/// Ranges of the periods of fine and coarse patterns in pixels, and of their amplitude in grey levels.
const FINE: Range<f32> = 2.8..4.4;
const COARSE: Range<f32> = 5.0..8.0;
const HEIGHT: Range<f32> = 14.0..70.0;
/// Range of half the width of a ring's gap, in pixels.
const GAP: Range<f32> = 0.8..2.4;

/// Image `number` of the set generated from `seed`.
pub(super) fn image(seed: u64, number: u64) -> Image<'static> {
    let mut pixels = vec![0; SIDE * SIDE * 3];
    draw(seed, number, &mut pixels);
    Image { width: SIDE, height: SIDE, pixels: Cow::Owned(pixels) }
}

/// Class of an image. Classes alternate, so that any number of images is balanced.
pub(super) fn class(number: u64) -> u32 {
    (number % CLASSES.len() as u64) as u32
}

type Colour = [f32; 3];
type Canvas = [Colour; SIDE * SIDE];

/// A shape, given by its signed distance in pixels (negative inside) from upright coordinates relative to its centre.
#[derive(Clone, Copy)]
enum Shape {
    Disc(f32),
    Square(f32),
    Ring { radius: f32, half_width: f32, gap: f32 },
    Cross { arm: f32, half_width: f32 },
}

impl Shape {
    fn distance(self, x: f32, y: f32) -> f32 {
        match self {
            Shape::Disc(radius) => x.hypot(y) - radius,
            Shape::Square(half) => x.abs().max(y.abs()) - half,
            Shape::Ring { radius, half_width, gap } => {
                let ring = (x.hypot(y) - radius).abs() - half_width;
                // A bar from the centre to the right is cut out.
                if x > 0.0 { ring.max(gap - y.abs()) } else { ring }
            }
            Shape::Cross { arm, half_width } => {
                let (long, short) = (x.abs().max(y.abs()), x.abs().min(y.abs()));
                (long - arm).max(short - half_width)
            }
        }
    }
}

/// Filling of a shape: a colour, and waves of brightness across and along the shape.
#[derive(Clone, Copy)]
struct Fill {
    colour: Colour,
    /// Difference in brightness between the colour and a wave's crest.
    height: f32,
    /// Angular frequency per pixel, and phase.
    frequency: f32,
    phase: (f32, f32),
    waves: Waves,
}

#[derive(Clone, Copy, PartialEq)]
enum Waves {
    None,
    Stripes,
    Checks,
}

impl Fill {
    fn shade(&self, x: f32, y: f32) -> f32 {
        let across = || (x * self.frequency + self.phase.0).sin();
        match self.waves {
            Waves::None => 0.0,
            Waves::Stripes => self.height * across(),
            // As much contrast as stripes.
            Waves::Checks => self.height * 1.4 * across() * (y * self.frequency + self.phase.1).sin(),
        }
    }
}

pub(super) fn draw(seed: u64, number: u64, out: &mut [u8]) {
    let rng = &mut generator(seed, Stream::Builtin, &[number]);
    let mut canvas = background(rng);
    specks(&mut canvas, rng, 2);
    object(&mut canvas, class(number), rng);
    specks(&mut canvas, rng, 1);
    let noise = rng.random_range(NOISE);
    for (pixel, colour) in out.chunks_exact_mut(3).zip(&canvas) {
        for channel in 0..3 {
            // The sum of two uniform numbers approximates a normal distribution well enough.
            let bell = rng.random::<f32>() + rng.random::<f32>() - 1.0;
            pixel[channel] = (colour[channel] + noise * bell).round().clamp(0.0, 255.0) as u8;
        }
    }
}

fn background(rng: &mut StdRng) -> Canvas {
    let (from, to) = (any_colour(rng, GROUND), any_colour(rng, GROUND));
    let (sin, cos) = rng.random_range(0.0..TAU).sin_cos();
    let strength = rng.random_range(0.0..0.4);
    std::array::from_fn(|i| {
        let (x, y) = (i % SIDE, i / SIDE);
        let along = ((x as f32 - 15.5) * cos + (y as f32 - 15.5) * sin) / 22.0;
        let part = strength * (0.5 + 0.5 * along);
        std::array::from_fn(|c| from[c] + part * (to[c] - from[c]))
    })
}

/// Paints small distractors that carry no class.
fn specks(canvas: &mut Canvas, rng: &mut StdRng, count: usize) {
    for _ in 0..count {
        let shape = match rng.random_range(0..3) {
            0 => Shape::Disc(rng.random_range(1.0..2.0)),
            1 => Shape::Square(rng.random_range(0.8..1.6)),
            _ => Shape::Cross { arm: rng.random_range(2.0..3.5), half_width: 0.6 },
        };
        let centre = (rng.random_range(1.0..31.0), rng.random_range(1.0..31.0));
        let turn = rng.random_range(0.0..TAU);
        paint(canvas, shape, centre, turn, plain(any_colour(rng, 20.0..235.0)));
    }
}

fn plain(colour: Colour) -> Fill {
    Fill { colour, height: 0.0, frequency: 0.0, phase: (0.0, 0.0), waves: Waves::None }
}

fn object(canvas: &mut Canvas, class: u32, rng: &mut StdRng) {
    let radius: f32 = rng.random_range(RADIUS);
    let middle = SIDE as f32 / 2.0;
    let mut place = || middle + rng.random_range(-SHIFT..SHIFT);
    let (x, y) = (place(), place());
    let solid = plain(any_colour(rng, OBJECT));
    let turn = rng.random_range(0.0..TAU);
    let (fine, coarse) = (TAU / rng.random_range(FINE), TAU / rng.random_range(COARSE));
    let height = rng.random_range(HEIGHT);
    let phase = (rng.random_range(0.0..TAU), rng.random_range(0.0..TAU));
    let half_width = rng.random_range(1.2..2.0);
    let gap = rng.random_range(GAP);
    let blob = if rng.random() { Shape::Disc(radius) } else { Shape::Square(radius * 0.85) };
    let waves = |waves, frequency| Fill { height, frequency, phase, waves, ..solid };
    let ring = |gap| Shape::Ring { radius: radius - half_width, half_width, gap };
    let (shape, fill) = match class {
        0 => (blob, solid),
        1 => (blob, waves(Waves::Stripes, fine)),
        2 => (blob, waves(Waves::Checks, fine)),
        3 => (blob, waves(Waves::Stripes, coarse)),
        4 => (blob, waves(Waves::Checks, coarse)),
        // A gap below zero cuts nothing.
        5 => (ring(-1.0), solid),
        6 => (ring(gap), solid),
        7 => (Shape::Cross { arm: radius, half_width: half_width + 0.5 }, solid),
        parts => {
            let count = if parts == 8 { 2 } else { 4 };
            let part = Shape::Disc(radius * if parts == 8 { 0.45 } else { 0.38 });
            for i in 0..count {
                let (sin, cos) = (turn + TAU * i as f32 / count as f32).sin_cos();
                let reach = radius * 0.62;
                paint(canvas, part, (x + reach * cos, y + reach * sin), turn, solid);
            }
            return;
        }
    };
    paint(canvas, shape, (x, y), turn, fill);
}

/// Paints a shape with smooth edges.
fn paint(canvas: &mut Canvas, shape: Shape, (cx, cy): (f32, f32), turn: f32, fill: Fill) {
    let (sin, cos) = turn.sin_cos();
    for (i, pixel) in canvas.iter_mut().enumerate() {
        let (x, y) = ((i % SIDE) as f32 + 0.5 - cx, (i / SIDE) as f32 + 0.5 - cy);
        let (x, y) = (x * cos + y * sin, y * cos - x * sin);
        let distance = shape.distance(x, y);
        if distance >= 0.5 {
            continue;
        }
        let cover = (0.5 - distance).min(1.0);
        let shade = fill.shade(x, y);
        for (value, colour) in pixel.iter_mut().zip(fill.colour) {
            *value += cover * (colour + shade - *value);
        }
    }
}

fn any_colour(rng: &mut StdRng, range: Range<f32>) -> Colour {
    std::array::from_fn(|_| rng.random_range(range.clone()))
}

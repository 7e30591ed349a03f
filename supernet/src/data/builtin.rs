//! The built-in dataset: drawn 32x32 images of ten classes, in which a network's size matters.
//!
//! Each image shows one object in random colours, place, size and turn, on a background with a gradient, specks and
//! noise. Five shapes come in two kinds each that differ in details of two to three pixels or in how parts lie to each other: easy to
//! confuse at 16 pixels or for a network that sees little context, easy to tell at 32 pixels for one that is large enough. Contrasts go down to the noise, so
//! that no network is perfect. Every class looks the same in a mirror.

use super::split::{Image, Pixels, Store};
use super::{DataOptions, Loaded};
use crate::seed::{Purpose, generator};
use crate::{Error, Result};
use rand::Rng;
use rand::rngs::StdRng;
use rayon::prelude::*;
use std::borrow::Cow;
use std::f32::consts::TAU;

const SIDE: usize = 32;
const CLASSES: [&str; 10] = [
    "disc",
    "striped disc",
    "ring",
    "open ring",
    "square",
    "striped square",
    "triangle",
    "cross",
    "pair of a kind",
    "odd pair",
];
/// Number of the first test image; more training images than that would be drawn from the test images.
const FIRST_TEST: u64 = 1 << 40;

pub(super) fn open(options: &DataOptions) -> Result<Loaded> {
    let store = |first: u64, count: usize| {
        let bytes_all = count * SIDE * SIDE * 3;
        let pixels = if bytes_all <= options.cache_bytes {
            let mut bytes = vec![0; bytes_all];
            bytes
                .par_chunks_exact_mut(SIDE * SIDE * 3)
                .enumerate()
                .for_each(|(i, out)| draw(options.seed, first + i as u64, out));
            Pixels::Uniform { width: SIDE, height: SIDE, bytes }
        } else {
            Pixels::Builtin { seed: options.seed, first }
        };
        Store { labels: (0..count).map(|i| class(first + i as u64)).collect(), pixels }
    };
    for (count, what) in [(options.builtin_train, "training"), (options.builtin_test, "test")] {
        if count < CLASSES.len() || count > u32::MAX as usize {
            return Err(Error::Data(format!(
                "builtin: {count} {what} images asked; expected {} to {}",
                CLASSES.len(),
                u32::MAX
            )));
        }
    }
    Ok(Loaded {
        classes: CLASSES.map(String::from).to_vec(),
        train: store(0, options.builtin_train),
        validation: None,
        test: store(FIRST_TEST, options.builtin_test),
        skipped: 0,
    })
}

/// Image `number` of the set that `seed` makes.
pub(super) fn image(seed: u64, number: u64) -> Image<'static> {
    let mut pixels = vec![0; SIDE * SIDE * 3];
    draw(seed, number, &mut pixels);
    Image { width: SIDE, height: SIDE, pixels: Cow::Owned(pixels) }
}

/// Classes take turns, so that any number of images is balanced.
fn class(number: u64) -> u32 {
    (number % CLASSES.len() as u64) as u32
}

type Colour = [f32; 3];
type Canvas = [Colour; SIDE * SIDE];

/// A shape as its signed distance in pixels (negative inside) from coordinates relative to its centre, turned upright.
#[derive(Clone, Copy)]
enum Shape {
    Disc(f32),
    Ring { radius: f32, half_width: f32, gap: f32 },
    Square(f32),
    Triangle(f32),
    Cross { arm: f32, half_width: f32 },
}

impl Shape {
    fn distance(self, x: f32, y: f32) -> f32 {
        match self {
            Shape::Disc(radius) => x.hypot(y) - radius,
            Shape::Ring { radius, half_width, gap } => {
                let ring = (x.hypot(y) - radius).abs() - half_width;
                // The gap is a bar from the centre to the right.
                let cut = if x > 0.0 { gap - y.abs() } else { gap - x.hypot(y) };
                if gap > 0.0 { ring.max(cut) } else { ring }
            }
            Shape::Square(half) => x.abs().max(y.abs()) - half,
            Shape::Triangle(inradius) => {
                let slanted = 0.866 * x.abs() - 0.5 * y;
                slanted.max(y) - inradius
            }
            Shape::Cross { arm, half_width } => {
                let (long, short) = (x.abs().max(y.abs()), x.abs().min(y.abs()));
                (long - arm).max(short - half_width)
            }
        }
    }
}

/// What fills a shape.
#[derive(Clone, Copy)]
struct Fill {
    colour: Colour,
    /// Stripes across the shape: their difference in brightness, angular frequency a pixel, direction and phase.
    stripes: Option<(f32, f32, f32, f32)>,
}

fn draw(seed: u64, number: u64, out: &mut [u8]) {
    let rng = &mut generator(seed, Purpose::Builtin, &[number]);
    let mut canvas = background(rng);
    specks(&mut canvas, rng, 3);
    object(&mut canvas, class(number), rng);
    specks(&mut canvas, rng, 2);
    let noise = rng.random_range(NOISE.0..NOISE.1);
    for (pixel, colour) in out.chunks_exact_mut(3).zip(&canvas) {
        for channel in 0..3 {
            // The sum of two uniform numbers is close enough to a bell.
            let bell = rng.random::<f32>() + rng.random::<f32>() - 1.0;
            pixel[channel] = (colour[channel] + noise * bell).round().clamp(0.0, 255.0) as u8;
        }
    }
}

const NOISE: (f32, f32) = (10.0, 60.0);

fn background(rng: &mut StdRng) -> Canvas {
    let (from, to) = (any_colour(rng), any_colour(rng));
    let (sin, cos) = rng.random_range(0.0..TAU).sin_cos();
    let strength = rng.random_range(0.0..0.4);
    std::array::from_fn(|i| {
        let (x, y) = (i % SIDE, i / SIDE);
        let along = ((x as f32 - 15.5) * cos + (y as f32 - 15.5) * sin) / 22.0;
        let part = strength * (0.5 + 0.5 * along);
        std::array::from_fn(|c| from[c] + part * (to[c] - from[c]))
    })
}

fn specks(canvas: &mut Canvas, rng: &mut StdRng, count: usize) {
    for _ in 0..count {
        let shape = match rng.random_range(0..3) {
            0 => Shape::Disc(rng.random_range(1.0..2.2)),
            1 => Shape::Square(rng.random_range(0.8..1.8)),
            _ => Shape::Cross { arm: rng.random_range(2.0..4.0), half_width: 0.7 },
        };
        let centre = (rng.random_range(1.0..31.0), rng.random_range(1.0..31.0));
        let fill = Fill { colour: any_colour(rng), stripes: None };
        paint(canvas, shape, centre, rng.random_range(0.0..TAU), fill);
    }
}

fn object(canvas: &mut Canvas, class: u32, rng: &mut StdRng) {
    let radius: f32 = rng.random_range(6.0..10.0);
    let margin = radius + 1.0;
    let mut place = || rng.random_range(margin..SIDE as f32 - margin);
    let (x, y) = (place(), place());
    let ground = canvas[y as usize * SIDE + x as usize];
    let colour = contrasting(ground, rng);
    let turn = rng.random_range(0.0..TAU);
    let stripes = (
        rng.random_range(14.0..70.0),
        TAU / rng.random_range(2.4..3.6),
        rng.random_range(0.0..TAU),
        rng.random_range(0.0..TAU),
    );
    let plain = Fill { colour, stripes: None };
    let striped = Fill { colour, stripes: Some(stripes) };
    let half_width = rng.random_range(1.2..1.9);
    let gap = rng.random_range(0.7..2.0);
    let ring = |gap| Shape::Ring { radius: radius - half_width, half_width, gap };
    let single = match class {
        0 => (Shape::Disc(radius), plain),
        1 => (Shape::Disc(radius), striped),
        2 => (ring(0.0), plain),
        3 => (ring(gap), plain),
        4 => (Shape::Square(radius * 0.85), plain),
        5 => (Shape::Square(radius * 0.85), striped),
        6 => (Shape::Triangle(radius * 0.6), plain),
        7 => (Shape::Cross { arm: radius, half_width: half_width + 0.6 }, plain),
        _ => {
            // Two small shapes at opposite ends of the object's place, alike or not.
            let small = radius * 0.42;
            let (disc, square) = (Shape::Disc(small), Shape::Square(small * 0.9));
            let first = if rng.random() { disc } else { square };
            let other = if matches!(first, Shape::Disc(_)) { square } else { disc };
            let second = if class == 8 { first } else { other };
            let (sin, cos) = turn.sin_cos();
            let reach = radius - small;
            paint(canvas, first, (x + reach * cos, y + reach * sin), turn, plain);
            paint(canvas, second, (x - reach * cos, y - reach * sin), turn, plain);
            return;
        }
    };
    paint(canvas, single.0, (x, y), turn, single.1);
}

/// Draws a shape with smooth edges.
fn paint(canvas: &mut Canvas, shape: Shape, (cx, cy): (f32, f32), turn: f32, fill: Fill) {
    let (sin, cos) = turn.sin_cos();
    for (i, pixel) in canvas.iter_mut().enumerate() {
        let (x, y) = ((i % SIDE) as f32 + 0.5 - cx, (i / SIDE) as f32 + 0.5 - cy);
        if x.abs().max(y.abs()) > 16.0 {
            continue;
        }
        let distance = shape.distance(x * cos + y * sin, y * cos - x * sin);
        if distance >= 0.5 {
            continue;
        }
        let cover = (0.5 - distance).min(1.0);
        let shade = fill.stripes.map_or(0.0, |(height, frequency, direction, phase)| {
            height * ((x * direction.cos() + y * direction.sin()) * frequency + phase).sin()
        });
        for channel in 0..3 {
            pixel[channel] += cover * (fill.colour[channel] + shade - pixel[channel]);
        }
    }
}

fn any_colour(rng: &mut StdRng) -> Colour {
    std::array::from_fn(|_| rng.random_range(30.0..225.0))
}

/// A colour that stands out from `ground`, sometimes barely.
fn contrasting(ground: Colour, rng: &mut StdRng) -> Colour {
    let wanted: f32 = rng.random_range(CONTRAST.0..CONTRAST.1);
    loop {
        let colour = any_colour(rng);
        let distance = (0..3).map(|c| (colour[c] - ground[c]).powi(2)).sum::<f32>().sqrt();
        if distance > 1.0 {
            return std::array::from_fn(|c| ground[c] + (colour[c] - ground[c]) * wanted / distance);
        }
    }
}

const CONTRAST: (f32, f32) = (40.0, 130.0);

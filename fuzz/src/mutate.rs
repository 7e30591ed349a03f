//! Random damage to files.

use rand::Rng;

/// Values at which counts, sizes and offsets tend to go wrong.
const EDGES: [u64; 12] = [0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];
/// Numbers and names to insert into text files.
const WORDS: [&str; 24] = [
    "0",
    "-1",
    "1",
    "2",
    "255",
    "65536",
    "4294967296",
    "18446744073709551615",
    "1e308",
    "-1e308",
    "1e-320",
    "nan",
    "inf",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    ",",
    "|",
    "=",
    "\u{0}",
    "é",
    "9999999999999999999999",
];

/// `base` with one or more kinds of damage; `other` is a source of parts.
pub fn mutate(base: &[u8], other: &[u8], rng: &mut impl Rng) -> Vec<u8> {
    let mut bytes = base.to_vec();
    damage(&mut bytes, other, rng);
    while rng.random_ratio(1, 3) {
        damage(&mut bytes, other, rng);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, other: &[u8], rng: &mut impl Rng) {
    // Headers matter most, so half of all damage is near the start.
    let mut place = |len: usize| -> usize {
        let near = if rng.random() { len } else { len.min(64) };
        rng.random_range(0..=near.min(len))
    };
    let at = place(bytes.len());
    let part = {
        let from = place(other.len());
        from..(from + 1 + place(64)).min(other.len())
    };
    match rng.random_range(0..10) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = rng.random(),
        2 => bytes.truncate(at),
        3 => {
            let end = (at + rng.random_range(1..32)).min(bytes.len());
            bytes.drain(at..end);
        }
        4 => drop(bytes.splice(at..at, other[part].iter().copied())),
        5 => {
            let end = (at + part.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&other[part][..end - at]);
        }
        6 => {
            let (edge, width) = (EDGES[rng.random_range(0..EDGES.len())], 1 << rng.random_range(0..4));
            let mut field = edge.to_le_bytes()[..width].to_vec();
            if rng.random() {
                field.reverse();
            }
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&field[..end - at]);
        }
        7 | 8 => {
            // The number at or after this position, if there is one, becomes another word.
            let word = WORDS[rng.random_range(0..WORDS.len())].bytes();
            let start = bytes[at..].iter().position(u8::is_ascii_digit).map_or(at, |found| at + found);
            let digits = bytes[start..].iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b'.')).count();
            bytes.splice(start..start + digits, word);
        }
        _ => {
            let end = (at + rng.random_range(1..64)).min(bytes.len());
            let copy = bytes[at..end].to_vec();
            let to = rng.random_range(0..=bytes.len());
            bytes.splice(to..to, copy);
        }
    }
}

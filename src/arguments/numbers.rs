//! Ranges of all numbers on the command line, as clap's value parsers.
//!
//! Numbers that no computation can use are refused before anything else happens. Limits that depend on the machine's
//! memory are checked once the network is known: see [`memory`](crate::process::memory).

use ofa_evaluate::export::OPSETS;
use ofa_supernet::graph::MAX_SIZE;
use std::ops::RangeInclusive;

/// Threads.
pub fn threads(text: &str) -> Result<usize, String> {
    whole(text, 1..=1024)
}

/// Images that are computed together.
pub fn batch(text: &str) -> Result<usize, String> {
    whole(text, 1..=65_536)
}

/// Version of ONNX's operators.
pub fn opset(text: &str) -> Result<usize, String> {
    whole(text, OPSETS)
}

/// Bits of quantised weights.
pub fn weight_bits(text: &str) -> Result<u8, String> {
    Ok(whole(text, 7..=8)? as u8)
}

/// Height and width of an image.
pub fn resolution(text: &str) -> Result<usize, String> {
    whole(text, 1..=MAX_SIZE)
}

/// Classes of a new network.
pub fn classes(text: &str) -> Result<usize, String> {
    whole(text, 2..=65_536)
}

/// Classes that are shown of a prediction.
pub fn shown_classes(text: &str) -> Result<usize, String> {
    whole(text, 1..=65_536)
}

/// Steps, rounds and trials that are measured one after the other.
pub fn repetitions(text: &str) -> Result<usize, String> {
    whole(text, 1..=100_000)
}

/// Subnets whose networks are in memory at once.
pub fn checked_subnets(text: &str) -> Result<usize, String> {
    whole(text, 1..=1000)
}

/// Networks from whose times those of layers are solved for.
pub fn networks(text: &str) -> Result<usize, String> {
    whole(text, 1..=1000)
}

/// A part of 1, or a percentage.
pub fn share(text: &str) -> Result<f64, String> {
    let expected = || "expected a percentage from 0% to 100%, or a number from 0 to 1".to_string();
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |percent| (percent, 0.01));
    let share = number.trim().parse::<f64>().map_err(|_| expected())? * unit;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(expected()) }
}

/// Subnets that are measured one after the other.
pub fn subnets(text: &str) -> Result<usize, String> {
    whole(text, 1..=1_000_000)
}

/// Images of a data set; a number above its size means all.
pub fn images(text: &str) -> Result<usize, String> {
    whole(text, 1..=1_000_000_000)
}

/// Images of a data set, where 0 is allowed.
pub fn images_or_none(text: &str) -> Result<usize, String> {
    whole(text, 0..=1_000_000_000)
}

/// Images that are generated and held in memory, of 3 KiB each.
pub fn generated_images(text: &str) -> Result<usize, String> {
    whole(text, 10..=1_000_000)
}

/// Networks of a predictor.
pub fn members(text: &str) -> Result<usize, String> {
    whole(text, 1..=64)
}

/// Steps that may be skipped.
pub fn skipped(text: &str) -> Result<usize, String> {
    whole(text, 0..=1_000_000_000)
}

/// Subnets that a search scores; each takes some hundred bytes.
pub fn evaluations(text: &str) -> Result<usize, String> {
    whole(text, 1..=10_000_000)
}

/// Runs of a search with different seeds.
pub fn seeds(text: &str) -> Result<u64, String> {
    whole(text, 1..=1000).map(|count| count as u64)
}

/// A seed, at most the largest integer that a configuration in TOML can hold.
pub fn seed(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a whole number from 0 to {}", i64::MAX);
    text.parse::<u64>().ok().filter(|&seed| seed <= i64::MAX as u64).ok_or_else(expected)
}

/// Epochs.
pub fn epochs(text: &str) -> Result<f64, String> {
    above_zero(text, 1e5)
}

/// Hours of training.
pub fn hours(text: &str) -> Result<f64, String> {
    above_zero(text, 1e4)
}

/// A learning rate.
pub fn learning_rate(text: &str) -> Result<f64, String> {
    above_zero(text, 100.0)
}

/// An addend that keeps a division finite.
pub fn epsilon(text: &str) -> Result<f64, String> {
    above_zero(text, 1.0)
}

/// Standard deviations.
pub fn deviations(text: &str) -> Result<f64, String> {
    within(text, 0.0..=1e6)
}

/// Gigabytes per second.
pub fn bandwidth(text: &str) -> Result<f64, String> {
    above_zero(text, 1e6)
}

/// Microseconds.
pub fn microseconds(text: &str) -> Result<f64, String> {
    within(text, 0.0..=1e9)
}

/// A whole number in a range.
pub fn whole(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let expected = || format!("expected a whole number from {} to {}", range.start(), range.end());
    text.parse().ok().filter(|number| range.contains(number)).ok_or_else(expected)
}

/// A number in a range; NaN is refused.
pub fn within(text: &str, range: RangeInclusive<f64>) -> Result<f64, String> {
    let expected = || format!("expected a number from {} to {}", range.start(), range.end());
    text.parse().ok().filter(|number| range.contains(number)).ok_or_else(expected)
}

/// A number above 0 and up to `most`.
pub fn above_zero(text: &str, most: f64) -> Result<f64, String> {
    let allowed = |number: &f64| *number > 0.0 && *number <= most;
    text.parse().ok().filter(allowed).ok_or_else(|| format!("expected a number above 0 and up to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_their_range_are_refused_with_the_range() {
        assert_eq!((batch("1"), batch("65536"), images_or_none("0")), (Ok(1), Ok(65_536), Ok(0)));
        for text in ["0", "65537", "18446744073709551615", "18446744073709551616", "-1", "1.5", "1e3", "", "x"] {
            assert_eq!(batch(text), Err("expected a whole number from 1 to 65536".into()), "{text}");
        }
        assert_eq!(
            (epochs("1e-3"), within("0", 0.0..=1.0), within("-0.07", -10.0..=0.0)),
            (Ok(1e-3), Ok(0.0), Ok(-0.07))
        );
        for text in ["0", "-1", "nan", "inf", "-inf", "1e6", "", "x"] {
            assert_eq!(epochs(text), Err("expected a number above 0 and up to 100000".into()), "{text}");
        }
        for text in ["-0.1", "1.1", "nan", "inf"] {
            assert_eq!(within(text, 0.0..=1.0), Err("expected a number from 0 to 1".into()), "{text}");
        }
        assert_eq!((share("5%"), share("0.05"), share("100 %")), (Ok(0.05), Ok(0.05), Ok(1.0)));
        assert!(["-1%", "101%", "2", "nan", "", "%"].iter().all(|text| share(text).is_err()));
        assert_eq!(seed("9223372036854775807"), Ok(i64::MAX as u64));
        assert!(seed("9223372036854775808").unwrap_err().ends_with("to 9223372036854775807"));
    }
}

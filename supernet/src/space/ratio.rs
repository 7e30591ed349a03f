//! Ratios of channel counts.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A ratio of channel counts, exact to a thousandth (so that it can be compared, hashed and printed without rounding).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio(pub(super) u32);

/// Middle channels of a block as a multiple of its input channels (inverted residuals) or of its output channels
/// (bottlenecks).
pub type ExpandRatio = Ratio;

impl Ratio {
    /// The ratio as a number.
    pub fn value(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl TryFrom<f64> for Ratio {
    type Error = String;
    fn try_from(value: f64) -> Result<Self, String> {
        let thousandths = (value * 1000.0).round();
        if !(1.0..=100_000.0).contains(&thousandths) {
            return Err(format!("ratio {value} is not between 0.001 and 100"));
        }
        Ok(Ratio(thousandths as u32))
    }
}

impl From<Ratio> for f64 {
    fn from(ratio: Ratio) -> f64 {
        ratio.value()
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.value())
    }
}

//! Readers of forms that earlier versions wrote. Nothing writes them any more.
//!
//! A key that is only missing in older files has a default beside its field instead.

use crate::space::ConvSpec;
use serde::{Deserialize, Deserializer};

/// The stem of a network: before there were ResNets a single convolution, not a list.
pub(crate) fn stem<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ConvSpec>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stem {
        One(ConvSpec),
        Several(Vec<ConvSpec>),
    }
    Ok(match Stem::deserialize(deserializer)? {
        Stem::One(conv) => vec![conv],
        Stem::Several(list) => list,
    })
}

#[cfg(test)]
mod tests {
    use crate::space::{NetworkSpec, preset};

    #[test]
    fn descriptions_of_before_resnets_can_be_read() {
        let network = preset("tiny").unwrap().network(&preset("tiny").unwrap().smallest(), 3).unwrap();
        let mut json = serde_json::to_value(&network).unwrap();
        assert_eq!(serde_json::from_value::<NetworkSpec>(json.clone()).unwrap(), network);
        json["stem"] = json["stem"][0].clone();
        assert!(!json.to_string().contains("max_pool") && !json["stem"].to_string().contains("residual"));
        assert_eq!(serde_json::from_value::<NetworkSpec>(json).unwrap(), network);
    }
}

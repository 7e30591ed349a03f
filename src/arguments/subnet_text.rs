//! Subnets as the command line takes them.

use anyhow::Result;
use ofa_supernet::import::Setting;
use ofa_supernet::{SearchSpace, Subnet};

/// A subnet that every space has by this name.
pub fn named(space: &SearchSpace, name: &str) -> Option<Subnet> {
    match name {
        "smallest" => Some(space.smallest()),
        "middle" => Some(space.middle()),
        "largest" => Some(space.largest()),
        _ => None,
    }
}

/// The subnet that `text` means: smallest, middle or largest, its text, or once-for-all's notation.
///
/// # Errors
/// Text that means no subnet of `space`.
pub fn read(space: &SearchSpace, text: &str) -> Result<Subnet> {
    let subnet = match named(space, text) {
        Some(subnet) => subnet,
        None if text.trim_start().starts_with('{') => {
            let setting: Setting = text.parse()?;
            setting.subnet(space, setting.resolution()?)?
        }
        None => text.parse()?,
    };
    space.check(&subnet)?;
    Ok(subnet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_text_and_published_notation_are_read() {
        let space = SearchSpace::named("tiny").unwrap();
        assert_eq!(read(&space, "middle").unwrap(), space.middle());
        assert_eq!(read(&space, &space.largest().to_string()).unwrap(), space.largest());
        let published = r#"{"ks": [3, 3, 3, 3], "e": [2, 2, 2, 2], "d": [1, 1], "r": 16}"#;
        assert_eq!(read(&space, published).unwrap(), space.smallest());
        for bad in ["", "smallish", "r999 d1,1 k3|3 e2|2", "{}"] {
            assert!(read(&space, bad).is_err(), "{bad}");
        }
    }
}

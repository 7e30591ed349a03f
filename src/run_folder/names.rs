//! Names of models and search results, which become file names.

use ofa_evaluate::profile::check_plain;

/// Longest name in bytes: with the endings of a file and of its temporary copy it stays below the 255 bytes of file
/// systems.
const LONGEST: usize = 200;
/// Hexadecimal digits of the hash that replaces the end of a long name.
const DIGITS: usize = 16;

/// `text` as a name. The end of a long text is replaced by a hash of the whole, so that different texts keep different
/// names.
pub fn short(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_string();
    }
    let mut end = LONGEST - 1 - DIGITS;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // FNV-1a.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{}-{hash:016x}", &text[..end])
}

/// Checks that `name` is a plain name, not a path.
///
/// # Errors
/// One sentence about what is wrong and what is expected, without the name.
pub fn check(name: &str) -> Result<(), String> {
    if name.len() > LONGEST {
        return Err(format!("a name of {} bytes is too long, expected at most {LONGEST}", name.len()));
    }
    check_plain(name, "+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_no_paths() {
        for name in ["this-latency-2ms", "front+any-macs", "r16-d1-1-k3-3", "_x", "a..b", &"a".repeat(LONGEST)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        for name in
            ["", ".", "..", ".hidden", "-x", "../evil", "a/b", "a\\b", "a b", "café", "nul\0", "new\nline", "a|b"]
        {
            assert!(check(name).is_err(), "{name:?}");
        }
        let long = check(&"a".repeat(LONGEST + 1)).unwrap_err();
        assert!(long.contains("201 bytes") && long.contains("200"), "{long}");
    }

    #[test]
    fn a_long_name_is_cut_and_stays_different_from_others() {
        assert_eq!(short("this-latency-12ms"), "this-latency-12ms");
        assert_eq!(short(&"a".repeat(LONGEST)), "a".repeat(LONGEST));
        let (one, other) = (short(&format!("{}1", "é".repeat(200))), short(&format!("{}2", "é".repeat(200))));
        assert!(one.len() <= LONGEST && one.starts_with("éé") && one != other, "{one} {other}");
    }
}

//! Patterns of shards: braces and wildcards.

use std::path::Path;

/// Extensions of shards.
pub const SHARDS: [&str; 2] = ["tar", "parquet"];

/// Most paths that braces stand for.
const MAX_PATHS: usize = 1_000_000;

/// Whether a source of images is a pattern of shards.
pub fn is_pattern(source: &str) -> bool {
    let is_file = SHARDS.iter().any(|extension| source.to_lowercase().ends_with(&format!(".{extension}")));
    (is_file || source.contains(['{', '*', '?'])) && !Path::new(source).is_dir()
}

/// The texts that braces stand for: `{000..011}` counts, with as many digits, and `{a,b}` lists.
pub fn braces(pattern: &str) -> Result<Vec<String>, String> {
    let Some(open) = pattern.find('{') else { return Ok(vec![pattern.to_string()]) };
    let close = pattern[open..].find('}').map(|close| open + close).ok_or("the brace { is not closed")?;
    let (before, inside, after) = (&pattern[..open], &pattern[open + 1..close], &pattern[close + 1..]);
    let inner: Vec<String> = match inside.split_once("..") {
        Some((first, last)) => {
            let number = |text: &str| text.parse::<usize>().map_err(|_| format!("'{text}' is not a number"));
            let (low, high) = (number(first)?, number(last)?);
            if high < low || high - low >= MAX_PATHS {
                return Err(format!("{{{inside}}} must rise, and stand for at most {MAX_PATHS} files"));
            }
            (low..=high).map(|number| format!("{number:0width$}", width = first.len())).collect()
        }
        None => inside.split(',').map(String::from).collect(),
    };
    let rest = braces(after)?;
    if inner.len().saturating_mul(rest.len()) > MAX_PATHS {
        return Err(format!("stands for more than {MAX_PATHS} files"));
    }
    Ok(inner.iter().flat_map(|inner| rest.iter().map(move |rest| format!("{before}{inner}{rest}"))).collect())
}

/// Whether `name` fits a pattern in which `*` is any text and `?` any byte.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', rest @ ..] => (0..=name.len()).any(|skipped| matches(rest, &name[skipped..])),
        [b'?', rest @ ..] => !name.is_empty() && matches(rest, &name[1..]),
        [byte, rest @ ..] => name.first() == Some(byte) && matches(rest, &name[1..]),
    }
}

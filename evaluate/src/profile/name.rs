//! Names that are names of files, and words of limits.

/// Longest name of a device: with a metric, a value and an extension it stays a valid file name on every system.
const LONGEST: usize = 100;

/// Checks that `name` is a plain name and no path: letters, digits, '-', '_', '.' and the characters of `more`.
///
/// # Errors
/// What is expected, without the name.
pub fn check_plain(name: &str, more: &str) -> Result<(), String> {
    let begins = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || more.contains(c);
    if name.starts_with(begins) && name.chars().all(allowed) {
        return Ok(());
    }
    let characters: Vec<String> = "-_.".chars().chain(more.chars()).map(|c| format!("'{c}'")).collect();
    let (last, others) = characters
        .split_last()
        .map_or((String::new(), String::new()), |(last, others)| (last.clone(), others.join(", ")));
    Err(format!("expected letters, digits, {others} and {last}, the first one a letter, digit or '_'"))
}

/// Checks that a profile may be called `name`.
///
/// # Errors
/// One sentence about what is wrong with the name.
pub fn check_name(name: &str) -> Result<(), String> {
    check_plain(name, "").map_err(|expected| format!("device name '{name}': {expected}"))?;
    if name.len() > LONGEST {
        return Err(format!("device name '{name}': {} characters; at most {LONGEST} are allowed", name.len()));
    }
    if name.eq_ignore_ascii_case("any") {
        return Err(format!(
            "device name '{name}': in limits 'any' stands for every device, so no limit could name this one; choose another \
             name"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_file_names_that_limits_can_use() {
        for name in ["this", "pi-4", "note10_cpu.v2", &"a".repeat(100)] {
            check_name(name).unwrap();
        }
        for name in ["", "any", "ANY", "../x", "a/b", "a b", ".hidden", "-x", "ä", &"a".repeat(101)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        let expected = "expected letters, digits, '-', '_', '.' and '+', the first one a letter, digit or '_'";
        assert_eq!((check_plain("a+b", "+"), check_plain("+a", "+")), (Ok(()), Err(expected.into())));
    }
}

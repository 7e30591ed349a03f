//! Names of devices. A name is also part of a file name and of limits.

/// Longest name of a device: with a metric, a value and an extension it stays a valid file name on every system.
const LONGEST: usize = 100;

/// Checks that a profile may be called `name`.
///
/// # Errors
/// One sentence about what is wrong with the name.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with(['.', '-']) || !name.chars().all(allowed) {
        return Err(format!(
            "device name '{name}': expected letters, digits, '-', '_' and '.', the first one a letter, digit or '_'"
        ));
    }
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
    }
}

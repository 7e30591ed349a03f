//! Shell quoting, for command lines that people copy from messages.

use std::path::Path;

/// Quotes `word` for a POSIX shell: unchanged where that is safe, otherwise in single quotes.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,+@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Quotes a path as an argument. A path that begins with a dash gets `./` before it, so that no program reads it as an
/// option.
pub fn path(path: &Path) -> String {
    let text = path.display().to_string();
    quote(&if text.starts_with('-') { format!("./{text}") } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_special_letters_are_quoted_and_others_are_not() {
        for plain in ["run", "../runs/a-b_c.1", "this:latency=2ms", "größe", "a,b+c@d%e"] {
            assert_eq!(quote(plain), plain);
        }
        for (word, quoted) in [
            ("", "''"),
            ("my run", "'my run'"),
            ("it's", r"'it'\''s'"),
            ("a*b", "'a*b'"),
            ("$HOME", "'$HOME'"),
            ("~/run", "'~/run'"),
            ("a|b;c", "'a|b;c'"),
            ("new\nline", "'new\nline'"),
            (r"back\slash", r"'back\slash'"),
        ] {
            assert_eq!(quote(word), quoted);
        }
        assert_eq!(path(Path::new("-run")), "./-run");
        assert_eq!(path(Path::new("-my run")), "'./-my run'");
    }
}

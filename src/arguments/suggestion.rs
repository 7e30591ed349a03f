//! "Did you mean ...?" for names that a configuration does not know.

/// Appends the nearest known name, if one is near enough, to a message such as "unknown field `momentun`, expected one
/// of `seed`, `momentum`".
pub fn with_suggestion(message: String) -> String {
    for kind in ["unknown field `", "unknown variant `"] {
        let Some((_, rest)) = message.split_once(kind) else { continue };
        let Some((unknown, rest)) = rest.split_once('`') else { continue };
        let Some((_, known)) = rest.split_once("expected ") else { continue };
        // Every second part is between backquotes.
        let names = known.split('`').skip(1).step_by(2);
        if let Some(nearest) = nearest(unknown, names) {
            return format!("{message}; did you mean `{nearest}`?");
        }
    }
    message
}

/// The name with the smallest edit distance, if that is at most a third of the name's letters (or 2) and less than all
/// of them.
fn nearest<'a>(unknown: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (changes, name) = names.map(|name| (distance(unknown, name), name)).min()?;
    (changes <= (name.chars().count() / 3).max(2) && changes < name.chars().count()).then_some(name)
}

/// Levenshtein distance: the letters to insert, remove or replace to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for j in 0..b.len() {
            let replaced = diagonal + usize::from(letter != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_nothing_far_fetched() {
        let message =
            |unknown: &str| format!("x.toml:3: unknown field `{unknown}`, expected one of `seed`, `batch`, `momentum`");
        let suggested =
            |unknown: &str| with_suggestion(message(unknown)).strip_prefix(&message(unknown)).unwrap().to_string();
        assert_eq!(suggested("momentun"), "; did you mean `momentum`?");
        assert_eq!(suggested("Batch"), "; did you mean `batch`?");
        assert_eq!(suggested("colour"), "");
        let either = "unknown variant `sandwitch`, expected `uniform` or `sandwich`";
        assert_eq!(with_suggestion(either.into()), format!("{either}; did you mean `sandwich`?"));
        assert_eq!(with_suggestion("no such file".into()), "no such file");
        assert_eq!((distance("kitten", "sitting"), distance("", "abc")), (3, 3));
    }
}

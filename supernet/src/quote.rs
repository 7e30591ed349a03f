//! Foreign text in messages: an error stays one line that a terminal can show, whatever a file holds.

/// Longest quote in characters; `...` stands for the rest.
pub const QUOTE: usize = 100;
/// Longest list such as `[1, 2, 3]`, in characters.
const LIST: usize = 160;
/// Characters kept of the beginning (location and fault) and of the end (what to do) of a long message.
const HEAD: usize = 700;
const TAIL: usize = 300;
/// Characters at either end of a message that are searched for quotes.
const SEARCHED: usize = 8000;

/// `text` prepared for quotes in a message: at most [`QUOTE`] characters, control characters escaped.
pub fn quoted(text: &str) -> String {
    cut(&visible(text), QUOTE)
}

/// `message` as one line: control characters are escaped, long quotes and lists are cut, and a message that is still
/// long loses its middle.
///
/// Messages pass through this function when they are shown, so that code that composes one need not consider hostile
/// text.
pub fn shortened(message: &str) -> String {
    let characters: Vec<char> = without_middle(&visible(message), SEARCHED, SEARCHED).chars().collect();
    let mut line = String::with_capacity(characters.len());
    // Openers without a partner ahead are not searched for again, so that the time stays linear.
    let mut alone = Vec::new();
    let mut at = 0;
    while let Some(&opener) = characters.get(at) {
        at += 1;
        line.push(opener);
        let in_word = at >= 2 && characters[at - 2].is_alphanumeric();
        if !matches!(opener, '\'' | '"' | '`' | '[') || alone.contains(&opener) || (opener == '\'' && in_word) {
            continue;
        }
        let Some(length) = partner(opener, &characters[at..]) else {
            alone.push(opener);
            continue;
        };
        let inside: String = characters[at..at + length].iter().collect();
        line += &cut(&inside, if opener == '[' { LIST } else { QUOTE });
        // The closing quote is consumed here, as it must not open another one.
        line.push(characters[at + length]);
        at += length + 1;
    }
    without_middle(&line, HEAD, TAIL)
}

/// Number of characters before the one that closes `opener`.
fn partner(opener: char, text: &[char]) -> Option<usize> {
    if opener == '[' {
        let mut depth = 1;
        return text.iter().position(|c| {
            depth += i64::from(*c == '[') - i64::from(*c == ']');
            depth == 0
        });
    }
    // An apostrophe inside a word closes nothing.
    let closes = |index: usize| opener != '\'' || text.get(index + 1).is_none_or(|next| !next.is_alphanumeric());
    (0..text.len()).find(|&index| text[index] == opener && closes(index))
}

/// The first `most` characters, followed by `...` if there are more.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

/// The first `head` and the last `tail` characters of `text`, or all of a shorter text.
fn without_middle(text: &str, head: usize, tail: usize) -> String {
    let count = text.chars().count();
    if count <= head + tail {
        return text.to_string();
    }
    let first: String = text.chars().take(head).collect();
    let last: String = text.chars().skip(count - tail).collect();
    format!("{first} ... {last}")
}

/// `text` with control characters and characters that reorder or break lines escaped.
pub fn visible(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(hidden) {
        return text.to_string();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_is_one_line_of_a_hundred_characters() {
        assert_eq!(quoted("cat"), "cat");
        assert_eq!(quoted("a\nb\u{1b}[31m\u{202e}"), "a\\nb\\u{1b}[31m\\u{202e}");
        let long = quoted(&"é".repeat(5000));
        assert_eq!((long.chars().count(), long.ends_with("é...")), (103, true));
    }

    #[test]
    fn quotes_and_lists_in_a_message_are_cut_and_the_rest_stays() {
        let name = "n".repeat(200_000);
        for quote in ['\'', '"', '`'] {
            let message = format!("a.toml:3: unknown field {quote}{name}{quote}, expected one of `seed`, `batch`");
            let short = shortened(&message);
            assert!(
                short.starts_with("a.toml:3: unknown field ") && short.ends_with("expected one of `seed`, `batch`")
            );
            assert!(short.contains("nnn...") && short.len() < 250, "{short}");
            assert_eq!(shortened(&short), short);
        }
        let list: Vec<usize> = (0..40_000).collect();
        let short = shortened(&format!("depths {list:?} must ascend; write [1, 2] or [[1], [2]]"));
        assert!(
            short.contains("[0, 1, 2,") && short.ends_with("...] must ascend; write [1, 2] or [[1], [2]]"),
            "{short}"
        );
        assert!(short.len() < 300, "{short}");
        for unchanged in [
            "run's folder: the space 'tiny' doesn't have 'it''s' and \"x\"",
            "allowed are 'a', 'b' and `c`; [data] or [",
            "/home/o'brien/runs/first/config.toml: the key 'a' is missing",
        ] {
            assert_eq!(shortened(unchanged), unchanged);
        }
    }

    #[test]
    fn a_message_without_quotes_loses_its_middle() {
        let short = shortened(&format!("a: {} expected b", "x ".repeat(100_000)));
        assert!(
            short.starts_with("a: x x") && short.ends_with("x  expected b") && short.len() < 1100,
            "{}",
            short.len()
        );
        assert_eq!(shortened("one\ntwo\r"), "one\\ntwo\\r");
        // Openers without partners must not cost a search each.
        for opener in ['[', '"', '\''] {
            assert!(shortened(&opener.to_string().repeat(3_000_000)).len() < 1100);
        }
    }
}

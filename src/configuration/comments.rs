//! Comments of a file, kept by key when the file is written anew.

use super::ABSENT;
use toml_edit::{Array, Decor, DocumentMut, InlineTable, Item, RawString, Table, Value};

/// Names of a table's entries, in order.
pub fn names_of(table: &Table) -> Vec<String> {
    table.iter().map(|(name, _)| name.to_string()).collect()
}

/// Takes over the comments of `input`, by key, and the form of its numbers and lists where they are equal. Comments of
/// keys that `document` lacks are returned; with `missing` the keys are taken over too.
pub fn keep_comments(document: &mut DocumentMut, input: &DocumentMut, missing: bool) -> Vec<String> {
    let mut keeper = Keeper { missing, lost: Vec::new() };
    let trailing = lines_of(&text(Some(input.trailing())), |_| false);
    keeper.keep_of_table(document.as_table_mut(), input.as_table());
    if has_comment(&trailing) {
        document.set_trailing(trailing);
    }
    keeper.lost
}

struct Keeper {
    /// Whether commented keys that the document lacks are taken over.
    missing: bool,
    /// Comments of keys that the document lacks.
    lost: Vec<String>,
}

impl Keeper {
    fn keep_of_table(&mut self, table: &mut Table, input: &Table) {
        let present = names_of(table);
        for (name, old) in input.iter() {
            let old_key = input.key(name);
            if !table.contains_key(name) {
                self.keep_missing(table, input, name, old);
                continue;
            }
            if let (Some(mut key), Some(old_key)) = (table.key_mut(name), old_key) {
                keep_prefix(key.leaf_decor_mut(), old_key.leaf_decor(), &present);
            }
            let above = old_key.map(|key| text(key.leaf_decor().prefix())).unwrap_or_default();
            match (table.get_mut(name), old) {
                (Some(Item::Value(value)), Item::Value(old)) => keep_value(value, old),
                (Some(Item::Table(inner)), Item::Table(old)) => self.keep_table(inner, old),
                (Some(Item::Table(inner)), Item::Value(Value::InlineTable(old))) => {
                    self.keep_inline(inner, old, &above, &text(old.decor().suffix()));
                }
                (Some(Item::ArrayOfTables(tables)), Item::ArrayOfTables(old)) => {
                    tables.iter_mut().zip(old.iter()).for_each(|(inner, old)| self.keep_table(inner, old));
                }
                (Some(Item::ArrayOfTables(tables)), Item::Value(Value::Array(old))) => {
                    let mut above = above;
                    let last = old.len().saturating_sub(1);
                    for (index, (inner, value)) in tables.iter_mut().zip(old.iter()).enumerate() {
                        above += &text(value.decor().prefix());
                        let behind = if index == last { text(Some(old.trailing())) } else { String::new() };
                        let behind = text(value.decor().suffix()) + &behind;
                        if let Value::InlineTable(old) = value {
                            self.keep_inline(inner, old, &above, &behind);
                        }
                        above.clear();
                    }
                }
                _ => {}
            }
        }
    }

    fn keep_table(&mut self, inner: &mut Table, old: &Table) {
        keep_prefix(inner.decor_mut(), old.decor(), &[]);
        keep_suffix(inner.decor_mut(), old.decor());
        self.keep_of_table(inner, old);
    }

    /// Takes over the comments of a table in braces, with those above and behind it.
    fn keep_inline(&mut self, inner: &mut Table, old: &InlineTable, above: &str, behind: &str) {
        let comments = lines_of(above, |_| false) + &lines_of(behind, |_| false);
        if has_comment(&comments) {
            inner.decor_mut().set_prefix(format!("\n{}", comments.trim_start()));
        }
        self.keep_of_table(inner, &old.clone().into_table());
    }

    fn keep_missing(&mut self, table: &mut Table, input: &Table, name: &str, old: &Item) {
        let above = input.key(name).map(|key| text(key.leaf_decor().prefix())).unwrap_or_default();
        let whole = old.to_string();
        if !has_comment(&above) && !whole.contains('#') {
            return;
        }
        let comments = above.lines().chain(whole.lines()).filter_map(|line| line.find('#').map(|at| &line[at..]));
        self.lost.extend(comments.map(String::from));
        if let (true, Some((key, item))) = (self.missing, input.get_key_value(name)) {
            table.insert_formatted(key, item.clone());
        }
    }
}

/// The comment above an entry. Lines that show a key by its absence go once it is there.
fn keep_prefix(decor: &mut Decor, old: &Decor, present: &[String]) {
    let outdated = |line: &str| {
        let of = ABSENT.iter().find(|(_, _, example)| *example == line);
        of.and_then(|(path, _, _)| path.rsplit('.').next()).is_some_and(|name| present.iter().any(|key| key == name))
    };
    let kept = lines_of(&text(old.prefix()), outdated);
    if has_comment(&kept) {
        decor.set_prefix(kept);
    }
}

/// The lines of a text that are comments or empty, without those that are outdated.
fn lines_of(text: &str, outdated: impl Fn(&str) -> bool) -> String {
    // What follows the last line end is the indentation of the entry.
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n') || line.contains('#'));
    lines.map(str::trim).filter(|line| !outdated(line)).map(|line| format!("{line}\n")).collect()
}

/// The comment behind an entry.
fn keep_suffix(decor: &mut Decor, old: &Decor) {
    let old = text(old.suffix());
    if has_comment(&old) {
        decor.set_suffix(old);
    }
}

fn keep_value(value: &mut Value, old: &Value) {
    keep_form(value, old);
    keep_suffix(value.decor_mut(), old.decor());
}

/// An equal value as the input writes it, with the comments inside a list.
fn keep_form(value: &mut Value, old: &Value) {
    if equal(value, old) {
        let mut kept = old.clone();
        *kept.decor_mut() = value.decor().clone();
        *value = kept;
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    let number = |value: &Value| value.as_float().or_else(|| value.as_integer().map(|number| number as f64));
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => equal_lists(a, b),
        (Value::String(a), Value::String(b)) => a.value() == b.value(),
        (Value::Boolean(a), Value::Boolean(b)) => a.value() == b.value(),
        _ => number(a).is_some_and(|a| number(b) == Some(a)),
    }
}

fn equal_lists(a: &Array, b: &Array) -> bool {
    a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| equal(a, b))
}

fn has_comment(text: &str) -> bool {
    text.contains('#')
}

fn text(raw: Option<&RawString>) -> String {
    raw.and_then(|raw| raw.as_str()).unwrap_or_default().to_string()
}

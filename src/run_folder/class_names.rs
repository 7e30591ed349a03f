//! Assignment of a network's outputs to the classes of a dataset.

use anyhow::{Result, bail, ensure};
use ofa_supernet::data::Dataset;

/// Longest list of class names in a message, in characters.
const MOST_SHOWN: usize = 60;

/// Names of unnamed classes: "0", "1", ...
pub fn numbered_classes(count: usize) -> Vec<String> {
    (0..count).map(|class| class.to_string()).collect()
}

/// `data` with its classes in the order of a network's outputs `known`; `whose` names the network in messages ("run:
/// the supernet").
///
/// If both sides have names, the names decide. Outputs that are only numbered get the data's names in the order of
/// [`by_number`].
pub fn in_order_of(known: &[String], data: &Dataset, whose: &str) -> Result<Dataset> {
    if known == data.classes {
        return Ok(data.clone());
    }
    let mut sorted: Vec<usize> = (0..data.classes.len()).collect();
    sorted.sort_by_key(|&class| &data.classes[class]);
    let class_of = |name| sorted.binary_search_by_key(&name, |&class| &data.classes[class]).map(|at| sorted[at]);
    if known.len() == data.classes.len() {
        if let Ok(order) = known.iter().map(class_of).collect::<Result<Vec<_>, _>>() {
            return Ok(data.with_class_order(&order)?);
        }
        if known == numbered_classes(known.len()) {
            let Some(order) = by_number(&data.classes) else {
                bail!("{}", ambiguous(whose, known, data));
            };
            let data = data.with_class_order(&order)?;
            let (first, last) = (&data.classes[0], &data.classes[known.len() - 1]);
            crate::output::terminal::note(format!(
                "{whose} has numbered classes; 0 to {} get the names '{first}' to '{last}' of the data '{}', {}",
                known.len() - 1,
                data.name,
                if order.is_sorted() { "in their order" } else { "sorted by number" }
            ));
            return Ok(data);
        }
    }
    bail!(
        "{whose} has the classes {}, the data '{}' has {}; give images of the same classes",
        shown(known),
        data.name,
        shown(&data.classes)
    )
}

/// Class names of `data` in the order of the outputs of a checkpoint that does not name its `count` classes.
pub fn of_numbered_outputs(count: usize, data: &Dataset, whose: &str) -> Result<Vec<String>> {
    ensure!(
        data.classes.len() == count,
        "{whose} has {count} classes, the data '{}' has {}; give images of the same classes",
        data.name,
        shown(&data.classes)
    );
    Ok(in_order_of(&numbered_classes(count), data, whose)?.classes)
}

/// Class of each numbered output, from the class names in sorted order.
///
/// Names that are the numbers from 0 on, perhaps after a common prefix ("class0" ... "class11"), stand for the outputs
/// with these numbers; sorted as text, 10 would come before 2. Other names stand for the outputs in sorted order, as
/// training programs number folders. `None` if the names are other numbers that sort differently as text: either order
/// is plausible, and a wrong one makes all accuracies wrong.
fn by_number(classes: &[String]) -> Option<Vec<usize>> {
    let in_order: Vec<usize> = (0..classes.len()).collect();
    let Some(numbers) = numbers(classes) else { return Some(in_order) };
    if numbers.is_sorted_by(|a, b| a < b) {
        return Some(in_order);
    }
    let mut order = in_order;
    order.sort_by_key(|&class| numbers[class]);
    order.iter().enumerate().all(|(output, &class)| numbers[class] == output as u64).then_some(order)
}

/// The numbers after the names' common prefix, if every name ends with one.
fn numbers(names: &[String]) -> Option<Vec<u64>> {
    let prefix = |name: &str| name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let first = names.first()?;
    let common = &first[..prefix(first)];
    let number = |name: &String| name.strip_prefix(common).filter(|rest| prefix(rest) == 0)?.parse().ok();
    names.iter().map(number).collect()
}

fn ambiguous(whose: &str, known: &[String], data: &Dataset) -> String {
    format!(
        "{whose} has the numbered classes {}, the data '{}' has {}: sorted as text, these numbers are in another order, so it is \
         not clear which class an output is; rename each class folder to the number of its output, 0 to {}",
        shown(known),
        data.name,
        shown(&data.classes),
        known.len().saturating_sub(1)
    )
}

/// Number and first names of a list, in about [`MOST_SHOWN`] characters.
fn shown(names: &[String]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        if text.chars().count() + separator.len() + name.chars().count() > MOST_SHOWN {
            let left: String = name.chars().take(if index == 0 { MOST_SHOWN } else { 0 }).collect();
            text += &format!("{left}{separator}...");
            break;
        }
        text += &format!("{separator}{name}");
    }
    format!("{} ({text})", names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| name.to_string()).collect()
    }

    fn sorted(make: impl Fn(usize) -> String, numbers: std::ops::Range<usize>) -> Vec<String> {
        let mut names: Vec<String> = numbers.map(make).collect();
        names.sort();
        names
    }

    #[test]
    fn numbers_from_zero_are_outputs_whatever_their_order_as_text() {
        let numeric: Vec<usize> = (0..12).collect();
        for make in [|n: usize| n.to_string(), |n: usize| format!("class {n}"), |n: usize| format!("{n:02}")] {
            let classes = sorted(make, 0..12);
            let order = by_number(&classes).unwrap();
            let found: Vec<String> = order.iter().map(|&class| classes[class].clone()).collect();
            assert_eq!(found, numeric.iter().map(|&n| make(n)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn other_names_are_outputs_in_sorted_order_unless_their_numbers_contradict_it() {
        let in_order = |count: usize| Some((0..count).collect::<Vec<_>>());
        assert_eq!(by_number(&names(&["cat", "dog", "emu"])), in_order(3));
        assert_eq!(by_number(&names(&["n01440764", "n01443537", "n10000000"])), in_order(3));
        assert_eq!(by_number(&names(&["1", "2", "3"])), in_order(3));
        assert_eq!(by_number(&names(&["cat 10", "dog 2", "emu 1"])), in_order(3));
        assert_eq!(by_number(&sorted(|n| n.to_string(), 1..13)), None);
        assert_eq!(by_number(&sorted(|n| format!("c{}", 3 * n), 0..12)), None);
        assert_eq!(by_number(&names(&["01", "1"])), None);
    }

    #[test]
    fn lists_of_names_are_cut_to_a_line() {
        assert_eq!(shown(&names(&["a", "b"])), "2 (a, b)");
        let long = shown(&numbered_classes(40_000));
        assert!(long.starts_with("40000 (0, 1, 2, ") && long.ends_with(", ...)") && long.len() < 80, "{long}");
        assert!(shown(&["x".repeat(5000)]).len() < 80);
    }
}

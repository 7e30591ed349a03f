//! Labels of shards: numbers or names of classes.

use super::source::Source;
use crate::{Error, Result};
use std::collections::{BTreeSet, HashMap};

/// File with the names of numbered classes, a line each.
pub const NAMES: &str = "classes.txt";

/// Label of an image as its shard tells it.
pub enum Label {
    Number(usize),
    /// A class's name, or its number as text.
    Text(String),
}

/// An image of a shard with its label.
pub type Labelled = (Source, Label);

impl Label {
    /// The class's number that the label is, or is as text.
    fn number(&self) -> Option<usize> {
        match self {
            Label::Number(number) => Some(*number),
            Label::Text(text) => text.parse().ok(),
        }
    }

    fn text(&self) -> Option<&String> {
        match self {
            Label::Number(_) => None,
            Label::Text(text) => Some(text),
        }
    }
}

/// The classes that the labels of `images` are of; the error is a part of a sentence.
pub fn classes(images: &[Labelled], by_name: bool) -> Result<Vec<String>, String> {
    if by_name {
        let names: BTreeSet<&String> = images.iter().filter_map(|(_, label)| label.text()).collect();
        return Ok(names.into_iter().cloned().collect());
    }
    let most = images.iter().filter_map(|(_, label)| label.number()).max();
    let count = most.map_or(0, |most| most.saturating_add(1));
    // Otherwise one wrong label would ask for any amount of memory.
    if count > images.len() {
        let reason = format!("the largest label is {}, but there are {} images", count - 1, images.len());
        return Err(format!("{reason}; number the classes from 0 on, or name them in {NAMES}"));
    }
    Ok((0..count).map(|class| class.to_string()).collect())
}

/// Whether labels are names of classes. A text such as "7" is a number only where all labels are numbers: beside names
/// it is the name of a class.
pub fn are_names(images: &[Vec<Labelled>]) -> Result<bool> {
    let labels = || images.iter().flatten();
    let Some((_, name)) = labels().find(|(_, label)| label.number().is_none()) else { return Ok(false) };
    let Some((source, label)) = labels().find(|(_, label)| label.text().is_none()) else { return Ok(true) };
    let (number, name) = (label.number().unwrap_or(0), name.text().map_or("", String::as_str));
    let reason = format!("has the number {number} as its label, where others have names such as '{name}'");
    Err(Error::format(source.place(), format!("{reason}; label all images alike")))
}

/// The images with the numbers of their classes.
pub fn labelled(images: Vec<Labelled>, classes: &[String], by_name: bool) -> Result<Vec<(Source, u32)>> {
    let numbers: HashMap<&str, usize> = (0..).zip(classes).map(|(number, name)| (name.as_str(), number)).collect();
    let with_class = |(source, label): Labelled| {
        let named = label.text().and_then(|text| numbers.get(text.as_str())).copied();
        let numbered = label.number().filter(|number| *number < classes.len());
        let shown = match (label.text(), label.number()) {
            (Some(text), _) if by_name => format!("'{text}'"),
            (_, number) => number.unwrap_or(0).to_string(),
        };
        let found = match (named, numbered) {
            (Some(named), Some(numbered)) if !by_name && named != numbered => Err(format!(
                "has the label {shown}, which is the name of class {named} and the number of the class '{}'; rename \
                 one of them in {NAMES}, or give numbers as JSON",
                classes[numbered]
            )),
            _ => (if by_name { named } else { numbered })
                .ok_or_else(|| format!("has the label {shown}, which is none of the {} classes", classes.len())),
        };
        let class = found.map_err(|reason| Error::format(source.place(), reason))?;
        Ok((source, class as u32))
    };
    images.into_iter().map(with_class).collect()
}

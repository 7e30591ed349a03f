//! What tells two search spaces apart, in words.

use super::SearchSpace;
use serde_json::Value;

impl SearchSpace {
    /// First setting in which this space differs from `other`, such as "`stages[1].channels` is 24 instead of 32";
    /// `None` for spaces with the same subnets. Names do not count: a space that was only renamed has the same subnets.
    pub fn difference(&self, other: &SearchSpace) -> Option<String> {
        self.difference_beside(&["name"], other)
    }

    /// First setting in which the weights' shapes may differ from those of `other`: as [`Self::difference`], but
    /// resolutions do not count either, since they have no weights.
    pub fn difference_in_weights(&self, other: &SearchSpace) -> Option<String> {
        self.difference_beside(&["name", "resolutions"], other)
    }

    /// First setting other than the `ignored` ones in which this space differs from `other`.
    fn difference_beside(&self, ignored: &[&str], other: &SearchSpace) -> Option<String> {
        let values = |space: &SearchSpace| {
            let mut value = serde_json::to_value(space).unwrap_or_default();
            if let Some(settings) = value.as_object_mut() {
                ignored.iter().for_each(|&setting| drop(settings.remove(setting)));
            }
            value
        };
        first_difference("", &values(self), &values(other))
    }

    /// Keeps only the resolutions that `known` has, too; none may be left.
    pub fn keep_resolutions_of(&mut self, known: &SearchSpace) {
        self.resolutions.retain(|resolution| known.resolutions.contains(resolution));
    }
}

/// The first place, in depth-first order, at which two values differ.
fn first_difference(path: &str, value: &Value, other: &Value) -> Option<String> {
    if value == other {
        return None;
    }
    let nested = match (value, other) {
        (Value::Object(settings), Value::Object(others)) => {
            let dot = if path.is_empty() { "" } else { "." };
            let keys = settings.keys().chain(others.keys().filter(|key| !settings.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                first_difference(&format!("{path}{dot}{key}"), &value[key.as_str()], &other[key.as_str()])
            })
        }
        // Lists of choices are shown whole.
        (Value::Array(items), Value::Array(others))
            if items.len() == others.len() && items.iter().any(Value::is_object) =>
        {
            let pairs = items.iter().zip(others).enumerate();
            pairs
                .into_iter()
                .find_map(|(index, (item, other))| first_difference(&format!("{path}[{index}]"), item, other))
        }
        _ => None,
    };
    let show = |value: &Value| match value {
        Value::Null => "absent".to_string(),
        Value::Array(items) if items.iter().any(Value::is_object) => format!("a list of {}", items.len()),
        Value::Object(_) => "present".to_string(),
        value => value.to_string(),
    };
    nested.or_else(|| Some(format!("`{path}` is {} instead of {}", show(value), show(other))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_setting_that_differs_is_named() {
        let space = SearchSpace::named("tiny").unwrap();
        let changed = |change: &dyn Fn(&mut SearchSpace)| {
            let mut other = space.clone();
            change(&mut other);
            space.difference(&other)
        };
        assert_eq!(changed(&|s| s.name = "renamed".into()), None);
        assert_eq!(changed(&|s| s.stages[1].channels += 8).unwrap(), "`stages[1].channels` is 24 instead of 32");
        assert_eq!(changed(&|s| s.depths.push(3)).unwrap(), "`depths` is [1,2] instead of [1,2,3]");
        let mut smaller = space.clone();
        smaller.resolutions.truncate(1);
        assert_eq!(space.difference_in_weights(&smaller), None);
        assert!(space.difference(&smaller).unwrap().contains("resolutions"));
        let mut both = space.clone();
        both.keep_resolutions_of(&smaller);
        assert_eq!(both, smaller);
        smaller.depths.push(3);
        assert!(space.difference_in_weights(&smaller).unwrap().contains("depths"));
        assert_eq!(changed(&|s| s.stages[0].depths = vec![1]).unwrap(), "`stages[0].depths` is absent instead of [1]");
        assert_eq!(changed(&|s| s.stages.truncate(1)).unwrap(), "`stages` is a list of 2 instead of a list of 1");
        let other = SearchSpace::named("resnet-tiny").unwrap();
        assert!(space.difference(&other).is_some() && other.difference(&space).is_some());
    }
}

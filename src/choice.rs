//! A choice by name from a library's table: the command line's view of it.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

/// Parser of one of `table`'s names; each line is a value, its name, and a line of help.
pub fn one_of<T>(table: &'static [(T, &'static str, &'static str)]) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync,
{
    let names = table.iter().map(|&(_, name, help)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(names).try_map(move |given| {
        table.iter().find(|(_, name, _)| *name == given).map(|&(value, ..)| value).ok_or("expected one of the names")
    })
}

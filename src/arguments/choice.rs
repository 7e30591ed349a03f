//! Options whose values are names in a library's table.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

/// Parser of the names in `table`, whose rows are a value, its name, and a line of help.
pub fn one_of<T>(table: &'static [(T, &'static str, &'static str)]) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync,
{
    let names = table.iter().map(|&(_, name, help)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(names).try_map(move |given| {
        table.iter().find(|(_, name, _)| *name == given).map(|&(value, ..)| value).ok_or("expected one of the names")
    })
}

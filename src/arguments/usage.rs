//! clap's messages about a command line that it cannot read.

use clap::error::{ContextKind, ContextValue};
use ofa_supernet::quote::quoted;

/// `error` with long values cut to one line and control characters escaped.
pub fn shortened(mut error: clap::Error) -> clap::Error {
    let long: Vec<(ContextKind, String)> = error
        .context()
        .filter_map(|(kind, value)| match value {
            // Styled parts of the message are clap's own.
            ContextValue::String(text) if quoted(text) != *text => Some((kind, quoted(text))),
            _ => None,
        })
        .collect();
    for (kind, text) in long {
        error.insert(kind, ContextValue::String(text));
    }
    error
}

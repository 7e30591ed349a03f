//! Plain text tables: the first column left-aligned, the others right-aligned, as wide as the terminal at most.

use crate::output::terminal;
use console::{measure_text_width, style, truncate_str};
use ofa_supernet::quote::visible;

/// Columns between two cells.
const GAP: usize = 2;
/// Width to which the first column may be cut.
const LEAST: usize = 12;

/// Prints `rows` under `header` in aligned columns. Where they do not fit, columns are hidden from the right, which is
/// said.
pub fn print(header: &[&str], rows: &[Vec<String>]) {
    print_some(header, rows, &[]);
}

/// Prints a table of which the columns `dispensable` are hidden first, in their order, where all do not fit.
pub fn print_some(header: &[&str], rows: &[Vec<String>], dispensable: &[&str]) {
    let columns = terminal::columns();
    let (table, hidden) = render(header, rows, dispensable, columns.unwrap_or(usize::MAX));
    let mut lines = table.lines();
    if let Some(names) = lines.next() {
        say!("{}", style(names).cyan().bold());
    }
    lines.for_each(|line| say!("{line}"));
    if let (false, Some(columns)) = (hidden.is_empty(), columns) {
        let names = hidden.join(", ");
        say!("{}", style(format_args!("hidden, as {columns} columns are too few: {names} (--json prints all)")).dim());
    }
}

/// The table with the columns that fit into `width`, and the names of the hidden ones.
fn render<'a>(header: &[&'a str], rows: &[Vec<String>], dispensable: &[&str], width: usize) -> (String, Vec<&'a str>) {
    let header_cells: Vec<String> = header.iter().map(|name| name.to_string()).collect();
    // Names of files and classes may hold anything.
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| visible(cell)).collect()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&header_cells).chain(&rows).collect();
    let width_of = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| measure_text_width(cell)).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..header.len()).map(width_of).collect();
    let mut shown: Vec<usize> = (0..header.len()).collect();
    let total = |shown: &[usize], widths: &[usize]| -> usize {
        shown.iter().map(|&column| widths[column] + GAP).sum::<usize>().saturating_sub(GAP)
    };
    let first_to_go = dispensable.iter().filter_map(|name| header.iter().position(|other| other == name));
    let from_the_right = (1..header.len()).rev().filter(|&column| !dispensable.contains(&header[column]));
    for column in first_to_go.chain(from_the_right) {
        if total(&shown, &widths) <= width {
            break;
        }
        shown.retain(|&other| other != column);
    }
    if let Some(first) = widths.first_mut() {
        *first = (*first).min(width.max(LEAST));
    }
    let hidden = (0..header.len()).filter(|column| !shown.contains(column)).map(|column| header[column]).collect();
    let mut out = String::new();
    for line in lines {
        let cell = |&column: &usize| {
            let (text, width) = (line.get(column).map_or("", String::as_str), widths[column]);
            let text = truncate_str(text, width, "…");
            let padding = " ".repeat(width - measure_text_width(&text));
            if column == 0 { format!("{text}{padding}") } else { format!("{padding}{text}") }
        };
        out.push_str(shown.iter().map(cell).collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end());
        out.push('\n');
    }
    (out, hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|cell| cell.to_string()).collect()).collect()
    }

    #[test]
    fn columns_align() {
        let rows = rows(&[&["a", "1"], &["größer", "12.5"]]);
        let expected = "name      ms\na          1\ngrößer  12.5\n";
        assert_eq!(render(&["name", "ms"], &rows, &[], usize::MAX), (expected.into(), vec![]));
    }

    #[test]
    fn columns_that_do_not_fit_are_hidden_in_their_order() {
        let rows = rows(&[&["model", "1.5 kB", "0.1", "0.2"]]);
        let header = ["name", "size", "p50 ms", "p99 ms"];
        let at = |width, dispensable: &[&str]| render(&header, &rows, dispensable, width);
        assert_eq!(at(29, &[]), ("name     size  p50 ms  p99 ms\nmodel  1.5 kB     0.1     0.2\n".into(), vec![]));
        assert_eq!(at(28, &[]), ("name     size  p50 ms\nmodel  1.5 kB     0.1\n".into(), vec!["p99 ms"]));
        assert_eq!(at(21, &["size"]), ("name   p50 ms  p99 ms\nmodel     0.1     0.2\n".into(), vec!["size"]));
        assert_eq!(at(20, &["size"]).1, ["size", "p99 ms"]);
        assert_eq!(at(1, &["size"]), ("name\nmodel\n".into(), vec!["size", "p50 ms", "p99 ms"]));
    }

    #[test]
    fn a_long_first_column_is_cut() {
        let rows = rows(&[&["a-name-longer-than-the-terminal", "1"]]);
        assert_eq!(render(&["name", "ms"], &rows, &[], 20).0, "name\na-name-longer-than-…\n");
    }
}

//! Plain text tables: the first column left-aligned, the others right-aligned.

/// Prints `rows` under `header` in aligned columns.
pub fn print(header: &[&str], rows: &[Vec<String>]) {
    crate::output::write(format_args!("{}", render(header, rows)));
}

fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|h| h.to_string()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&header).chain(rows).collect();
    let width =
        |column: usize| lines.iter().filter_map(|l| l.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    for line in lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, &w))| if i == 0 { format!("{cell:<w$}") } else { format!("{cell:>w$}") })
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_align() {
        let rows = [vec!["a".into(), "1".into()], vec!["long".into(), "12.5".into()]];
        assert_eq!(super::render(&["name", "ms"], &rows), "name    ms\na        1\nlong  12.5\n");
    }
}

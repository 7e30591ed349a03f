//! The program in a terminal, which `script` of util-linux makes, and what is then on its screen.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::process::{Command, Stdio};

/// Bytes that the command wrote to a terminal of so many columns.
pub fn in_terminal(folder: &Path, arguments: &[&str], columns: usize, environment: &[(&str, &str)]) -> String {
    let words = arguments.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let line = format!("stty cols {columns} rows 50; exec {} {words}", env!("CARGO_BIN_EXE_ofa"));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).current_dir(folder).stdin(Stdio::null());
    for name in ["COLUMNS", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    let output = command.env("TERM", "xterm-256color").envs(environment.iter().copied()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A screen of one width, without an end below.
pub struct Screen {
    columns: usize,
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// Columns of the longest line that was ever drawn.
    pub widest: usize,
    /// Bars that were drawn.
    pub bars: usize,
}

impl Screen {
    /// What is on the screen after `bytes`.
    pub fn of(bytes: &str, columns: usize) -> Screen {
        let mut screen = Screen { columns, lines: vec![Vec::new()], row: 0, column: 0, widest: 0, bars: 0 };
        let mut letters = bytes.chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '\r' => screen.column = 0,
                '\n' => screen.move_to(screen.row + 1),
                '\x1b' if letters.next_if_eq(&'[').is_some() => {
                    let mut number = String::new();
                    while let Some(part) = letters.next_if(|c| c.is_ascii_digit() || ";?".contains(*c)) {
                        number.push(part);
                    }
                    screen.control(letters.next(), number.parse().unwrap_or(0));
                }
                letter => screen.put(letter),
            }
        }
        screen
    }

    fn control(&mut self, letter: Option<char>, number: usize) {
        match letter {
            Some('A') => self.row = self.row.saturating_sub(number.max(1)),
            Some('B') => self.move_to(self.row + number.max(1)),
            Some('K') if number == 2 => self.lines[self.row].clear(),
            Some('K') => self.lines[self.row].truncate(self.column),
            Some('J') => self.lines.truncate(self.row + 1),
            // Colours, and whether the cursor is seen.
            Some('m' | 'h' | 'l') => {}
            other => panic!("the test's terminal does not know {other:?}"),
        }
    }

    fn move_to(&mut self, row: usize) {
        self.row = row;
        while self.lines.len() <= row {
            self.lines.push(Vec::new());
        }
    }

    fn put(&mut self, letter: char) {
        if self.column == self.columns {
            self.column = 0;
            self.move_to(self.row + 1);
        }
        let line = &mut self.lines[self.row];
        while line.len() <= self.column {
            line.push(' ');
        }
        line[self.column] = letter;
        self.column += 1;
        self.widest = self.widest.max(self.column);
        self.bars += usize::from(letter == '█');
    }

    /// The lines, without spaces at their ends.
    pub fn text(&self) -> Vec<String> {
        self.lines.iter().map(|line| line.iter().collect::<String>().trim_end().to_string()).collect()
    }
}

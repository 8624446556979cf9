//! What a person reads: sections, facts, and checks that are counted.
use std::io::{IsTerminal, stdout};
use std::process::ExitCode;

/// Prints as it goes, and remembers what was wrong.
pub struct Report {
    terminal: bool,
    failures: Vec<String>,
}

impl Report {
    pub fn new() -> Self {
        Self { terminal: stdout().is_terminal(), failures: Vec::new() }
    }

    /// A heading.
    pub fn section(&self, title: &str) {
        println!("\n{}", self.coloured("1", title));
    }

    /// A line that is neither right nor wrong.
    pub fn say(&self, text: &str) {
        println!("  {text}");
    }

    /// A line about something that must hold.
    pub fn check(&mut self, holds: bool, text: &str) {
        if holds {
            println!("  {}  {text}", self.coloured("32", "ok"));
        } else {
            println!("  {}  {text}", self.coloured("1;31", "NO"));
            self.failures.push(text.to_owned());
        }
    }

    /// Rows below a heading, in columns as wide as they must be.
    pub fn table(&self, rows: &[Vec<String>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
        let widths: Vec<_> = (0..columns).map(width).collect();
        for (n, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            println!(
                "  {}",
                if n == 0 { self.coloured("2", line.trim_end()) } else { line.trim_end().to_owned() }
            );
        }
    }

    /// The last line, and the exit code.
    pub fn end(self) -> ExitCode {
        if self.failures.is_empty() {
            println!("\nEverything was as it should be.");
            return ExitCode::SUCCESS;
        }
        println!("\n{}", self.coloured("1;31", &format!("{} of the checks failed:", self.failures.len())));
        self.failures.iter().for_each(|failure| println!("  {failure}"));
        ExitCode::FAILURE
    }

    fn coloured(&self, colour: &str, text: &str) -> String {
        if self.terminal { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

//! Console output for a person: sections, facts, and counted checks.
use std::io::{IsTerminal, Write, stdout};
use std::panic::{set_hook, take_hook};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// Prints each line immediately and remembers the failed checks.
pub struct Report {
    failures: Failures,
}

/// The failed checks of a report. Any thread may add one; it is printed immediately.
#[derive(Clone)]
pub struct Failures {
    terminal: bool,
    texts: Arc<Mutex<Vec<String>>>,
}

impl Failures {
    /// Prints a failure and keeps it for the end of the report.
    pub fn add(&self, text: &str) {
        println!("  {}  {text}", coloured(self.terminal, "1;31", "NO"));
        self.texts.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_owned());
    }

    fn texts(&self) -> Vec<String> {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Prints the failures so far. A panicking thread calls it: that thread may hold the lock, and must not panic
    /// again.
    fn print_early(&self) {
        let texts = self.texts.try_lock().map(|texts| texts.clone()).unwrap_or_default();
        let mut lines =
            format!("\nA panic has ended the report early. Checks that had failed: {}\n", texts.len());
        texts.iter().for_each(|text| lines.push_str(&format!("  {text}\n")));
        let _ = stdout().write_all(lines.as_bytes());
    }
}

impl Report {
    /// Makes an empty report. From then on, a panic in any thread prints the failed checks, because it may abort the
    /// process.
    pub fn new() -> Self {
        let failures = Failures { terminal: stdout().is_terminal(), texts: Arc::default() };
        let (early, print_panic) = (failures.clone(), take_hook());
        set_hook(Box::new(move |panic| {
            print_panic(panic);
            early.print_early();
        }));
        Self { failures }
    }

    /// Returns a handle with which threads add failed checks.
    pub fn failures(&self) -> Failures {
        self.failures.clone()
    }

    /// Prints a heading.
    pub fn section(&self, title: &str) {
        println!("\n{}", self.coloured("1", title));
    }

    /// Prints a line of information.
    pub fn say(&self, text: &str) {
        println!("  {text}");
    }

    /// Prints the result of a check that must hold, and counts it if it fails.
    pub fn check(&mut self, holds: bool, text: &str) {
        if holds {
            println!("  {}  {text}", self.coloured("32", "ok"));
        } else {
            self.failures.add(text);
        }
    }

    /// Prints rows below a heading, in columns as wide as necessary.
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

    /// Prints the summary line and returns the exit code.
    pub fn end(self) -> ExitCode {
        let failures = self.failures.texts();
        if failures.is_empty() {
            println!("\nAll checks passed.");
            return ExitCode::SUCCESS;
        }
        println!("\n{}", self.coloured("1;31", &format!("{} of the checks failed:", failures.len())));
        failures.iter().for_each(|failure| println!("  {failure}"));
        ExitCode::FAILURE
    }

    fn coloured(&self, colour: &str, text: &str) -> String {
        coloured(self.failures.terminal, colour, text)
    }
}

fn coloured(terminal: bool, colour: &str, text: &str) -> String {
    if terminal { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Set in the child process that panics.
    const PANICS: &str = "LAB_REPORT_PANICS";

    #[test]
    fn a_panic_in_any_thread_prints_what_had_failed() {
        if std::env::var_os(PANICS).is_some() {
            let mut report = Report::new();
            report.check(true, "the first check");
            report.check(false, "the second check");
            report.failures().add("the failure of a thread");
            let thread = std::thread::spawn(|| panic!("broken"));
            assert!(thread.join().is_err());
            return;
        }
        let name = "report::tests::a_panic_in_any_thread_prints_what_had_failed";
        let exe = std::env::current_exe().unwrap();
        let output = Command::new(exe).args(["--exact", name, "--nocapture"]).env(PANICS, "1").output();
        let output = String::from_utf8(output.unwrap().stdout).unwrap();
        let early = output.split_once("Checks that had failed: ").map(|(_, early)| early);
        let early = early.unwrap_or_else(|| panic!("no early end: {output}"));
        assert!(early.starts_with("2\n  the second check\n  the failure of a thread\n"), "{output}");
    }
}

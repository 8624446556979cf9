//! The manual pages: the program's page is generated from its command line, and the manual page tools accept both
//! pages.
use std::env;
use std::fs;
use std::process::Command;

use clap_mangen::Man;
use tcp_intercept::exit::Exit;

const FRAME: &str = include_str!("../docs/man/tcp-intercept.8.in");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/man/tcp-intercept.8");
const CONFIG_PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/man/tcp-intercept.toml.5");
const GUIDE: &str = include_str!("../docs/operate.md");

const HEAD: &str =
    ".\\\" Written by `make man` from tcp-intercept.8.in and src/cli.rs: change those, not this.\n";

#[test]
fn the_programs_page_has_every_command_and_option() {
    let made = page();
    if env::var_os("UPDATE_MAN").is_some() {
        fs::write(PAGE, &made).expect("the page can be written");
    }
    let committed = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(committed == made, "docs/man/tcp-intercept.8 does not match the command line: run `make man`");
}

/// Renders the page's frame with the options and commands that clap knows.
fn page() -> String {
    let command = tcp_intercept::cli::command().disable_help_subcommand(true);
    let root = command.clone().mut_args(|arg| arg.help_heading(None::<&str>));
    let line = |line: &str| match line {
        ".\\\"generated: options" => options(root.clone()),
        ".\\\"generated: commands" => commands(&command, ""),
        line => format!("{line}\n"),
    };
    HEAD.to_owned() + &FRAME.lines().map(line).collect::<String>()
}

fn commands(command: &clap::Command, above: &str) -> String {
    let subcommands = command.get_subcommands().map(|sub| {
        let name = format!("{above}{}", sub.get_name());
        // Every command has the same help option.
        let sub = sub.clone().disable_help_subcommand(true).disable_help_flag(true);
        let takes = if sub.has_subcommands() { "\\fIcommand\\fP" } else { "[\\fIoptions\\fP]" };
        let (about, options) = (about(sub.clone()), options(sub.clone()));
        format!(".SS \\fB{name}\\fP {takes}\n{about}{options}{}", commands(&sub, &format!("{name} ")))
    });
    subcommands.collect()
}

fn about(command: clap::Command) -> String {
    section(|text| Man::new(command).render_description_section(text))
}

fn options(command: clap::Command) -> String {
    // If an option has few values, its text names them.
    let command = command
        .mut_args(|arg| if arg.get_action().takes_values() { arg.hide_possible_values(true) } else { arg });
    section(|text| Man::new(command).render_options_section(text))
}

/// Renders a section without its heading and without the preamble.
fn section(render: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut text = Vec::new();
    render(&mut text).expect("a Vec takes all");
    // The preamble defines this string for old formatters, all older than MPTCP.
    let text = String::from_utf8(text).expect("UTF-8").replace("\\*(Aq", "\\(aq");
    text.split_once(".SH ")
        .and_then(|(_, rest)| Some(rest.split_once('\n')?.1.to_owned()))
        .unwrap_or_default()
}

#[test]
fn nobody_who_reads_manual_pages_complains() {
    for page in [PAGE, CONFIG_PAGE] {
        for reader in [&["mandoc", "-Tlint", "-Wwarning"][..], &["groff", "-man", "-ww", "-z"]] {
            let output = Command::new(reader[0]).args(&reader[1..]).arg(page).output();
            let output =
                output.unwrap_or_else(|err| panic!("{}: {err}; make packages installs it", reader[0]));
            let said = [output.stdout, output.stderr].concat();
            assert!(said.is_empty(), "{reader:?}:\n{}", String::from_utf8_lossy(&said));
        }
    }
}

#[test]
fn every_exit_status_is_in_the_manual_and_in_the_guide() {
    for code in (0..=255).filter(|&code| Exit::from_status(code).is_some()) {
        assert!(FRAME.contains(&format!("\n.B {code}\n")), "{code} is not in docs/man/tcp-intercept.8.in");
        assert!(GUIDE.contains(&format!("\n| {code} | EX_")), "{code} is not in docs/operate.md");
    }
}

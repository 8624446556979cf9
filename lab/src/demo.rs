//! `make demo` and `make lab`: shows how a bad link slows its users down, and how tcp-intercept improves it.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use lab::acceleration::{self, Compared, Comparison, Frames, Plan, Results};
use lab::options;
use lab::wan::Profile;

use crate::report::Report;

/// Time limit of a transfer. It is long enough to show that 20 MB do not arrive in reasonable time.
const CUT: Duration = Duration::from_secs(45);

/// The profiles to compare, the number of rounds, and the directory for the results.
#[derive(Debug)]
pub struct Kind {
    plan: Plan,
    out: PathBuf,
    command: &'static str,
}

impl Kind {
    /// Returns the short comparison: the two most instructive WANs, measured once, in less than two minutes.
    pub fn demo(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let profiles = vec![Profile::transatlantic(), Profile::bonded()];
        let plan = Plan { profiles, small_rounds: 3, large_rounds: 1, cut: CUT, binary: PathBuf::new() };
        Self { plan, out: "target/demo".into(), command: "make demo" }.with(words)
    }

    /// Returns the full comparison: all WANs, with enough rounds for medians that can be quoted.
    pub fn lab(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let profiles = Profile::all().into();
        let plan = Plan { profiles, small_rounds: 5, large_rounds: 5, cut: CUT, binary: PathBuf::new() };
        Self { plan, out: "target/lab".into(), command: "make lab" }.with(words)
    }

    /// Applies the options `PROFILE=clean,lte` and `OUT=DIRECTORY`.
    fn with(mut self, words: impl Iterator<Item = String>) -> Result<Self, String> {
        options::read(words, &["PROFILE", "OUT"], |key, value| {
            if key == "OUT" {
                self.out = value.into();
            } else {
                self.plan.profiles = value.split(',').map(profile).collect::<Result<_, _>>()?;
            }
            Ok(())
        })?;
        Ok(self)
    }
}

fn profile(name: &str) -> Result<Profile, String> {
    Profile::named(name).ok_or_else(|| {
        let known = Profile::all().map(|profile| profile.name).join(", ");
        format!("one or more of {known}, with commas between")
    })
}

/// Runs the comparison and writes the results.
pub fn run(binary: PathBuf, mut kind: Kind) -> ExitCode {
    kind.plan.binary = binary;
    let kind = &kind;
    let mut report = Report::new();
    introduce(&report);
    let (mut comparisons, mut frames) = (Vec::new(), Frames::default());
    for profile in &kind.plan.profiles {
        comparisons.push(show(&mut report, &kind.plan, profile, &mut frames));
    }
    let results = Results { conditions: conditions(kind, frames), comparisons };
    report.section("How it was measured");
    results.conditions.iter().for_each(|line| report.say(line));
    match keep(&results, &kind.out) {
        Ok(page) => report.say(&format!("\n  With curves over time: {}", page.display())),
        Err(err) => report.check(false, &format!("the results are saved in {}: {err}", kind.out.display())),
    }
    report.end()
}

fn introduce(report: &Report) {
    report.section("tcp-intercept on a bad link");
    report.say("client --- near box === WAN === far box --- server");
    let user = rustix::process::getuid();
    let whose =
        if user.is_root() { "root".to_owned() } else { format!("user {}, without root", user.as_raw()) };
    report.say(&format!("Network namespaces of {whose}; the network of this machine is not touched."));
    report.say(
        "The client and the server use CUBIC and no accelerator. The boxes only route (end to end), or run",
    );
    report.say("tcp-intercept: on the near one (one box), or on both (a pair).");
}

fn show(report: &mut Report, plan: &Plan, profile: &Profile, frames: &mut Frames) -> Comparison {
    report.section(profile.name);
    report.say(&acceleration::describe(profile));
    let start = Instant::now();
    let tell = |what: &str| println!("  {:>4.0} s  {what}", start.elapsed().as_secs_f64());
    let Compared { comparison, wrong, frames: some } = acceleration::compare(profile, plan, tell);
    report.say("");
    report.table(&acceleration::rows(&comparison));
    report.say("");
    report.check(wrong.is_empty(), "each object arrived intact, the server saw the client's own address,");
    report.check(wrong.is_empty(), "and the boxes are as before");
    wrong.iter().for_each(|what| report.say(what));
    frames.add(some);
    comparison
}

fn conditions(kind: &Kind, frames: Frames) -> Vec<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, Into::into);
    let date = Command::new("date").arg("+%F").output().map(|output| output.stdout).unwrap_or_default();
    let Plan { small_rounds, large_rounds, cut, .. } = &kind.plan;
    vec![
        format!("{}, {}", String::from_utf8_lossy(&date).trim(), kind.command),
        format!("Linux {}, {processors} processors", kernel.split(['-', '\n']).next().unwrap_or_default()),
        format!(
            "medians: {small_rounds} rounds, 20 MB {large_rounds}, end to end once; transfers longer than {} s are cut",
            cut.as_secs()
        ),
        frames.to_string(),
    ]
}

fn keep(results: &Results, out: &Path) -> std::io::Result<PathBuf> {
    fs::create_dir_all(out)?;
    fs::write(out.join("results.json"), format!("{:#}\n", acceleration::json(results)))?;
    let page = out.join("report.html");
    fs::write(&page, acceleration::page(results))?;
    Ok(page)
}

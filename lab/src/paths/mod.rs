//! `lab paths`: measures how two boxes use two paths. Without words it runs all scenes; the name of a scene selects it.
//! `net.…=…` sets a sysctl on both boxes, any other `SECTION.KEY=VALUE` a key of both configurations.
mod fallback;
mod transfer;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::stream::Random;
use lab::wan::{Link, Loss, Path, Profile, Rate};
use lab::{Daemon, Ip, Pair, peers};

use self::fallback::fallback;
use self::transfer::{Amount, Course, Way, transfer};
use crate::report::Report;

const BYTES: u64 = 200_000_000;
const NEAR: [&str; 2] = ["server.mptcp=true", "mptcp.path=[{device='wan1'}]"];
const FAR: [&str; 2] = ["client.mptcp=true", "mptcp.path=[{device='wan1', announce=true}]"];
const CUTS: usize = 5;
const CUT: Duration = Duration::from_secs(5);
const SHORT: usize = 500;
const SHORT_BYTES: usize = 100_000;

type Scene = (&'static str, fn(&Plan, &Report));

const SCENES: [Scene; 8] = [
    ("even", |plan, report| rates(plan, report, "2 x 100 Mbit/s, 20 ms", &even(Loss::None))),
    ("even-loss", |plan, report| rates(plan, report, "the same, 0.1 % loss", &even(Loss::Random(0.001)))),
    ("bonded", |plan, report| rates(plan, report, "bonded", &bonded(Loss::None))),
    ("bonded-loss", |plan, report| rates(plan, report, "bonded, 0.1 % loss", &bonded(Loss::Random(0.001)))),
    ("cuts", cuts),
    ("outage", outage),
    ("short", short),
    ("fallback", fallback),
];

/// The selected scenes and settings.
pub struct Plan {
    scenes: Vec<Scene>,
    binary: String,
    sysctls: Vec<(String, String)>,
    settings: Vec<String>,
    ip: Ip,
}

/// Runs the scenes.
pub fn run(binary: PathBuf, mut plan: Plan) -> ExitCode {
    let report = Report::new();
    plan.binary = binary.display().to_string();
    for (name, scene) in &plan.scenes {
        report.section(name);
        scene(&plan, &report);
    }
    ExitCode::SUCCESS
}

/// Returns the names of all scenes.
pub fn scenes() -> String {
    SCENES.map(|(name, _)| name).join(" ")
}

fn unknown(word: &str) -> String {
    format!(
        "{word}: unknown scene; known are {}. Other words are ipv6, net.KEY=VALUE for a sysctl, and SECTION.KEY=VALUE for the configuration",
        scenes()
    )
}

fn even(loss: Loss) -> Profile {
    let path = Link::even(Duration::from_millis(20), Rate::mbit(100), loss);
    Profile { name: "even", paths: vec![path; 2], seed: 1 }
}

fn bonded(loss: Loss) -> Profile {
    let mut profile = Profile::bonded();
    for path in &mut profile.paths {
        (path.to_server.loss, path.to_client.loss) = (loss, loss);
    }
    profile
}

fn sum(profile: &Profile) -> f64 {
    profile.paths.iter().filter_map(|path| path.to_client.rate).map(|rate| rate.bits() as f64 / 1e6).sum()
}

impl Plan {
    /// Reads the words of the command line.
    ///
    /// # Errors
    /// The first word that is invalid, and the valid ones.
    pub fn from_words(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let (binary, sysctls, settings) = (String::new(), Vec::new(), Vec::new());
        let mut plan = Self { scenes: Vec::new(), binary, sysctls, settings, ip: Ip::V4 };
        for word in words {
            let scene = SCENES.iter().find(|(name, _)| *name == word);
            match word.split_once('=') {
                Some((key, value)) if key.starts_with("net.") => {
                    plan.sysctls.push((key.into(), value.into()))
                }
                Some((key, _)) if key.contains('.') => plan.settings.push(word),
                None if word == "ipv6" => plan.ip = Ip::V6,
                _ => plan.scenes.push(*scene.ok_or_else(|| unknown(&word))?),
            }
        }
        if plan.scenes.is_empty() {
            plan.scenes = SCENES.to_vec();
        }
        Ok(plan)
    }

    fn pair(&self, profile: &Profile) -> Pair {
        let pair = Pair::new(profile);
        for (key, value) in &self.sysctls {
            [&pair.near, &pair.far].into_iter().for_each(|host| host.sysctl(key, value));
        }
        pair
    }

    fn boxes(&self, pair: &Pair, mptcp: bool) -> [Daemon; 2] {
        [(&pair.near, NEAR), (&pair.far, FAR)].map(|(host, own)| {
            let own = own.into_iter().filter(|_| mptcp);
            let settings: Vec<&str> = own.chain(self.settings.iter().map(String::as_str)).collect();
            Daemon::start(host, &self.binary, &settings)
        })
    }
}

/// Formats the share of frames that this machine delivered late, and the number it missed. If they are high, the
/// results reflect the machine's load.
fn machine(pair: &Pair) -> String {
    let counts = pair.paths.iter().flat_map(|path| [path.to_server(), path.to_client()]);
    let (delivered, late, missed) = counts.fold((0, 0, 0), |(delivered, late, missed), one| {
        (delivered + one.delivered, late + one.late, missed + one.missed)
    });
    format!("{:.1} % late, {missed} missed", late as f64 * 100.0 / f64::max(delivered as f64, 1.0))
}

/// Formats the number of frames that each path has carried.
fn frames(pair: &Pair) -> String {
    let by = |path: &Path| path.to_server().delivered.max(path.to_client().delivered);
    let frames: Vec<String> = pair.paths.iter().map(|path| by(path).to_string()).collect();
    format!("frames: {}", frames.join(" and "))
}

fn rates(plan: &Plan, report: &Report, what: &str, profile: &Profile) {
    for way in [Way::Down, Way::Up] {
        let pair = plan.pair(profile);
        let _boxes = plan.boxes(&pair, true);
        let course = transfer(&pair, plan.ip, way, Amount::Bytes(BYTES), || ());
        let (rate, stall) = (course.rate(), course.longest_stall());
        report.say(&format!(
            "{what}, {way:?}: {rate:.1} Mbit/s, {:.3} of the sum; {}; longest stall {stall:.0?}; whole: {}; {}",
            rate / sum(profile),
            frames(&pair),
            course.whole,
            machine(&pair)
        ));
    }
}

/// Cuts each path in turn for five seconds, at random moments of one transfer.
fn cuts(plan: &Plan, report: &Report) {
    for way in [Way::Down, Way::Up] {
        let profile = even(Loss::None);
        let pair = plan.pair(&profile);
        let _boxes = plan.boxes(&pair, true);
        let (over, mut mended, mut random) = (AtomicBool::new(false), Vec::new(), Random::new(7));
        let course = transfer(&pair, plan.ip, way, Amount::Until(&over), || {
            sleep(Duration::from_secs(2));
            for n in 0..CUTS {
                sleep(Duration::from_millis(random.below(1000) as u64));
                let path = &pair.paths[n % 2];
                path.cut();
                sleep(CUT);
                path.mend();
                mended.push(Instant::now());
                sleep(Duration::from_secs(8));
            }
            over.store(true, Ordering::Relaxed);
        });
        told(report, &format!("{CUTS} cuts of 5 s, {way:?}"), &course, &mended, sum(&profile));
    }
}

fn outage(plan: &Plan, report: &Report) {
    for way in [Way::Down, Way::Up] {
        let profile = even(Loss::None);
        let pair = plan.pair(&profile);
        let _boxes = plan.boxes(&pair, true);
        let (over, mut mended) = (AtomicBool::new(false), Vec::new());
        let course = transfer(&pair, plan.ip, way, Amount::Until(&over), || {
            sleep(Duration::from_secs(3));
            pair.paths.iter().for_each(Path::cut);
            sleep(2 * CUT);
            pair.paths.iter().for_each(Path::mend);
            mended.push(Instant::now());
            sleep(Duration::from_secs(15));
            over.store(true, Ordering::Relaxed);
        });
        told(report, &format!("both paths cut for 10 s, {way:?}"), &course, &mended, sum(&profile));
    }
}

fn told(report: &Report, what: &str, course: &Course, mended: &[Instant], sum: f64) {
    let back = mended.iter().map(|moment| match course.back_to(0.85 * sum, *moment) {
        Some(after) => format!("{:.1}", after.as_secs_f64()),
        None => "never".to_owned(),
    });
    report.say(&format!(
        "{what}: whole: {}; longest stall {:.2} s; at 0.85 of the sum again {} s after mending",
        course.whole,
        course.longest_stall().as_secs_f64(),
        back.collect::<Vec<_>>().join(", ")
    ));
}

/// Measures many short concurrent downloads: over two paths, and with plain TCP over one path of the summed rate.
fn short(plan: &Plan, report: &Report) {
    let one = Link::even(Duration::from_millis(20), Rate::mbit(200), Loss::None);
    let times = [(even(Loss::None), true), (Profile::one("one", one), false)].map(|(profile, mptcp)| {
        let pair = plan.pair(&profile);
        let _boxes = plan.boxes(&pair, mptcp);
        let server = peers::Server::start(&pair.server, pair.server_at(plan.ip, 8000), |mut stream| {
            stream.read_exact(&mut [0; 1])?;
            stream.write_all(&vec![0; SHORT_BYTES])
        });
        let begin = Instant::now();
        let whole = pair.client.enter(|| {
            std::thread::scope(|scope| {
                let one = || {
                    let mut stream = std::net::TcpStream::connect(server.address)?;
                    stream.write_all(b"?")?;
                    let mut reply = Vec::new();
                    stream.read_to_end(&mut reply)
                };
                let all: Vec<_> = (0..SHORT).map(|_| scope.spawn(one)).collect();
                let whole = all.into_iter().filter_map(|one| one.join().ok()?.ok());
                whole.filter(|bytes| *bytes == SHORT_BYTES).count()
            })
        });
        let took = begin.elapsed();
        let what = if mptcp { "two paths of 100 Mbit/s" } else { "plain TCP, one path of 200 Mbit/s" };
        report.say(&format!(
            "{SHORT} downloads of {SHORT_BYTES} bytes at once, {what}: {whole} whole in {:.2} s; {}; {}",
            took.as_secs_f64(),
            frames(&pair),
            machine(&pair)
        ));
        took
    });
    report.say(&format!("the ratio: {:.2}", times[0].as_secs_f64() / times[1].as_secs_f64()));
}

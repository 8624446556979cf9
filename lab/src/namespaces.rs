//! Runs a test in its own namespaces: the test binary runs again under `unshare`, for that test only.
//!
//! The new process is the first of a PID namespace, so everything that it starts ends with it. This also holds when
//! this process is interrupted or killed (`--pdeathsig`, `--kill-child`).
use std::any::type_name;
use std::env;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Set in the inner process. The value is the directory of the copied binaries, or empty if no copy was needed.
pub(crate) const INSIDE: &str = "LAB_INSIDE";
/// Set it to 1 to run every test as an ordinary user.
const AS_USER: &str = "LAB_AS_USER";
/// The number of seconds after which a test is ended.
const TIMEOUT: &str = "LAB_TIMEOUT";
const ENTERED: &str = "lab: inside";

const UNSHARE: [&str; 7] = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
/// `--map-current-user`, because with `--map-root-user` sshd and tcpdump fail and nginx needs `user root`.
const USER: [&str; 3] = ["--user", "--map-current-user", "--keep-caps"];

/// Runs `test` in its own network, mount and PID namespaces; unless root runs it, also in a user namespace. Must be
/// called on the test's own thread.
///
/// # Panics
/// The test fails, takes longer than `LAB_TIMEOUT` seconds (120), or the host lacks a requirement.
pub fn netns<F: FnOnce()>(test: F) {
    run(test, wants_user());
}

/// Like [`netns`], but as an ordinary user in a user namespace; as root only if the host forbids user namespaces.
///
/// # Panics
/// As for [`netns`].
pub fn netns_as_user<F: FnOnce()>(test: F) {
    run(test, true);
}

/// Like [`netns`], for a whole program: runs it again inside with the same arguments, output and terminal, and returns
/// its exit code. Inside, it runs `main`.
///
/// # Panics
/// The host lacks a requirement.
pub fn program(main: impl FnOnce() -> ExitCode) -> ExitCode {
    if env::var_os(INSIDE).is_some() {
        prepare();
        return main();
    }
    let entry = Entry::choose(&own_binary(), wants_user());
    let mut command = entry.command();
    let status = command.args(env::args_os().skip(1)).status();
    let code = status.unwrap_or_else(|err| panic!("setpriv: {err}\n{}", Entry::needs())).code();
    // unshare exits with 1 when it cannot enter the namespaces. A killed program has no exit code.
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn wants_user() -> bool {
    env::var(AS_USER).is_ok_and(|set| set == "1")
}

fn own_binary() -> PathBuf {
    env::current_exe().unwrap_or_else(|err| panic!("this program's own file is not to be found: {err}"))
}

fn run<F: FnOnce()>(test: F, as_user: bool) {
    if env::var_os(INSIDE).is_some() {
        eprintln!("{ENTERED}");
        prepare();
        return test();
    }
    let name = test_name(std::thread::current().name(), type_name::<F>());
    let seconds = |text: String| {
        text.parse().unwrap_or_else(|err| panic!("{TIMEOUT}={text}: expected a number of seconds: {err}"))
    };
    let timeout = env::var(TIMEOUT).map_or(120, seconds);
    let exe =
        env::current_exe().unwrap_or_else(|err| panic!("the test's own binary is not to be found: {err}"));
    let entry = Entry::choose(&exe, as_user);
    let mut command = entry.command();
    command.args(["--exact", &name, "--nocapture", "--include-ignored"]);
    let (ended, output) = finish(command, Duration::from_secs(timeout));
    match ended {
        Ended::Well if output.contains(ENTERED) => eprint!("{output}"),
        Ended::Well => {
            panic!(
                "`{name}` is no test: call lab::netns on the thread of a #[test], or with a closure in it\n{output}"
            )
        }
        Ended::TimedOut => {
            panic!("`{name}` was ended after {timeout} s ({TIMEOUT} sets another limit)\n{output}")
        }
        Ended::Badly if output.contains(ENTERED) => panic!("failed inside its namespaces:\n{output}"),
        Ended::Badly => {
            panic!("could not enter namespaces of its own ({entry:?}).\n{output}\n{}", Entry::needs())
        }
    }
}

/// Returns the name under which libtest knows the test. libtest names the test's thread after it. With a single thread
/// (`main`), the name comes from the closure's type: `crate::module::test::{{closure}}`.
fn test_name(thread: Option<&str>, closure: &str) -> String {
    let path = closure.split_once("::{{closure}}").map_or(closure, |(path, _)| path);
    let test = path.split_once("::").map_or(path, |(_crate, test)| test);
    thread.filter(|name| *name != "main").unwrap_or(test).to_owned()
}

/// The command prefix that enters new namespaces.
#[derive(Debug)]
pub(crate) struct Entry {
    prefix: Vec<&'static str>,
    exe: PathBuf,
    copies: Option<Copies>,
}

impl Entry {
    /// Chooses the prefix: root needs no user namespace unless `as_user` is set. `exe` is the program that runs inside.
    pub(crate) fn choose(exe: &Path, as_user: bool) -> Self {
        let root = rustix::process::geteuid().is_root();
        // setpriv must come first, because a change of user clears the parent-death signal.
        let mut prefix = vec!["setpriv", "--pdeathsig", "KILL"];
        let mut entry = |who: &[&'static str], user: &[&'static str]| {
            let mut all = who.to_vec();
            all.append(&mut prefix);
            all.extend(UNSHARE);
            all.extend(user);
            all.push("--");
            all
        };
        if !root {
            return Self { prefix: entry(&[], &USER), exe: exe.to_owned(), copies: None };
        }
        if !as_user || !nobody_may("unshare --user --map-current-user true") {
            return Self { prefix: entry(&[], &[]), exe: exe.to_owned(), copies: None };
        }
        let prefix = entry(&NOBODY, &USER);
        if nobody_may(&format!("test -r '{0}' -a -x '{0}'", exe.display())) {
            return Self { prefix, exe: exe.to_owned(), copies: None };
        }
        let copies = Copies::of(exe);
        Self { prefix, exe: copies.0.join(exe.file_name().unwrap_or_default()), copies: Some(copies) }
    }

    /// Returns the command that runs the binary inside. The caller may add arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.prefix[0]);
        command.args(&self.prefix[1..]).arg(&self.exe).stdin(Stdio::null());
        // An ordinary user's PATH may lack the directories of nft, nginx and sshd.
        let path = env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"));
        command.env(INSIDE, self.copies.as_ref().map(|copies| copies.0.as_os_str()).unwrap_or_default());
        command
    }

    /// Returns the requirements on the host, for a failure message.
    pub(crate) fn needs() -> &'static str {
        "This needs unshare and setpriv (Debian: util-linux) and ip (iproute2), and either root or user namespaces for \
         ordinary users:\n  sysctl user.max_user_namespaces                      (not 0)\n  sysctl -w \
         kernel.unprivileged_userns_clone=1          (older Debian)\n  sysctl -w \
         kernel.apparmor_restrict_unprivileged_userns=0  (Ubuntu)\nIn a container it needs CAP_SYS_ADMIN, or a seccomp \
         profile that allows unshare(2)."
    }
}

fn nobody_may(sh: &str) -> bool {
    let mut command = Command::new(NOBODY[0]);
    command.args(&NOBODY[1..]).args(["sh", "-c", sh]).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A directory that every user can read, with copies of the test's binary and the product's. It is removed on drop.
#[derive(Debug)]
struct Copies(PathBuf);

impl Copies {
    fn of(exe: &Path) -> Self {
        let name = exe.file_name().unwrap_or_default();
        let dir = env::temp_dir().join(format!("lab-{}-{}", std::process::id(), name.to_string_lossy()));
        let copies = Self(dir);
        // The product is beside a program, or one directory above a test (target/debug/deps/test-hash).
        let product =
            exe.ancestors().skip(1).take(2).map(|dir| dir.join("tcp-intercept")).find(|path| path.is_file());
        // create_dir() fails if another user made the directory. Set the mode, because the umask may forbid reading.
        let made = fs::create_dir(&copies.0);
        let made = made.and_then(|()| fs::set_permissions(&copies.0, Permissions::from_mode(0o755)));
        let copied = made.and_then(|()| {
            [Some(exe.to_owned()), product].iter().flatten().try_for_each(|from| {
                let to = copies.0.join(from.file_name().unwrap_or_default());
                fs::copy(from, to).map(drop)
            })
        });
        copied.unwrap_or_else(|err| panic!("the binaries cannot be copied to {}: {err}", copies.0.display()));
        copies
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // A leftover in the temporary directory is harmless.
        let _ = fs::remove_dir_all(&self.0);
    }
}

enum Ended {
    Well,
    Badly,
    TimedOut,
}

/// Runs `command` to its end or until `limit`. Returns the output of the command and all its descendants.
fn finish(mut command: Command, limit: Duration) -> (Ended, String) {
    let (mut from_child, to_parent) = std::io::pipe().unwrap_or_else(|err| panic!("no pipe: {err}"));
    let stderr = to_parent.try_clone().unwrap_or_else(|err| panic!("no pipe: {err}"));
    let started = command.stdout(to_parent).stderr(stderr).spawn();
    drop(command); // it holds the pipe's writing ends
    let mut child = match started {
        Ok(child) => child,
        Err(err) => return (Ended::Badly, format!("setpriv: {err}")),
    };
    let (done, output) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from_child.read_to_end(&mut bytes);
        let _ = done.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    match output.recv_timeout(limit) {
        Ok(output) if wait(&mut child) => (Ended::Well, output),
        Ok(output) => (Ended::Badly, output),
        Err(_) => {
            let _ = child.kill();
            wait(&mut child);
            (Ended::TimedOut, output.recv_timeout(Duration::from_secs(5)).unwrap_or_default())
        }
    }
}

fn wait(child: &mut Child) -> bool {
    child.wait().is_ok_and(|status| status.success())
}

/// Prepares new namespaces for `ip netns` and ordinary programs: a writable /run, and loopback up.
pub(crate) fn prepare() {
    for step in ["mount -t tmpfs tmpfs /run", "mkdir -p /run/netns", "ip link set lo up"] {
        crate::sh::run(Command::new("sh").args(["-c", step]), step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_named_by_its_thread_or_by_the_type_of_its_closure() {
        let closure = "it::top::a_reset_stays_a_reset::{{closure}}::{{closure}}";
        assert_eq!(test_name(Some("main"), closure), "top::a_reset_stays_a_reset");
        assert_eq!(test_name(Some("top::from_a_helper"), closure), "top::from_a_helper");
    }
}

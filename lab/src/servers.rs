//! Well-known servers on a host of the lab: nginx, OpenSSH, iperf3. Their files are below the lab's own /run.
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::host::Host;
use crate::process::Proc;
use crate::wait::wait_until;

const START: Duration = Duration::from_secs(10);

/// nginx on port 80 of all of a host's addresses, with the files of a directory.
#[derive(Debug)]
pub struct Nginx {
    dir: PathBuf,
    _process: Proc,
}

impl Nginx {
    /// Starts nginx, which serves the files of [`Nginx::files`] and logs each request.
    pub fn start(host: &Host) -> Self {
        Self::launch(host, &["nginx"])
    }

    /// Like [`Nginx::start`], with Multipath TCP on the listener.
    pub fn start_with_mptcp(host: &Host) -> Self {
        Self::launch(host, &["mptcpize", "run", "nginx"])
    }

    fn launch(host: &Host, program: &[&str]) -> Self {
        let dir = fresh(&format!("nginx-{host}"));
        fs::create_dir(dir.join("files")).unwrap_or_else(|err| panic!("{}: {err}", dir.display()));
        let d = dir.display();
        let config = format!(
            "daemon off; master_process off; pid {d}/pid; events {{ worker_connections 512; }}
            http {{
                log_format seen '$remote_addr $remote_port $status $bytes_sent $request_uri'; access_log {d}/access seen;
                client_body_temp_path {d}/t1; proxy_temp_path {d}/t2; fastcgi_temp_path {d}/t3; uwsgi_temp_path {d}/t4;
                scgi_temp_path {d}/t5; sendfile on; tcp_nopush on;
                server {{ listen 80; listen [::]:80; root {d}/files; }}
            }}"
        );
        write(&dir.join("conf"), &config);
        let conf = format!("{d}/conf");
        let arguments = [&program[1..], &["-e", "stderr", "-c", &conf]].concat();
        let process = host.spawn(program[0], &arguments);
        listening(host, 80, &process);
        Self { dir, _process: process }
    }

    /// Returns the directory of the files that it serves.
    pub fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    /// Returns its access log: `address port status bytes path`, one line per request.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("access")).unwrap_or_default()
    }
}

/// OpenSSH's server on port 22. The user `lab` is the current user, with a key of its own.
#[derive(Debug)]
pub struct Sshd {
    dir: PathBuf,
    _process: Proc,
}

impl Sshd {
    /// Starts sshd with its own keys. It does not use the machine's accounts and keys.
    pub fn start(host: &Host) -> Self {
        let dir = fresh(&format!("sshd-{host}"));
        let d = dir.display().to_string();
        add_account(&dir);
        for key in ["host", "user"] {
            host.run(&format!("ssh-keygen -q -t ed25519 -N '' -f {d}/{key}"));
        }
        let config = format!(
            "HostKey {d}/host\nAuthorizedKeysFile {d}/user.pub\nPidFile none\nUsePAM no\nStrictModes no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nPrintMotd no\n"
        );
        write(&dir.join("conf"), &config);
        // sshd's privilege separation needs this directory when root runs it, and sshd must be started by its full
        // path.
        let process = host
            .spawn("sh", &["-c", &format!("mkdir -p /run/sshd; exec $(command -v sshd) -D -e -f {d}/conf")]);
        listening(host, 22, &process);
        Self { dir, _process: process }
    }

    /// Returns the command `ssh` on `client` to this server at `address`. The caller may add a remote command.
    pub fn client(&self, client: &Host, address: std::net::IpAddr) -> Command {
        let mut command = client.cmd("ssh");
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        command.args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "ConnectTimeout=10",
        ]);
        command.arg("-i").arg(self.dir.join("user")).arg(format!("lab@{address}"));
        command
    }
}

/// Adds an account with a shell for the current user. /etc/passwd is replaced in this mount namespace only.
fn add_account(dir: &Path) {
    let passwd = dir.join("passwd");
    let known = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    write(&passwd, &format!("{known}\nlab:*:{user}:{group}::{}:/bin/sh\n", dir.display()));
    crate::sh::run(Command::new("mount").arg("--bind").arg(&passwd).arg("/etc/passwd"), "mount /etc/passwd");
}

/// An iperf3 server on its default port, 5201.
#[derive(Debug)]
pub struct Iperf(Proc);

impl Iperf {
    /// Starts iperf3.
    pub fn start(host: &Host) -> Self {
        let process = host.spawn("iperf3", &["-s"]);
        listening(host, 5201, &process);
        Self(process)
    }

    /// Returns the received rate in bits per second, measured for a number of seconds from `client`, or towards it.
    pub fn measure(
        &self,
        client: &Host,
        address: std::net::IpAddr,
        seconds: u32,
        towards_client: bool,
    ) -> f64 {
        let reverse = if towards_client { "-R" } else { "" };
        let report = client.run(&format!("iperf3 -c {address} -t {seconds} -J {reverse}"));
        let report: serde_json::Value =
            serde_json::from_str(&report).unwrap_or_else(|err| panic!("iperf3's report: {err}\n{report}"));
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        rate.unwrap_or_else(|| panic!("iperf3 measured nothing: {report}\n{}", self.0.stdout()))
    }
}

/// Returns a new directory that no server of an earlier lab on a host of the same name has used.
fn fresh(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    scratch(&format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Returns a directory of the lab, below the lab's own /run. It disappears with the lab's namespaces.
pub fn scratch(name: &str) -> PathBuf {
    let dir = Path::new("/run/lab").join(name);
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&dir);
    made.unwrap_or_else(|err| panic!("{}: {err}", dir.display()));
    dir
}

fn write(path: &Path, text: &str) {
    let written =
        fs::write(path, text).and_then(|()| fs::set_permissions(path, PermissionsExt::from_mode(0o644)));
    written.unwrap_or_else(|err| panic!("{}: {err}", path.display()));
}

fn listening(host: &Host, port: u16, process: &Proc) {
    let there = || !host.ss(&format!("-tln sport = :{port}")).is_empty() || !process.stderr().is_empty();
    wait_until(&format!("a listener on port {port} of {host}"), START, there);
}

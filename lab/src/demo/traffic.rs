//! The traffic that passes: a web page and a file by curl, a session by ssh.
use std::fs::File;
use std::io::Write;
use std::process::Stdio;
use std::time::Instant;

use lab::stream::Random;
use lab::{BOTH, Ip};

use super::{FILE_BYTES, Stage, since};
use crate::report::Report;

impl Stage {
    /// Each protocol, each program; the server says whom it saw.
    pub fn show_traffic(&self, report: &mut Report) {
        report.section("3. Traffic through it");
        let sum = self.publish_file();
        for ip in BOTH {
            self.fetch_file(report, ip, &sum);
            self.session(report, ip);
        }
    }

    /// A file of known content for nginx; gives its SHA-256.
    fn publish_file(&self) -> String {
        let path = self.nginx.files().join("file");
        let mut chunk = vec![0; 1 << 20];
        let mut random = Random::new(1);
        let mut file = File::create(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        for _ in 0..FILE_BYTES >> 20 {
            random.fill(&mut chunk);
            file.write_all(&chunk).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        }
        self.lab.server.run(&format!("sha256sum < {}", path.display()))
    }

    fn fetch_file(&self, report: &mut Report, ip: Ip, sum: &str) {
        let url = format!("http://{}/file", self.lab.server_at(ip, 80));
        let start = Instant::now();
        let told = self.lab.client().run(&format!(
            "curl -fsS -w '%{{stderr}}%{{local_ip}} %{{local_port}}' '{url}' 2>/run/lab/curl | sha256sum; cat /run/lab/curl"
        ));
        let took = since(start);
        let (received, client) = told.split_once('\n').unwrap_or_default();
        let whole = received.trim() == sum.trim();
        report.check(whole, &format!("curl {url}: {} MiB in {took}, SHA-256 as sent", FILE_BYTES >> 20));
        let log = self.nginx.log();
        let seen = log.lines().last().unwrap_or_default();
        let same = !client.is_empty() && seen.starts_with(client.trim());
        report.check(same, &format!("  nginx saw {}, the client's own address and port", first_two(seen)));
    }

    /// The remote command says from where it was called, then returns what it is sent, until the input's end.
    fn session(&self, report: &mut Report, ip: Ip) {
        let address = self.lab.server_at(ip, 0).ip();
        let mut command = self.sshd.client(self.lab.client(), address);
        command.arg("echo $SSH_CONNECTION; cat").stdin(Stdio::piped()).stdout(Stdio::piped());
        let start = Instant::now();
        let mut ssh = command.spawn().unwrap_or_else(|err| panic!("ssh: {err}"));
        if let Some(mut input) = ssh.stdin.take() {
            // What does not get there is missing in the answer.
            let _ = input.write_all(b"typed by the client");
        }
        let output = ssh.wait_with_output().map(|output| output.stdout).unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        let (connection, typed) = output.split_once('\n').unwrap_or_default();
        let right = typed == "typed by the client";
        report
            .check(right, &format!("ssh {address}: a session, its input closed first, in {}", since(start)));
        let own = self.lab.client_at(0, ip, 0).ip().to_string();
        report.check(connection.starts_with(&own), &format!("  sshd saw {}", first_two(connection)));
    }

    /// A page by a new connection, right now.
    pub fn fetch(&self, report: &mut Report, ip: Ip) {
        let url = format!("http://{}/", self.lab.server_at(ip, 80));
        let start = Instant::now();
        let mut curl = self.lab.client().cmd("curl");
        let fetched = curl.args(["-fsS", "-o", "/dev/null", "-m", "5", &url]).status();
        report.check(fetched.is_ok_and(|status| status.success()), &format!("curl {url}: {}", since(start)));
    }
}

fn first_two(line: &str) -> String {
    line.split(' ').take(2).collect::<Vec<_>>().join(" port ")
}

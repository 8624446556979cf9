//! nginx, OpenSSH and iperf3 serve in the lab, for root and for ordinary users.
use std::io::Write;
use std::process::Stdio;

use lab::servers::{Iperf, Nginx, Sshd};
use lab::{BOTH, Lab};

#[test]
fn well_known_servers_answer() {
    lab::netns(all_answer);
}

#[test]
fn well_known_servers_answer_an_ordinary_user() {
    lab::netns_as_user(all_answer);
}

#[test]
fn a_lab_after_another_has_servers_too() {
    lab::netns(|| {
        all_answer();
        all_answer();
    });
}

fn all_answer() {
    let lab = Lab::new();
    let nginx = Nginx::start(&lab.server);
    std::fs::write(nginx.files().join("file"), "content").expect("the directory is there");
    let sshd = Sshd::start(&lab.server);
    for ip in BOTH {
        let page = lab.client().run(&format!("curl -sS http://{}/file", lab.server_at(ip, 80)));
        assert_eq!(page, "content");
        assert!(nginx.log().contains(&format!("{} ", lab.client_at(0, ip, 0).ip())), "{}", nginx.log());

        let mut ssh = sshd.client(lab.client(), lab.server_at(ip, 22).ip());
        let ssh = ssh.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut ssh = ssh.expect("ssh is installed");
        ssh.stdin.take().expect("a pipe").write_all(b"through").expect("ssh reads");
        let output = ssh.wait_with_output().expect("ssh ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "through");
    }
    let iperf = Iperf::start(&lab.server);
    assert!(iperf.measure(lab.client(), lab.server_at(BOTH[0], 0).ip(), 1, false) > 1e6);
}

//! A new program that fails after a successful trial: the previous program runs again, with all sessions.
use std::fs;
use std::os::unix::fs::PermissionsExt;

use lab::{Daemon, Lab, netns, reachable, wait_until};

use crate::support::{BIN, CRASH_AT, FEW, MANY, SOON, command, counter, said, takeovers, traffic, went_well};

/// Writes a program that passes its trial and then runs `earnest`, a line of shell in which `$real` and `"$@"` are
/// available.
fn new_program(earnest: &str) -> &'static str {
    let path = "/run/new";
    let _ = fs::remove_file("/run/tried");
    let real = reachable(BIN.as_ref());
    let text = format!(
        "#!/bin/sh\nreal={}\nif [ ! -e /run/tried ]; then touch /run/tried; exec $real \"$@\"; fi\n{earnest}\n",
        real.display()
    );
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Returns how many children of `parent` have ended without being reaped.
fn zombies(parent: u32) -> usize {
    let stats = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let stat = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        Some((fields.next()?.to_owned(), fields.next()?.parse::<u32>().ok()?))
    });
    stats.filter(|(state, of)| state == "Z" && *of == parent).count()
}

#[test]
fn a_new_program_that_fails_after_execve_gives_way_to_the_previous_one() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, reachable(BIN.as_ref()), &[MANY]);
        let guardian = daemon.guardian();
        let traffic = traffic(&lab, FEW);
        let cases = [
            // Its first worker fails.
            (format!("{CRASH_AT}=fail:thread exec $real \"$@\""), "the first worker ended with status 71"),
            (
                format!("{CRASH_AT}=kill:start,kill:host exec $real \"$@\""),
                "the first worker died of signal 9",
            ),
            // Its guardian fails: before it has read its configuration, or when it creates its resources.
            ("exec $real \"$@\" --set no.such=key".to_owned(), "no.such"),
            ("exec $real \"$@\" --set server.congestion-control=none".to_owned(), "none"),
        ];
        for (n, (earnest, why)) in cases.iter().enumerate() {
            let answer = command(&lab.gateway, &format!("upgrade {}", new_program(earnest)));
            assert!(answer.contains("not upgraded, and nothing has changed: version "), "{answer}");
            assert!(answer.contains(why) && answer.contains("exit=69"), "{why}: {answer}{}", said(&daemon));
            wait_until("the previous program has resumed", SOON, || takeovers(&daemon) == n + 1);
            let name = fs::read_to_string(format!("/proc/{guardian}/comm")).unwrap();
            assert_eq!(name, "tcp-intercept\n");
        }
        wait_until("the log writers of the failed programs are reaped", SOON, || zombies(guardian) == 0);
        // The daemon can still be upgraded.
        let answer = command(&lab.gateway, "upgrade");
        assert!(answer.contains("exit=0"), "{answer}{}", said(&daemon));
        went_well(traffic, 1, &daemon);
        let log = daemon.stop().1;
        assert_eq!((counter(&log, "upgrades"), counter(&log, "not-taken-up")), (1, 0), "{log}");
        assert_eq!(lab.gateway.run("nft list tables"), "");
    });
}

#[test]
fn the_previous_program_is_run_again_although_its_file_is_gone() {
    netns(|| {
        let lab = Lab::new();
        fs::copy(BIN, "/run/old").unwrap();
        let daemon = Daemon::start(&lab.gateway, "/run/old", &[MANY]);
        let traffic = traffic(&lab, FEW);
        fs::remove_file("/run/old").unwrap();
        let new = new_program(&format!("{CRASH_AT}=fail:runtime exec $real \"$@\""));
        let answer = lab.gateway.run(&format!("{BIN} upgrade {new} 2>&1 || true"));
        assert!(answer.contains("not upgraded") && answer.contains("ended with status 71"), "{answer}");
        wait_until("the previous program has resumed", SOON, || takeovers(&daemon) == 1);
        went_well(traffic, 1, &daemon);
        assert_eq!(counter(&daemon.stop().1, "not-taken-up"), 0);
    });
}

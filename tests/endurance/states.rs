//! Sessions that are reset in every state.
use std::io::Write;

use lab::peers::{Server, banner, echo, reset};
use lab::{BOTH, Daemon, Lab, netns, wait_until};

use crate::bench::{BIN, PIPES, SOON, descriptors, speaks};

#[test]
fn sessions_that_are_reset_in_every_state_leave_nothing_behind() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let before = descriptors(&mut daemon);
        for ip in BOTH {
            let echoes = Server::start(&lab.server, lab.server_at(ip, 80), echo);
            let speaker = Server::start(&lab.server, lab.server_at(ip, 81), banner);
            let resetter = Server::start(&lab.server, lab.server_at(ip, 82), |stream| {
                reset(stream);
                Ok(())
            });
            let refused = lab.server_at(ip, 83);
            for n in 0..400 {
                let to = [echoes.address, speaker.address, resetter.address, refused][n % 4];
                let Ok(mut stream) = lab.client().connect(to) else { continue };
                match n / 4 % 4 {
                    0 => {}
                    1 => drop(stream.write_all(b"some")),
                    2 => drop(stream.shutdown(std::net::Shutdown::Write)),
                    _ if to == echoes.address => speaks(&stream).unwrap(),
                    _ => {}
                }
                reset(stream);
            }
        }
        wait_until("all descriptors are back", SOON, || descriptors(&mut daemon) <= before + PIPES);
        assert_eq!(lab.gateway.ss("-tn state connected exclude time-wait"), "");
        let records = daemon.close_records().len();
        let log = daemon.stop().1;
        assert!(records > 100 && log.contains(&format!("accepted={records} ")), "{records} records\n{log}");
    });
}

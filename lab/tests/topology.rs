//! The lines of hosts carry traffic of both IP versions, with the configured MTUs.
use std::time::Duration;

use lab::stream::{self, Pace};
use lab::{BOTH, Lab, Shape};

#[test]
fn a_client_reaches_the_server_through_the_box_over_both_protocols() {
    lab::netns(|| reaches(&Lab::new()));
}

#[test]
fn an_ordinary_user_gets_the_same_hosts() {
    lab::netns_as_user(|| reaches(&Lab::new()));
}

#[test]
fn a_narrow_cable_in_the_middle_is_found_by_path_mtu_discovery() {
    lab::netns(|| {
        let lab = Lab::with(Shape { near_mtu: Some(1280), far_mtu: Some(1300), ..Shape::default() });
        reaches(&lab);
        let routes = lab.client().ip("route get 10.2.0.2");
        assert!(routes.contains("mtu 1280"), "{routes}");
    });
}

#[test]
fn behind_a_masquerading_box_the_server_sees_the_box() {
    lab::netns(|| {
        let lab = Lab::with(Shape { clients: 2, ..Shape::default() });
        lab.masquerade();
        for ip in BOTH {
            let listener = lab.server.listen(lab.server_at(ip, 7));
            for client in &lab.clients {
                let _stream = client.connect(lab.server_at(ip, 7)).unwrap();
                let (_, peer) = listener.accept().unwrap();
                assert!(lab.gateway.ip("address").contains(&peer.ip().to_string()), "{peer}");
            }
        }
    });
}

#[test]
fn a_programs_output_is_captured_and_it_is_killed_with_its_guard() {
    lab::netns(|| {
        let lab = Lab::new();
        let mut cat = lab.server.spawn("sh", &["-c", "echo here; exec sleep 100"]);
        cat.wait_for("here", Duration::from_secs(5));
        let pid = cat.pid();
        drop(cat);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    });
}

fn reaches(lab: &Lab) {
    for ip in BOTH {
        let listener = lab.server.listen(lab.server_at(ip, 7));
        let from = lab.client_at(0, ip, 4000);
        let client = lab.client().connect_from(from, lab.server_at(ip, 7)).expect("connects");
        let (server, peer) = listener.accept().expect("accepts");
        assert_eq!(peer, from);
        stream::exchange(&client, &server, 1 << 20, Pace::UNEVEN);
    }
}

//! client – box – WAN – server: a single box, on the client's side of the bad link.
use crate::topology::{CLIENT, Lab, SERVER, Shape, route, speak_cubic};
use crate::wan::{Path, Profile, Wan};

/// A [`Lab`] whose cable to the server is the WAN. The client and the server use CUBIC, independent of the machine's
/// default.
#[derive(Debug)]
pub struct Line {
    /// The WAN.
    pub path: Path,
    /// The client, the box and the server.
    pub lab: Lab,
    _wan: Wan,
}

impl Line {
    /// Builds the line with the first path of a profile.
    ///
    /// # Panics
    /// The profile has no path.
    pub fn new(profile: &Profile) -> Self {
        let lab = Lab::without_cable_to_the_server(Shape::default());
        let wan = Wan::new();
        let (near, far) = (SERVER.addresses(1), SERVER.addresses(2));
        let (near, far) = (lab.gateway.end("wan0", &near), lab.server.end("eth0", &far));
        let path = wan.lay(0, near, far, profile.paths[0], profile.seed);
        route(SERVER, SERVER, &lab.server, &lab.gateway);
        speak_cubic(lab.client(), CLIENT);
        speak_cubic(&lab.server, SERVER);
        Self { path, lab, _wan: wan }
    }
}

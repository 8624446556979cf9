//! `[[mptcp.path]]`: the keys of each path, and the values that no two paths may share. PURE.
use super::fault::{Place, Why};
use super::section::Section;
use super::{Mptcp, MptcpPath, PathAt, value};
use crate::units::Port;

/// The port with which a path is announced if `port` is missing.
const PORT: Port = Port::new(5001).expect("5001 is not 0");
/// The maximum number of endpoints in the kernel (MPTCP_PM_ADDR_MAX in net/mptcp/protocol.h).
const MOST: usize = 8;

/// A path, with the places of its device or address and of its id.
struct Read {
    path: MptcpPath,
    key: &'static str,
    at: Place,
    id: Option<Place>,
}

pub(super) fn mptcp(section: &mut Section<'_>) -> Mptcp {
    let not_array = || {
        Why::Allowed(
            "must be tables: write [[mptcp.path]] for each path, with its keys below, or [{ device = \"wan1\" }]",
        )
    };
    let read: Vec<Option<Read>> = section.tables("path", path, not_array);
    let read: Vec<(usize, Read)> =
        read.into_iter().enumerate().filter_map(|(n, read)| Some((n, read?))).collect();
    for (at, (n, later)) in read.iter().enumerate() {
        let shared = |same: fn(&MptcpPath, &MptcpPath) -> bool| {
            let earlier = read[..at].iter().find(|(_, earlier)| same(&earlier.path, &later.path));
            earlier.map(|(n, _)| Why::SamePath(format!("mptcp.path[{n}]")))
        };
        if let Some(why) = shared(|one, other| one.at == other.at) {
            section.fault(&format!("path[{n}].{}", later.key), later.at.clone(), why);
        }
        let same_id = shared(|one, other| one.id.is_some() && one.id == other.id);
        if let (Some(why), Some(place)) = (same_id, &later.id) {
            section.fault(&format!("path[{n}].id"), place.clone(), why);
        }
        if at == MOST {
            let why = Why::Allowed("there may be 8 paths at most: the kernel keeps no more endpoints");
            section.fault(&format!("path[{n}].{}", later.key), later.at.clone(), why);
        }
    }
    Mptcp { paths: read.into_iter().map(|(_, read)| read.path).collect() }
}

/// Reads one path; returns `None` if its device or address is missing or refused.
fn path(section: &mut Section<'_>, place: &Place) -> Option<Read> {
    let device = section.take("device", |node| value::interface(node).map(Some), None);
    let address = section.take("address", value::path_address, None);
    let announce = section.take("announce", value::switch, false);
    let port = section.take("port", value::port, PORT);
    let backup = section.take("backup", value::switch, false);
    let id = section.take("id", value::path_id, None);
    let written = |key| section.written(key);
    let (at_device, at_address, at_port) = (written("device"), written("address"), written("port"));
    let at_id = written("id");
    match (&at_device, &at_address) {
        (Some(_), Some(place)) => section.fault("address", place.clone(), Why::DeviceAndAddress),
        (None, None) => section.fault("device", place.clone(), Why::NoPath),
        _ => {}
    }
    if let (false, true, Some(place)) = (announce, section.faultless(), at_port) {
        section.fault("port", place, Why::NotAnnounced);
    }
    let (at, key, place) = match (device, address) {
        (Some(device), None) => (PathAt::Device(device), "device", at_device?),
        (None, Some(address)) => (PathAt::Address(address), "address", at_address?),
        _ => return None,
    };
    let path = MptcpPath { at, announce: announce.then_some(port), backup, id };
    Some(Read { path, key, at: place, id: at_id })
}

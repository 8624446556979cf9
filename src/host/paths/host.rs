//! The state of this host: devices, addresses, endpoints, and the record of the daemon's own part. EFFECT.
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rustix::net::netdevice::name_to_index;
use serde_json::Value;

use crate::config::{Mptcp, PathAt};
use crate::host::rules::RulesError;
use crate::host::rules::netlink::run;
use crate::host::rules::nft;

use super::netlink::PathManager;
use super::plan::{Address, Seen};
use super::record::{Record, TABLE};

/// Reads the state of the host for `mptcp`, without the record; looks up names of devices with `socket`.
pub fn seen(mptcp: &Mptcp, manager: &PathManager, socket: impl AsFd) -> Result<Seen, RulesError> {
    let device = |path: &PathAt| match path {
        // Any other error of the kernel also counts as a missing device.
        PathAt::Device(name) => Some((name.clone(), name_to_index(&socket, name.as_str()).ok())),
        PathAt::Address(_) => None,
    };
    let step = |what| move |err| RulesError::io(format!("list the {what}"), &err);
    Ok(Seen {
        devices: mptcp.paths.iter().filter_map(|path| device(&path.at)).collect(),
        addresses: addresses().map_err(step("addresses of this host"))?,
        endpoints: manager.endpoints().map_err(step("MPTCP endpoints"))?,
        limits: manager.limits().map_err(step("MPTCP limits"))?,
        record: Record::default(),
        claims: Vec::new(),
        timestamps: number("/proc/sys/net/ipv4/tcp_timestamps").is_none_or(|on| on != 0),
    })
}

/// Connects to the path manager; the error explains a kernel without one.
pub fn manager() -> Result<PathManager, RulesError> {
    let step = "reach the kernel's MPTCP path manager";
    PathManager::open().map_err(|err| match err.kind() {
        io::ErrorKind::NotFound => RulesError::Failed {
            step: step.to_owned(),
            why: "this kernel has none (CONFIG_MPTCP)".to_owned(),
        },
        _ => RulesError::io(step, &err),
    })
}

/// Returns whether Multipath TCP is switched off.
pub fn switched_off() -> bool {
    number("/proc/sys/net/mptcp/enabled") == Some(0)
}

/// Reads the record of the daemon's own part of the path manager's state.
pub fn record() -> Result<Record, RulesError> {
    let step = "read the record of MPTCP endpoints";
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let tables = parse(&nft::list(step, &["-j", "list", "tables", "inet"])?);
    let items = |list: &Value| list["nftables"].as_array().cloned().unwrap_or_default();
    if !items(&tables).iter().any(|item| item["table"]["name"] == TABLE) {
        return Ok(Record::default());
    }
    let table = parse(&nft::list(step, &["-j", "list", "table", "inet", TABLE])?);
    Ok(Record::parse(items(&table).iter().filter_map(|item| item["rule"]["comment"].as_str())))
}

/// Replaces the stored record with `record`.
pub fn remember(record: &Record) -> Result<(), RulesError> {
    nft::transact("keep the record of MPTCP endpoints", &record.script())
}

fn addresses() -> io::Result<Vec<Address>> {
    let all: Vec<AddressMessage> = run(async |handle| handle.address().get().execute().try_collect().await)?;
    Ok(all.iter().filter_map(address).collect())
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut own, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link, `Address` is the address of the other end.
            AddressAttribute::Local(ip) => own = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            _ => {}
        }
    }
    let unsure = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    let passing = AddressHeaderFlags::Secondary | AddressHeaderFlags::Deprecated;
    let flags = message.header.flags;
    let ip: IpAddr = own.or(peer)?;
    Some(Address {
        ip,
        device: message.header.index,
        ready: !flags.intersects(unsure),
        lasting: !flags.intersects(passing) && message.header.scope == AddressScope::Universe,
    })
}

fn number(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

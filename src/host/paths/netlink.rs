//! Requests to the kernel's path manager by generic netlink (include/uapi/linux/mptcp_pm.h). EFFECT.
//!
//! The messages are built by hand. The functions block, as the others in this module, and errors carry the text of the
//! kernel.
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU8;

use rtnetlink::packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NlaBuffer, NlasIterator};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

use crate::units::Port;

use super::endpoint::{Endpoint, Existing, Flags, Limits, Place};
use super::record::Limit;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
const GENL_HEADER: usize = 4;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The controller of generic netlink: include/uapi/linux/genetlink.h.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const FAMILY: &[u8] = b"mptcp_pm\0";
const VERSION: u8 = 1;
const ADD_ADDR: u8 = 1;
const DEL_ADDR: u8 = 2;
const GET_ADDR: u8 = 3;
const SET_LIMITS: u8 = 5;
const GET_LIMITS: u8 = 6;
const ATTR_ADDR: u16 = 1;
const ATTR_RCV_ADD_ADDRS: u16 = 2;
const ATTR_SUBFLOWS: u16 = 3;
const ADDR_FAMILY: u16 = 1;
const ADDR_ID: u16 = 2;
const ADDR_V4: u16 = 3;
const ADDR_V6: u16 = 4;
const ADDR_PORT: u16 = 5;
const ADDR_FLAGS: u16 = 6;
const ADDR_IF_IDX: u16 = 7;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// The flag of an endpoint that the kernel creates for an address that a connection uses. Adding an endpoint with that
/// address replaces it.
const FLAG_IMPLICIT: u32 = 16;

/// A connection to the path manager, in the network namespace of the calling thread.
pub struct PathManager {
    socket: Socket,
    family: u16,
}

impl PathManager {
    /// Connects to the path manager; `NotFound`: this kernel has none.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_GENERIC)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without these options, errors carry only a number.
        let _ = (socket.set_cap_ack(true), socket.set_ext_ack(true));
        let mut manager = Self { socket, family: GENL_ID_CTRL };
        let name = DefaultNla::new(CTRL_ATTR_FAMILY_NAME, FAMILY.to_vec());
        let answers = manager.ask(CTRL_CMD_GETFAMILY, NLM_F_ACK, &[name])?;
        let id = answers.iter().find_map(|answer| number(&find(answer, CTRL_ATTR_FAMILY_ID)?));
        manager.family = id.and_then(|id| u16::try_from(id).ok()).ok_or_else(truncated)?;
        Ok(manager)
    }

    /// Lists the endpoints, without those that the kernel created for itself.
    pub fn endpoints(&self) -> io::Result<Vec<Existing>> {
        let answers = self.ask(GET_ADDR, NLM_F_DUMP, &[])?;
        let all = answers.iter().filter_map(|answer| existing(&find(answer, ATTR_ADDR)?));
        Ok(all.filter(|found| found.endpoint.flags.0 & FLAG_IMPLICIT == 0).collect())
    }

    /// Adds an endpoint (`ip mptcp endpoint add`).
    pub fn add(&self, endpoint: &Endpoint) -> io::Result<()> {
        self.ask(ADD_ADDR, NLM_F_ACK, &[address(endpoint)]).map(drop)
    }

    /// Deletes an endpoint (`ip mptcp endpoint delete`); a missing endpoint is no error.
    pub fn delete(&self, endpoint: &Existing) -> io::Result<()> {
        let id = Endpoint { id: NonZeroU8::new(endpoint.id), ..endpoint.endpoint };
        match self.ask(DEL_ADDR, NLM_F_ACK, &[address(&id)]) {
            // The kernel refuses an unknown id: the endpoint has been deleted already.
            Err(_) if !self.endpoints()?.iter().any(|found| found.id == endpoint.id) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Reads the limits (`ip mptcp limits`).
    pub fn limits(&self) -> io::Result<Limits> {
        let answers = self.ask(GET_LIMITS, NLM_F_ACK, &[])?;
        let value = |kind| answers.iter().find_map(|answer| number(&find(answer, kind)?));
        let limits = value(ATTR_SUBFLOWS).zip(value(ATTR_RCV_ADD_ADDRS));
        let (subflows, add_addr_accepted) = limits.ok_or_else(truncated)?;
        Ok(Limits { subflows, add_addr_accepted })
    }

    /// Sets one limit (`ip mptcp limits set`); the other stays as it is.
    pub fn set_limit(&self, limit: Limit, value: u32) -> io::Result<()> {
        let kind = match limit {
            Limit::Subflows => ATTR_SUBFLOWS,
            Limit::AddAddrAccepted => ATTR_RCV_ADD_ADDRS,
        };
        self.ask(SET_LIMITS, NLM_F_ACK, &[DefaultNla::new(kind, value.to_ne_bytes().to_vec())]).map(drop)
    }

    /// Sends a request and returns the attributes of each answer.
    fn ask(&self, command: u8, flags: u16, attributes: &[DefaultNla]) -> io::Result<Vec<Vec<u8>>> {
        let mut payload = vec![command, VERSION, 0, 0];
        payload.extend(emitted(attributes));
        let length = u32::try_from(NLMSG_HEADER + payload.len()).map_err(io::Error::other)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(self.family.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(payload);
        self.socket.send(&message, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for (kind, flags, payload) in messages(&datagram) {
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => return verdict(flags, payload).map(|()| answers),
                    _ => answers.push(payload.get(GENL_HEADER..).unwrap_or_default().to_vec()),
                }
            }
        }
    }
}

/// Returns the kind, flags and payload of each message in a datagram.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
        let short = |at: usize| Some(u16::from_ne_bytes(datagram.get(at..at + 2)?.try_into().ok()?));
        let (kind, flags) = (short(4)?, short(6)?);
        let payload = datagram.get(NLMSG_HEADER..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, payload))
    })
}

/// Parses the errno of an error message or of the end of a list, with the kernel's text about it.
fn verdict(flags: u16, payload: &[u8]) -> io::Result<()> {
    let errno = payload.get(..4).and_then(|bytes| Some(i32::from_ne_bytes(bytes.try_into().ok()?)));
    let err = match errno.ok_or_else(truncated)? {
        0 => return Ok(()),
        errno => io::Error::from_raw_os_error(-errno),
    };
    let attributes = payload.get(4 + NLMSG_HEADER..).filter(|_| flags & NLM_F_ACK_TLVS != 0);
    let said = attributes.and_then(|attributes| find(attributes, NLMSGERR_ATTR_MSG));
    match said.map(|text| String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned()) {
        Some(text) if !text.is_empty() => Err(io::Error::new(err.kind(), format!("{err}: {text}"))),
        _ => Err(err),
    }
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut short")
}

fn find(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    let mut all = NlasIterator::new(attributes).map_while(Result::ok);
    all.find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == kind).map(|found| found.value().to_vec())
}

/// Parses an unsigned number of one, two or four bytes.
fn number(bytes: &[u8]) -> Option<u32> {
    match *bytes {
        [byte] => Some(byte.into()),
        [a, b] => Some(u16::from_ne_bytes([a, b]).into()),
        [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d])),
        _ => None,
    }
}

fn emitted(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn address(endpoint: &Endpoint) -> DefaultNla {
    let Endpoint { place: Place { address, port }, device, flags, id } = endpoint;
    let (family, kind, octets) = match address {
        IpAddr::V4(v4) => (AF_INET, ADDR_V4, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, ADDR_V6, v6.octets().to_vec()),
    };
    let mut inside = vec![
        DefaultNla::new(ADDR_FAMILY, family.to_ne_bytes().to_vec()),
        DefaultNla::new(kind, octets),
        DefaultNla::new(ADDR_FLAGS, flags.0.to_ne_bytes().to_vec()),
        DefaultNla::new(ADDR_IF_IDX, device.to_ne_bytes().to_vec()),
    ];
    inside.extend(id.map(|id| DefaultNla::new(ADDR_ID, vec![id.get()])));
    inside.extend(port.map(|port| DefaultNla::new(ADDR_PORT, port.get().to_ne_bytes().to_vec())));
    DefaultNla::new(ATTR_ADDR | NLA_F_NESTED, emitted(&inside))
}

fn existing(attributes: &[u8]) -> Option<Existing> {
    let value = |kind| number(&find(attributes, kind)?);
    let v4 = find(attributes, ADDR_V4).and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(IpAddr::from);
    let v6 = find(attributes, ADDR_V6).and_then(|octets| <[u8; 16]>::try_from(octets).ok()).map(IpAddr::from);
    let id = u8::try_from(value(ADDR_ID)?).ok()?;
    let port = value(ADDR_PORT).and_then(|port| Port::new(u16::try_from(port).ok()?));
    let endpoint = Endpoint {
        place: Place { address: v4.or(v6)?, port },
        device: value(ADDR_IF_IDX).unwrap_or(0),
        flags: Flags(value(ADDR_FLAGS).unwrap_or(0)),
        id: NonZeroU8::new(id),
    };
    Some(Existing { endpoint, id })
}

//! Validates each kind of value. PURE: one function per kind; its fault says which values are allowed.
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;

use super::fault::Why;
use super::tree::{Node, Value};
use super::{
    Congestion, CongestionControl, FastOpen, Interface, Keepalive, Level, LogFormat, LogTarget, SendBuffer,
    Sigterm, Source,
};
use crate::units::{BadMark, Mark, OwnMark, Port};

/// The maximum of TCP_KEEPIDLE and TCP_KEEPINTVL in seconds (MAX_TCP_KEEPIDLE in include/net/tcp.h).
const KEEPALIVE_SECONDS: u64 = 32_767;
/// The maximum of TCP_KEEPCNT (MAX_TCP_KEEPCNT in include/net/tcp.h).
const KEEPALIVE_PROBES: u32 = 127;
/// The maximum of TCP_USER_TIMEOUT: a signed number of milliseconds, where the kernel answers EINVAL to a negative one.
const USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);
/// The minimum in bytes: with less, one burst from the other leg does not fit.
const NOTSENT_LEAST: u32 = 16 << 10;
/// The maximum in bytes, which is larger than any send buffer.
const NOTSENT_MOST: u32 = 1 << 30;
const SEND_BUFFER_LEAST: u32 = 64 << 10;
const SEND_BUFFER_MOST: u32 = 1 << 30;
/// The maximum of the program's own timers: one year. `0s` disables a timer.
const TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);
/// The range of the initial window, in segments: no queue before a slow link takes a burst of more than 1.4 MB.
const SEGMENTS: std::ops::RangeInclusive<u32> = 1..=1000;
/// The kernel's own routing tables: RT_TABLE_DEFAULT, RT_TABLE_MAIN and RT_TABLE_LOCAL.
const KERNEL_TABLES: std::ops::RangeInclusive<u32> = 253..=255;

pub(super) fn switch(node: &Node) -> Result<bool, Why> {
    match node.value {
        Value::Bool(yes) => Ok(yes),
        _ => Err(Why::Allowed("must be true or false")),
    }
}

pub(super) fn port(node: &Node) -> Result<Port, Why> {
    number(node)
        .and_then(|number| Port::new(u16::try_from(number).ok()?))
        .ok_or(Why::Allowed("a port is a number from 1 to 65535"))
}

pub(super) fn table(node: &Node) -> Result<NonZeroU32, Why> {
    match number(node) {
        Some(table) if KERNEL_TABLES.contains(&table) => Err(Why::Allowed(
            "253, 254 and 255 are the kernel's own tables default, main and local; choose another, such as 5",
        )),
        table => table.and_then(NonZeroU32::new).ok_or(Why::Allowed(
            "a routing table is a number from 1 to 4294967295, and none of 253, 254, 255",
        )),
    }
}

pub(super) fn initial_window(node: &Node) -> Result<u32, Why> {
    number(node).filter(|segments| SEGMENTS.contains(segments)).ok_or(Why::Allowed(
        "must be a number of segments from 1 to 1000, which are 1.4 MB: what a link of 20 Mbit/s and 600 ms holds; the kernel's own is 10",
    ))
}

pub(super) fn connections(node: &Node) -> Result<Option<NonZeroU32>, Why> {
    let why = Why::Allowed(
        "must be a number from 1 to 4294967295; leave it out for as many as the descriptor limit allows",
    );
    number(node).and_then(NonZeroU32::new).ok_or(why).map(Some)
}

pub(super) fn crashes(node: &Node) -> Result<u32, Why> {
    number(node).ok_or(Why::Allowed(
        "must be a number from 0 to 4294967295; with 0, the first crash of the worker ends the daemon",
    ))
}

pub(super) fn mark(node: &Node) -> Result<Mark, Why> {
    Ok(text(node).ok_or(BadMark)?.parse::<Mark>()?)
}

pub(super) fn own_mark(node: &Node) -> Result<OwnMark, Why> {
    let why =
        "must be two bits and both set, as in 0x6/0x6: the lower marks server legs, the higher client legs";
    OwnMark::new(mark(node)?).ok_or(Why::Allowed(why))
}

pub(super) fn interface(node: &Node) -> Result<Interface, Why> {
    let why =
        "must be an interface's name: 1 to 15 letters, digits or signs, none of / : \" \\ *, and not . or ..";
    text(node).and_then(Interface::new).ok_or(Why::Allowed(why))
}

pub(super) fn congestion_control(node: &Node) -> Result<Congestion, Why> {
    let why = "must be a congestion control's name, as \"bbr\" or \"cubic\": 1 to 15 letters, digits, _ or -";
    text(node).and_then(CongestionControl::new).ok_or(Why::Allowed(why)).map(Congestion::Named)
}

/// Parses `true` or `false`; `read` reads the keys of a table.
pub(super) fn keepalive(node: &Node) -> Result<Keepalive, Why> {
    match node.value {
        Value::Bool(false) => Ok(Keepalive::Off),
        Value::Bool(true) => Ok(Keepalive::On { idle: None, interval: None, probes: None }),
        _ => Err(Why::Allowed(
            "must be true, false, or a table, as { idle = \"60s\", interval = \"10s\", probes = 6 }",
        )),
    }
}

pub(super) fn keepalive_timer(node: &Node) -> Result<Option<Duration>, Why> {
    let whole =
        |time: &Duration| time.subsec_nanos() == 0 && (1..=KEEPALIVE_SECONDS).contains(&time.as_secs());
    let why = Why::Allowed("must be whole seconds in quotes, from \"1s\" to \"32767s\"");
    duration(node).filter(whole).ok_or(why).map(Some)
}

pub(super) fn keepalive_probes(node: &Node) -> Result<Option<u32>, Why> {
    let why = Why::Allowed("must be a number from 1 to 127");
    number(node).filter(|probes| (1..=KEEPALIVE_PROBES).contains(probes)).ok_or(why).map(Some)
}

pub(super) fn user_timeout(node: &Node) -> Result<Option<Duration>, Why> {
    let why = "must be a time in quotes, as \"60s\", in whole milliseconds, at most \"24days 20h\"; \"0s\": the kernel's own limit";
    let whole = |time: &Duration| time.subsec_nanos().is_multiple_of(1_000_000) && *time <= USER_TIMEOUT;
    duration(node).filter(whole).ok_or(Why::Allowed(why)).map(unless_zero)
}

pub(super) fn notsent_lowat(node: &Node) -> Result<Option<NonZeroU32>, Why> {
    let why = "must be a number of bytes from 16384 to 1073741824, or 0: as net.ipv4.tcp_notsent_lowat says";
    let allowed = |bytes: &u32| *bytes == 0 || (NOTSENT_LEAST..=NOTSENT_MOST).contains(bytes);
    number(node).filter(allowed).ok_or(Why::Allowed(why)).map(NonZeroU32::new)
}

pub(super) fn send_buffer(node: &Node) -> Result<SendBuffer, Why> {
    let why = "must be a number of bytes from 65536 to 1073741824, or 0: as net.ipv4.tcp_wmem says";
    let allowed = |bytes: &u32| *bytes == 0 || (SEND_BUFFER_LEAST..=SEND_BUFFER_MOST).contains(bytes);
    number(node)
        .filter(allowed)
        .ok_or(Why::Allowed(why))
        .map(|bytes| NonZeroU32::new(bytes).map_or(SendBuffer::Host, SendBuffer::Bytes))
}

pub(super) fn timeout(node: &Node) -> Result<Option<Duration>, Why> {
    let why = "must be a time in quotes, as \"10s\", \"5m\" or \"500ms\", in whole milliseconds, at most \"365days\"; \"0s\": never";
    let whole = |time: &Duration| time.subsec_nanos().is_multiple_of(1_000_000) && *time <= TIMEOUT;
    duration(node).filter(whole).ok_or(Why::Allowed(why)).map(unless_zero)
}

pub(super) fn deadline(node: &Node) -> Result<Duration, Why> {
    let why = "must be a time in quotes, as \"10s\" or \"5m\", at most \"365days\"";
    duration(node).filter(|time| *time <= TIMEOUT).ok_or(Why::Allowed(why))
}

pub(super) fn sigterm(node: &Node) -> Result<Sigterm, Why> {
    match text(node) {
        Some("stop") => Ok(Sigterm::Stop),
        Some("drain") => Ok(Sigterm::Drain),
        _ => Err(Why::Allowed("must be \"stop\" or \"drain\"")),
    }
}

pub(super) fn fast_open(node: &Node) -> Result<FastOpen, Why> {
    match &node.value {
        Value::Bool(false) => Ok(FastOpen::Off),
        Value::Bool(true) => Ok(FastOpen::Cookie),
        Value::Text(text) if text == "no-cookie" => Ok(FastOpen::NoCookie),
        _ => Err(Why::Allowed("must be false, true or \"no-cookie\"")),
    }
}

pub(super) fn source(node: &Node) -> Result<Source, Why> {
    match text(node) {
        Some("client") => Ok(Source::Client),
        Some("client-address") => Ok(Source::ClientAddress),
        Some("gateway") => Ok(Source::Gateway),
        other => other.and_then(fixed_source).ok_or(Why::Allowed(
            "must be \"client\", \"client-address\", \"gateway\", or one host's \"ADDRESS:PORT\", as \"192.0.2.1:0\" or \"[2001:db8::1]:0\"",
        )),
    }
}

fn fixed_source(text: &str) -> Option<Source> {
    let addr: SocketAddr = text.parse().ok()?;
    let broadcast = matches!(addr, SocketAddr::V4(v4) if v4.ip().is_broadcast());
    (!addr.ip().is_multicast() && !broadcast).then_some(Source::Fixed(addr))
}

pub(super) fn path_address(node: &Node) -> Result<Option<IpAddr>, Why> {
    let why = "must be an address of this host in quotes, as \"192.0.2.1\" or \"2001:db8::1\"; none of loopback, multicast, link-local";
    let link_local = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    let usable = |address: &IpAddr| {
        !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local(address))
    };
    let address = text(node).and_then(|text| text.parse().ok());
    address.filter(usable).ok_or(Why::Allowed(why)).map(Some)
}

pub(super) fn path_id(node: &Node) -> Result<Option<NonZeroU8>, Why> {
    let why = Why::Allowed("must be a number from 1 to 255; leave it out for the kernel to choose");
    number(node).and_then(|id| NonZeroU8::new(u8::try_from(id).ok()?)).ok_or(why).map(Some)
}

pub(super) fn log_target(node: &Node) -> Result<LogTarget, Why> {
    let file = |path: &str| path.starts_with('/') && !path.ends_with('/') && !path.contains(char::is_control);
    match text(node) {
        Some("stderr") => Ok(LogTarget::Stderr),
        Some("journal") => Ok(LogTarget::Journal),
        Some(path) if file(path) => Ok(LogTarget::File(PathBuf::from(path))),
        _ => Err(Why::Allowed("must be \"stderr\", \"journal\", or a file by its absolute path")),
    }
}

pub(super) fn log_format(node: &Node) -> Result<LogFormat, Why> {
    match text(node) {
        Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        _ => Err(Why::Allowed("must be \"text\" or \"json\"")),
    }
}

pub(super) fn level(node: &Node) -> Result<Level, Why> {
    match text(node) {
        Some("error") => Ok(Level::Error),
        Some("warn") => Ok(Level::Warn),
        Some("info") => Ok(Level::Info),
        Some("debug") => Ok(Level::Debug),
        _ => Err(Why::Allowed("must be \"error\", \"warn\", \"info\" or \"debug\"")),
    }
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn number(node: &Node) -> Option<u32> {
    match node.value {
        Value::Integer(number) => u32::try_from(number).ok(),
        _ => None,
    }
}

fn duration(node: &Node) -> Option<Duration> {
    text(node).and_then(|text| humantime::parse_duration(text).ok())
}

fn unless_zero(time: Duration) -> Option<Duration> {
    (!time.is_zero()).then_some(time)
}

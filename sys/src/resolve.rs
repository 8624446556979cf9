//! Resolution of host names and service names.
use std::ffi::{CStr, CString};
use std::io;
use std::net::SocketAddr;
use std::ptr::null_mut;

use socket2::{SockAddr, SockAddrStorage};

/// A host or service, with the way to interpret it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'t> {
    /// A name or a number.
    Name(&'t str),
    /// A number: no name is looked up.
    Number(&'t str),
}

impl Part<'_> {
    fn text(self) -> io::Result<CString> {
        let (Self::Name(text) | Self::Number(text)) = self;
        CString::new(text).map_err(io::Error::from)
    }
}

/// Returns the addresses of the TCP `service` on `host`, in the order of getaddrinfo(3): at least one, without
/// duplicates. A name resolves only to address families of which this host has an address (AI_ADDRCONFIG). The error
/// carries the text of getaddrinfo(3).
pub fn resolve(host: Part<'_>, service: Part<'_>) -> io::Result<Vec<SocketAddr>> {
    let (node, port) = (host.text()?, service.text()?);
    // SAFETY: an all-zero `addrinfo` is valid: numbers and null pointers.
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_socktype = libc::SOCK_STREAM;
    hints.ai_flags = match host {
        Part::Name(_) => libc::AI_ADDRCONFIG,
        Part::Number(_) => libc::AI_NUMERICHOST,
    };
    if let Part::Number(_) = service {
        hints.ai_flags |= libc::AI_NUMERICSERV;
    }
    let mut found = null_mut();
    // SAFETY: both strings end with a NUL, `hints` outlives the call, and `found` is writable for one pointer.
    match unsafe { libc::getaddrinfo(node.as_ptr(), port.as_ptr(), &hints, &mut found) } {
        0 => Ok(Found(found).addresses()),
        libc::EAI_SYSTEM => Err(io::Error::last_os_error()),
        code => {
            // SAFETY: gai_strerror() returns a string that ends with a NUL and is never freed.
            let why = unsafe { CStr::from_ptr(libc::gai_strerror(code)) };
            Err(io::Error::other(why.to_string_lossy().into_owned()))
        }
    }
}

/// A list from getaddrinfo(3); dropping it frees the list.
struct Found(*mut libc::addrinfo);

impl Found {
    fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        let mut at = self.0;
        // SAFETY: `at` is null or an entry of the list, which is freed only when `self` is dropped.
        while let Some(entry) = unsafe { at.as_ref() } {
            let mut storage = SockAddrStorage::zeroed();
            let len = entry.ai_addrlen.min(storage.size_of());
            // SAFETY: the address of the entry is readable for `ai_addrlen` bytes, and the storage is writable for its
            // size. `len` exceeds neither, and the two do not overlap.
            unsafe {
                let to = (&raw mut storage).cast::<u8>();
                std::ptr::copy_nonoverlapping(entry.ai_addr.cast::<u8>(), to, len as usize);
            }
            // SAFETY: the first `len` bytes are an address of the family that they name; the others are zero.
            let address = unsafe { SockAddr::new(storage, len) }.as_socket();
            addresses.extend(address.filter(|address| !addresses.contains(address)));
            at = entry.ai_next;
        }
        addresses
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        // SAFETY: the list is from getaddrinfo(3), and no reference into it remains.
        unsafe { libc::freeaddrinfo(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_resolve_without_a_lookup() {
        let found = resolve(Part::Number("::1"), Part::Number("5000")).unwrap();
        assert_eq!(found, ["[::1]:5000".parse().unwrap()]);
        let found = resolve(Part::Name("192.0.2.1"), Part::Name("5000")).unwrap();
        assert_eq!(found, ["192.0.2.1:5000".parse().unwrap()]);
        for (host, port) in [("localhost", "5000"), ("::1", "http"), ("", "5000"), ("::1", "a\0b")] {
            assert!(resolve(Part::Number(host), Part::Number(port)).is_err(), "{host} {port}");
        }
    }
}

//! Names of hosts and services.
use std::ffi::{CStr, CString};
use std::io;
use std::net::SocketAddr;
use std::ptr::null_mut;

use socket2::{SockAddr, SockAddrStorage};

/// How a part of an address is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'t> {
    /// A name, or a number.
    Name(&'t str),
    /// A number: nobody is asked for a name.
    Number(&'t str),
}

impl Part<'_> {
    fn text(self) -> io::Result<CString> {
        let (Self::Name(text) | Self::Number(text)) = self;
        CString::new(text).map_err(io::Error::from)
    }
}

/// The addresses of TCP's `service` on `host`, in the order of getaddrinfo(3), each once; one at least. A name has none of a
/// family that this machine has no address of. The error says what it said.
pub fn resolve(host: Part<'_>, service: Part<'_>) -> io::Result<Vec<SocketAddr>> {
    let (node, port) = (host.text()?, service.text()?);
    // SAFETY: zeros are a valid `addrinfo`: numbers, and pointers to nothing.
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
    // SAFETY: both texts end with a NUL, `hints` lives through the call, and `found` takes one pointer.
    match unsafe { libc::getaddrinfo(node.as_ptr(), port.as_ptr(), &hints, &mut found) } {
        0 => Ok(Found(found).addresses()),
        libc::EAI_SYSTEM => Err(io::Error::last_os_error()),
        code => {
            // SAFETY: gai_strerror() gives a text that ends with a NUL and is never freed.
            let why = unsafe { CStr::from_ptr(libc::gai_strerror(code)) };
            Err(io::Error::other(why.to_string_lossy().into_owned()))
        }
    }
}

/// A list of getaddrinfo(3), freed when it is dropped.
struct Found(*mut libc::addrinfo);

impl Found {
    fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        let mut at = self.0;
        // SAFETY: `at` is null or an entry of the list, which is freed only when `self` is dropped.
        while let Some(entry) = unsafe { at.as_ref() } {
            let mut storage = SockAddrStorage::zeroed();
            let len = entry.ai_addrlen.min(storage.size_of());
            // SAFETY: the entry's address is readable for `ai_addrlen` bytes, the storage writable for its own size, `len` is
            // no more than either, and they do not overlap.
            unsafe {
                let to = (&raw mut storage).cast::<u8>();
                std::ptr::copy_nonoverlapping(entry.ai_addr.cast::<u8>(), to, len as usize);
            }
            // SAFETY: the first `len` bytes are an address of the family that it says, the others are zero.
            let address = unsafe { SockAddr::new(storage, len) }.as_socket();
            addresses.extend(address.filter(|address| !addresses.contains(address)));
            at = entry.ai_next;
        }
        addresses
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        // SAFETY: getaddrinfo(3) gave the list, and nothing of it is in use any more.
        unsafe { libc::freeaddrinfo(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_need_nobody_to_ask() {
        let found = resolve(Part::Number("::1"), Part::Number("5000")).unwrap();
        assert_eq!(found, ["[::1]:5000".parse().unwrap()]);
        let found = resolve(Part::Name("192.0.2.1"), Part::Name("5000")).unwrap();
        assert_eq!(found, ["192.0.2.1:5000".parse().unwrap()]);
        for (host, port) in [("localhost", "5000"), ("::1", "http"), ("", "5000"), ("::1", "a\0b")] {
            assert!(resolve(Part::Number(host), Part::Number(port)).is_err(), "{host} {port}");
        }
    }
}

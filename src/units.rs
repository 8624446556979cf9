//! Types for quantities, so that mixing them up does not compile. PURE.
use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::str::FromStr;

/// A TCP port, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(NonZeroU16);

impl Port {
    /// Returns `None` for 0, which no TCP listener can have.
    pub const fn new(port: u16) -> Option<Self> {
        match NonZeroU16::new(port) {
            Some(port) => Some(Self(port)),
            None => None,
        }
    }

    /// Returns the port number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A packet mark. The bits in `mask` have the value `value`; other programs use the other bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    value: u32,
    mask: NonZeroU32,
}

impl Mark {
    /// Returns `None` if `value` is 0 or has bits outside `mask`. Such a mark would match unmarked packets, or none.
    pub const fn new(value: u32, mask: u32) -> Option<Self> {
        match NonZeroU32::new(mask) {
            Some(mask) if value != 0 && value & !mask.get() == 0 => Some(Self { value, mask }),
            _ => None,
        }
    }

    /// Returns the bits that are compared and set.
    pub const fn value(self) -> u32 {
        self.value
    }

    /// Returns the mask of the bits that this program uses.
    pub const fn mask(self) -> u32 {
        self.mask.get()
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

/// The error of parsing a [`Mark`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a mark is VALUE/MASK, as in 0x1/0x1; VALUE must not be 0 or have bits outside MASK")]
pub struct BadMark;

impl FromStr for Mark {
    type Err = BadMark;

    fn from_str(text: &str) -> Result<Self, BadMark> {
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        };
        let (value, mask) = text.split_once('/').ok_or(BadMark)?;
        number(value).zip(number(mask)).and_then(|(value, mask)| Self::new(value, mask)).ok_or(BadMark)
    }
}

/// The marks of the program's own sockets. They are two bits under one mask: the lower for server legs, the higher
/// for client legs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnMark {
    server: u32,
    client: u32,
}

impl OwnMark {
    /// Returns `None` unless `mark` consists of exactly two bits, both set.
    pub const fn new(mark: Mark) -> Option<Self> {
        if mark.value() != mark.mask() || mark.mask().count_ones() != 2 {
            return None;
        }
        let server = 1 << mark.mask().trailing_zeros();
        Some(Self { server, client: mark.mask() & !server })
    }

    /// Returns both bits. They tell the program's sockets from all others.
    pub const fn mask(self) -> u32 {
        self.server | self.client
    }

    /// Returns the mark (SO_MARK) of server legs.
    pub const fn server(self) -> u32 {
        self.server
    }

    /// Returns the mark (SO_MARK) of listeners, which client legs inherit.
    pub const fn client(self) -> u32 {
        self.client
    }
}

impl fmt::Display for OwnMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{0:#x}/{0:#x}", self.mask())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_without_a_bit_or_with_bits_outside_its_mask_is_refused() {
        for bad in ["0x0/0x1", "0x2/0x1", "1", "0x1/0x0", "0x1/", "x/1", "0x1/0x1/0x1", ""] {
            assert_eq!(bad.parse::<Mark>(), Err(BadMark), "{bad}");
        }
        assert_eq!("0x10/0xf0".parse::<Mark>().unwrap().to_string(), "0x10/0xf0");
        assert_eq!("3/7".parse::<Mark>().unwrap().to_string(), "0x3/0x7");
    }

    #[test]
    fn the_own_mark_gives_its_lower_bit_to_server_legs() {
        let own = OwnMark::new("0x6/0x6".parse().unwrap()).unwrap();
        assert_eq!((own.server(), own.client(), own.mask()), (0x2, 0x4, 0x6));
        for bad in ["0x2/0x6", "0x1/0x1", "0x7/0x7"] {
            assert!(OwnMark::new(bad.parse().unwrap()).is_none(), "{bad}");
        }
    }
}

//! The address syntax of 1.1.0: `HOST:PORT`. A part in `[…]` is a number, and is not looked up as a name. PURE.
use std::fmt;
use std::str::FromStr;

/// `HOST:PORT`, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindSpec {
    /// The part before the last colon.
    pub host: Part,
    /// The part after the last colon.
    pub port: Part,
}

/// A host or a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Without brackets: a name or a number.
    Name(String),
    /// In brackets: a number.
    Number(String),
}

/// The value of `-B`: the source of server legs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// `client`: the client's address and port.
    Client,
    /// This address.
    At(BindSpec),
}

/// Why a text is not a [`BindSpec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSpec {
    /// There is no colon.
    #[error("there is no ':' between host and port; write HOST:PORT, as in [0.0.0.0]:[5000]")]
    NoColon,
    /// A bracket has no counterpart, or there is something beside the pair.
    #[error("the {0} has brackets that do not enclose it; write HOST:PORT, as in [::]:[5000]")]
    Brackets(&'static str),
    /// A part is empty.
    #[error("the {0} is empty; write HOST:PORT, as in [0.0.0.0]:[5000]")]
    Empty(&'static str),
    /// The port is a number that getaddrinfo(3) would accept and cut to 16 bits.
    #[error("the port is greater than 65535")]
    PortTooGreat,
}

impl FromStr for BindSpec {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        let (host, port) = text.rsplit_once(':').ok_or(BadSpec::NoColon)?;
        let (host, port) = (Part::read("host", host)?, Part::read("port", port)?);
        if port.is_too_great() { Err(BadSpec::PortTooGreat) } else { Ok(Self { host, port }) }
    }
}

impl Part {
    fn read(what: &'static str, text: &str) -> Result<Self, BadSpec> {
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let part = inner.unwrap_or(text);
        match part {
            _ if part.contains(['[', ']']) => Err(BadSpec::Brackets(what)),
            "" => Err(BadSpec::Empty(what)),
            _ => {
                Ok(if inner.is_some() { Self::Number(part.to_owned()) } else { Self::Name(part.to_owned()) })
            }
        }
    }

    fn is_too_great(&self) -> bool {
        let (Self::Name(text) | Self::Number(text)) = self;
        text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_err()
    }
}

impl FromStr for Outgoing {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        if text == "client" { Ok(Self::Client) } else { text.parse().map(Self::At) }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => write!(f, "[{number}]"),
        }
    }
}

impl fmt::Display for BindSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Part {
        Part::Name(text.to_owned())
    }

    fn number(text: &str) -> Part {
        Part::Number(text.to_owned())
    }

    #[test]
    fn brackets_make_a_number_and_the_last_colon_divides() {
        for (text, host, port) in [
            ("[0.0.0.0]:[5000]", number("0.0.0.0"), number("5000")),
            ("[::]:[5000]", number("::"), number("5000")),
            ("gateway.example:http", name("gateway.example"), name("http")),
            ("[192.0.2.1]:http", number("192.0.2.1"), name("http")),
            ("localhost:[80]", name("localhost"), number("80")),
            ("2001:db8::1:80", name("2001:db8::1"), name("80")),
        ] {
            assert_eq!(text.parse(), Ok(BindSpec { host, port }), "{text}");
        }
    }

    #[test]
    fn a_malformed_address_is_rejected_with_the_reason() {
        use BadSpec::{Brackets, Empty, NoColon, PortTooGreat};
        for (text, why) in [
            ("", NoColon),
            ("5000", NoColon),
            ("[0.0.0.0]", NoColon),
            ("[::]", Brackets("host")),
            ("[::", Brackets("host")),
            ("[::]:[5000", Brackets("port")),
            ("[::]:5000]", Brackets("port")),
            ("[::]x:[5000]", Brackets("host")),
            ("[[::]]:[5000]", Brackets("host")),
            (":[5000]", Empty("host")),
            ("[]:[5000]", Empty("host")),
            ("[::]:", Empty("port")),
            ("[::]:[]", Empty("port")),
            ("[::]:[65536]", PortTooGreat),
            ("localhost:99999999999", PortTooGreat),
        ] {
            assert_eq!(text.parse::<BindSpec>(), Err(why), "{text}");
        }
    }

    #[test]
    fn client_is_a_keyword_and_not_a_host() {
        assert_eq!("client".parse(), Ok(Outgoing::Client));
        assert!(matches!("client:0".parse(), Ok(Outgoing::At(_))));
        assert_eq!("clients".parse::<Outgoing>(), Err(BadSpec::NoColon));
    }

    proptest! {
        #[test]
        fn a_parsed_address_is_displayed_as_it_was_written(text in "[a-z\\[\\]:.0-9]{0,12}") {
            if let Ok(spec) = text.parse::<BindSpec>() {
                prop_assert_eq!(spec.to_string(), text);
            }
        }

        #[test]
        fn every_pair_of_parts_is_parsed_back_from_its_display(host in "[a-z0-9.:]{1,9}", port in "[a-z][a-z0-9]{0,4}|[0-9]{1,4}", numbers: (bool, bool)) {
            let part = |number, text| if number { Part::Number(text) } else { Part::Name(text) };
            let spec = BindSpec { host: part(numbers.0, host), port: part(numbers.1, port) };
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }
    }
}

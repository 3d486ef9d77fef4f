//! PostgreSQL's `sslmode` as libpq means it.
//!
//! | `sslmode` | encrypts | checks |
//! | --- | --- | --- |
//! | `disable` | no | |
//! | `allow`, `prefer` (the default) | if the server offers it | nothing |
//! | `require` | yes | the chain if a file of authorities is named, else nothing |
//! | `verify-ca` | yes | the chain |
//! | `verify-full` | yes | chain and host name |
//!
//! `sslrootcert`, `sslcert` and `sslkey` in the address take the place of the files that the settings name, and
//! `sslrootcert=system` asks for the system's authorities and `verify-full`, as in libpq. Unlike libpq, `allow` encrypts where it
//! can, `verify-ca` and `verify-full` without a file trust the system's authorities, and what was encrypted once is not tried
//! again in the clear.

use std::fmt;

use tokio_postgres::config::SslNegotiation;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::verify::Check;
use super::{Tls, Unfit};

/// Makes TLS connections to PostgreSQL as its address asks for them.
#[derive(Clone)]
pub struct Connector(MakeRustlsConnect);

impl Connector {
    /// What tokio-postgres takes.
    pub fn make(&self) -> MakeRustlsConnect {
        self.0.clone()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

/// Takes what concerns TLS off an address: what is left is one that tokio-postgres understands, and does as asked with the
/// connector.
///
/// # Errors
/// What is wrong, in words that hold nothing of the address but a parameter's name.
pub fn split(address: &str, tls: &Tls) -> Result<(String, Connector), String> {
    let (start, parameters) = cut(address);
    let (mut mode, mut authorities, mut certificate, mut key) = (None, None, None, None);
    let mut rest = Vec::new();
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        // As in libpq: the last one counts, and an empty one counts as unset.
        let place = match decoded(name).as_deref() {
            Some("sslmode") => &mut mode,
            Some("sslrootcert") => &mut authorities,
            Some("sslcert") => &mut certificate,
            Some("sslkey") => &mut key,
            _ => {
                rest.push(parameter.to_owned());
                continue;
            }
        };
        *place = Some(decoded(value).ok_or("its parameters to be UTF-8")?).filter(|value| !value.is_empty());
    }
    let system = authorities.as_deref() == Some("system");
    let tls = if system { tls.trusting_system() } else { tls.clone() };
    let authorities = authorities.filter(|_| !system);
    let tls = tls.with(authorities.as_deref(), certificate.as_deref(), key.as_deref()).map_err(|Unfit { file, problem }| {
        format!("{} to name {}, and the one named {problem}", file.parameter(), file.wanted())
    })?;
    let (own_mode, check) = match mode.as_deref() {
        None if system => ("require", Check::ChainAndName),
        Some("verify-full") => ("require", Check::ChainAndName),
        Some(_) if system => return Err("sslmode to be verify-full where sslrootcert is system".to_owned()),
        Some("disable") => ("disable", Check::Nothing),
        None | Some("allow" | "prefer") => ("prefer", Check::Nothing),
        Some("require") if !tls.names_authorities() => ("require", Check::Nothing),
        Some("require" | "verify-ca") => ("require", Check::Chain),
        Some(_) => return Err("sslmode to be disable, allow, prefer, require, verify-ca or verify-full".to_owned()),
    };
    rest.push(format!("sslmode={own_mode}"));
    let address = format!("{start}?{}", rest.join("&"));
    let mut client = tls.checking(check);
    let negotiation = address.parse::<tokio_postgres::Config>().map(|config| config.get_ssl_negotiation());
    if matches!(negotiation, Ok(SslNegotiation::Direct)) {
        if own_mode != "require" {
            return Err("sslmode to be require, verify-ca or verify-full where sslnegotiation is direct".to_owned());
        }
        // The server insists on it there, so that nothing but PostgreSQL is talked to by mistake.
        client.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok((address, Connector(MakeRustlsConnect::new(client))))
}

/// What stands before the parameters, and the parameters. As in tokio-postgres, user and password end at the first `@`: they may
/// hold question marks.
fn cut(address: &str) -> (&str, &str) {
    let host = address.find('@').unwrap_or_default();
    match address[host..].find('?') {
        Some(at) => (&address[..host + at], &address[host + at + 1..]),
        None => (address, ""),
    }
}

/// Percent-encoding resolved; `None` for what is no UTF-8 then.
fn decoded(text: &str) -> Option<String> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let (bytes, mut plain, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                plain.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(plain).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(address: &str) -> Result<String, String> {
        split(address, &Tls::default()).map(|(address, _)| address)
    }

    #[test]
    fn what_is_left_is_understood_by_tokio_postgres() {
        let start = "postgres://u:p@h:1/d";
        for (given, mode) in [
            ("", "prefer"),
            ("?", "prefer"),
            ("?sslmode=", "prefer"),
            ("?sslmode=disable", "disable"),
            ("?sslmode=allow", "prefer"),
            ("?sslmode=require", "require"),
            ("?sslmode=verify-ca", "require"),
            ("?sslmode=disable&sslmode=verify-full", "require"),
            ("?ssl%6Dode=verify%2Dfull", "require"),
            ("?sslrootcert=system", "require"),
            ("?sslmode=require&sslnegotiation=direct", "require"),
        ] {
            let left = left(&format!("{start}{given}")).unwrap_or_else(|error| panic!("{given}: {error}"));
            assert!(left.starts_with(start) && left.ends_with(&format!("sslmode={mode}")), "{given}: {left}");
            assert!(left.parse::<tokio_postgres::Config>().is_ok(), "{given}: {left}");
        }
        let kept = left("postgres://u:a?sslmode=x@h/d?connect_timeout=3&sslmode=require&application_name=a%26b");
        assert_eq!(kept.as_deref(), Ok("postgres://u:a?sslmode=x@h/d?connect_timeout=3&application_name=a%26b&sslmode=require"));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_address() {
        for (given, wanted) in [
            ("sslmode=verify", "verify-full"),
            ("sslrootcert=system&sslmode=require", "verify-full"),
            ("sslnegotiation=direct", "sslnegotiation"),
            ("sslmode=require&sslrootcert=/no/such", "sslrootcert to name a PEM file"),
            ("sslcert=/no/such", "without its key"),
        ] {
            let error = left(&format!("postgres://u:s3cr3t@h/d?{given}")).err().unwrap_or_default();
            assert!(error.contains(wanted) && !error.contains("s3cr3t"), "{given}: {error}");
        }
    }
}

//! What a failed handshake means, in words that say what to change.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};

/// Why a server and this program do not come together. Waiting does not mend it: somebody has to change something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server does not let this user in, or not do this; its words.
    User(String),
    /// One side does not accept the other's certificate or TLS; our words.
    Tls(String),
}

impl Refusal {
    /// The whole sentence: who refuses whom.
    pub(crate) fn of(&self, server: &str, user: &str) -> String {
        match self {
            Self::User(text) => format!("{server} refuses this {user}: {text}"),
            Self::Tls(text) => format!("no TLS with {server}: {text}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(text) | Self::Tls(text) => f.write_str(text),
        }
    }
}

/// The reason in words, if an error comes down to a TLS handshake that will fail again until somebody changes something.
pub fn mistrust(error: &(dyn Error + 'static)) -> Option<String> {
    words(rustls_error(error)?)
}

/// The error of rustls inside of another: `source` alone does not lead there, since an I/O error passes over what it wraps.
fn rustls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        next = if let Some(wrapped) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped)
        } else if let Some(shared) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
            Some(&**shared)
        } else {
            error.source()
        };
    }
    None
}

fn words(error: &rustls::Error) -> Option<String> {
    let text = match error {
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::AlertReceived(alert) => refused(*alert)?,
        rustls::Error::InvalidMessage(_) => {
            "what answers at this address does not speak TLS; see the address, and whether the server has TLS on".to_owned()
        }
        rustls::Error::PeerIncompatible(error) => {
            format!("the server offers no TLS that this program speaks ({error:?}); let it offer TLS 1.2 or 1.3")
        }
        _ => return None,
    };
    Some(text)
}

/// What is wrong with the server's certificate.
fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the server's certificate expired at {}; renew it, or set this machine's clock", date(*not_after))
        }
        CertificateError::Expired => "the server's certificate has expired; renew it, or set this machine's clock".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!(
                "the server's certificate is not valid before {}; set this machine's clock, or issue it anew",
                date(*not_before)
            )
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let asked = expected.to_str();
            match presented.as_slice() {
                [] => format!(
                    "the server's certificate names no host, and not {asked}; issue it with {asked} as subject alternative name \
                     (a common name does not count)"
                ),
                names => {
                    let names: Vec<_> = names.iter().map(|name| plain(name)).collect();
                    format!(
                        "the server's certificate is for {}, not for {asked}; use such a name in the address, or issue it for {asked}",
                        names.join(" and ")
                    )
                }
            }
        }
        CertificateError::UnknownIssuer => {
            "the server's certificate is not signed by an authority that AEGIS_TLS_CA_FILE names or, while that is unset, this \
             system trusts; name the authority's PEM file there"
                .to_owned()
        }
        CertificateError::BadSignature => {
            "the server's certificate is not signed by the key of the authority that it names; renew the file that \
             AEGIS_TLS_CA_FILE names, or the certificate"
                .to_owned()
        }
        other => {
            let reason = other.to_string();
            if reason.contains("CaUsedAsEndEntity") {
                return "the server shows an authority's own certificate (CA:TRUE); issue it one for a server".to_owned();
            }
            format!("the server's certificate is not acceptable: {reason}")
        }
    }
}

/// What the server says to our side of the handshake; `None` where it does not speak of certificates.
fn refused(alert: AlertDescription) -> Option<String> {
    let text = match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "the server wants a client certificate; name one in AEGIS_TLS_CERT_FILE and AEGIS_TLS_KEY_FILE".to_owned()
        }
        // TLS 1.2 has no word of its own for a certificate that is missing.
        AlertDescription::HandshakeFailure => {
            "the server refuses the TLS handshake; it may want a client certificate (AEGIS_TLS_CERT_FILE, AEGIS_TLS_KEY_FILE), or \
             share no cipher with this program"
                .to_owned()
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => {
            format!("the server does not accept the client certificate in AEGIS_TLS_CERT_FILE ({alert:?}); renew it, or let the server trust its authority")
        }
        AlertDescription::ProtocolVersion => "the server offers neither TLS 1.2 nor 1.3; let it do so".to_owned(),
        AlertDescription::UnrecognisedName | AlertDescription::NoApplicationProtocol => {
            format!("the server does not serve this name or protocol over TLS ({alert:?}); see the address")
        }
        _ => return None,
    };
    Some(text)
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("second {seconds}"), |time| time.to_string())
}

/// `DnsName("host")` as `host`. A certificate may come from anybody: bounded, and free of control characters.
fn plain(name: &str) -> String {
    let inner = name.split_once('(').map_or(name, |(_, rest)| rest.trim_end_matches(')'));
    inner.trim_matches('"').chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_however_it_is_wrapped() {
        let inner = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let io = io::Error::new(io::ErrorKind::InvalidData, inner());
        let twice = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, inner()));
        let redis = redis::RedisError::from(io::Error::new(io::ErrorKind::InvalidData, inner()));
        for error in [&io as &(dyn Error + 'static), &twice, &redis] {
            assert!(mistrust(error).is_some_and(|text| text.contains("AEGIS_TLS_CA_FILE")), "{error:?}");
        }
        assert_eq!(mistrust(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
    }

    #[test]
    fn names_of_a_certificate_are_shown_as_people_write_them() {
        assert_eq!((plain("DnsName(\"db.example\")"), plain("IpAddress(10.0.0.1)")), ("db.example".into(), "10.0.0.1".into()));
    }
}

//! Whom we trust and who we are when we speak TLS, the same for all three stores: rustls with ring, no OpenSSL.
//!
//! What differs between the stores is only what PostgreSQL's `sslmode` asks to be checked ([`postgres`]). What a failed handshake
//! means for an operator stands in [`words`].

pub mod postgres;
mod verify;
mod words;

pub use words::{Refusal, mistrust};

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};

use verify::Check;

/// Authorities and client certificate that are configured. The default trusts the system's authorities and shows no certificate.
#[derive(Clone, Default)]
pub struct Tls {
    authorities: Option<Arc<Authorities>>,
    identity: Option<Arc<Identity>>,
}

/// Certificates of authorities, out of a file.
struct Authorities {
    /// As the `redis` crate wants them.
    pem: Vec<u8>,
    roots: Arc<RootCertStore>,
}

/// A client certificate with what leads to its authority, and its key.
struct Identity {
    /// As the `redis` crate wants them.
    cert_pem: Vec<u8>,
    key_pem: Vec<u8>,
    key: Arc<CertifiedKey>,
}

/// A file that TLS needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// Certificates of the authorities that are trusted.
    Authorities,
    /// The client certificate.
    Certificate,
    /// The key of the client certificate.
    Key,
}

impl File {
    /// The setting that names the file.
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Authorities => "AEGIS_TLS_CA_FILE",
            Self::Certificate => "AEGIS_TLS_CERT_FILE",
            Self::Key => "AEGIS_TLS_KEY_FILE",
        }
    }

    /// The parameter of PostgreSQL's address that names another file than the setting does.
    pub const fn parameter(self) -> &'static str {
        match self {
            Self::Authorities => "sslrootcert",
            Self::Certificate => "sslcert",
            Self::Key => "sslkey",
        }
    }

    /// What the file must be.
    pub const fn wanted(self) -> &'static str {
        match self {
            Self::Authorities => "a PEM file with the certificates of the authorities to trust",
            Self::Certificate => "a PEM file with the client certificate, followed by what leads to its authority",
            Self::Key => "a PEM file with the client certificate's own key, not encrypted",
        }
    }
}

/// A file that does not serve, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// Which.
    pub file: File,
    /// What is wrong with it, as the end of a sentence: `cannot be read`.
    pub problem: String,
}

impl Unfit {
    fn new(file: File, problem: impl Into<String>) -> Self {
        Self { file, problem: problem.into() }
    }
}

impl Tls {
    /// Reads the files. Authorities out of a file take the place of the system's.
    ///
    /// # Errors
    /// The first file that cannot be read or does not hold what it should, or that only one of certificate and key is named.
    pub fn load(authorities: Option<&str>, certificate: Option<&str>, key: Option<&str>) -> Result<Self, Unfit> {
        let none = Self::default();
        none.with(authorities, certificate, key)
    }

    /// The same, with the files that are named in place of those so far.
    ///
    /// # Errors
    /// As [`Tls::load`].
    pub fn with(&self, authorities: Option<&str>, certificate: Option<&str>, key: Option<&str>) -> Result<Self, Unfit> {
        let mut tls = self.clone();
        if let Some(path) = authorities {
            tls.authorities = Some(Arc::new(Authorities::read(path)?));
        }
        match (certificate, key) {
            (Some(certificate), Some(key)) => tls.identity = Some(Arc::new(Identity::read(certificate, key)?)),
            (Some(_), None) => return Err(Unfit::new(File::Certificate, "is set without its key (set both or neither)")),
            (None, Some(_)) => return Err(Unfit::new(File::Key, "is set without its certificate (set both or neither)")),
            (None, None) => {}
        }
        Ok(tls)
    }

    /// A client that checks chain and name of the server's certificate.
    pub fn client_config(&self) -> ClientConfig {
        self.checking(Check::ChainAndName)
    }

    fn checking(&self, check: Check) -> ClientConfig {
        let provider = provider();
        let builder = match ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions() {
            Ok(builder) => builder,
            Err(error) => unreachable!("ring offers the default protocol versions: {error}"),
        };
        let builder = match verify::verifier(check, &provider, || self.roots()) {
            Some(verifier) => builder.dangerous().with_custom_certificate_verifier(verifier),
            None => builder.with_root_certificates(self.roots()),
        };
        match &self.identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&identity.key)))),
            None => builder.with_no_client_auth(),
        }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        self.authorities.as_ref().map_or_else(system_roots, |authorities| Arc::clone(&authorities.roots))
    }

    /// What the `redis` crate makes its own TLS client of: the same trust and certificate as [`Tls::client_config`].
    pub fn for_redis(&self) -> redis::TlsCertificates {
        redis::TlsCertificates {
            root_cert: self.authorities.as_ref().map(|authorities| authorities.pem.clone()),
            client_tls: self.identity.as_ref().map(|identity| redis::ClientTlsConfig {
                client_cert: identity.cert_pem.clone(),
                client_key: identity.key_pem.clone(),
            }),
        }
    }

    /// The same trust without a file of authorities: the system's.
    fn trusting_system(&self) -> Self {
        Self { authorities: None, identity: self.identity.clone() }
    }

    const fn names_authorities(&self) -> bool {
        self.authorities.is_some()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authorities = self.authorities.as_ref().map(|authorities| authorities.roots.len());
        f.debug_struct("Tls").field("authorities", &authorities).field("identity", &self.identity.is_some()).finish()
    }
}

impl Authorities {
    fn read(path: &str) -> Result<Self, Unfit> {
        let pem = read(File::Authorities, path)?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(File::Authorities, &pem)? {
            roots.add(certificate).map_err(|_| Unfit::new(File::Authorities, "holds a certificate that cannot be understood"))?;
        }
        Ok(Self { pem, roots: Arc::new(roots) })
    }
}

impl Identity {
    fn read(certificate: &str, key: &str) -> Result<Self, Unfit> {
        let (cert_pem, key_pem) = (read(File::Certificate, certificate)?, read(File::Key, key)?);
        let chain = certificates(File::Certificate, &cert_pem)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| {
            let problem = match error {
                pem::Error::NoItemsFound => "holds no key that is not encrypted",
                _ => "is not PEM",
            };
            Unfit::new(File::Key, problem)
        })?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => Unfit::new(File::Key, "is not the key of the certificate"),
            rustls::Error::InvalidCertificate(_) => Unfit::new(File::Certificate, "cannot be understood"),
            _ => Unfit::new(File::Key, "cannot be understood as an RSA, ECDSA or Ed25519 key"),
        })?;
        Ok(Self { cert_pem, key_pem, key: Arc::new(key) })
    }
}

fn read(file: File, path: &str) -> Result<Vec<u8>, Unfit> {
    std::fs::read(path).map_err(|error| Unfit::new(file, format!("cannot be read ({})", error.kind())))
}

fn certificates(file: File, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unfit> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|_| Unfit::new(file, "is not PEM"))?;
    if found.is_empty() { Err(Unfit::new(file, "holds no certificate")) } else { Ok(found) }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

/// Read once: the system's store does not change under a running worker.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    Arc::clone(ROOTS.get_or_init(read))
}

/// Makes ring the provider of every library that asks for the process's default. Twice is once.
pub fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap_or_else(|error| panic!("{error}"));
        std::fs::write(file.path(), text).unwrap_or_else(|error| panic!("{error}"));
        file
    }

    fn unfit(authorities: Option<&str>, certificate: Option<&str>, key: Option<&str>) -> Option<(File, String)> {
        Tls::load(authorities, certificate, key).err().map(|unfit| (unfit.file, unfit.problem))
    }

    #[test]
    fn a_file_that_does_not_serve_is_named() {
        let (prose, broken) = (file("no PEM here\n"), file("-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n"));
        let hollow = file("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let path = |file: &tempfile::NamedTempFile| file.path().to_string_lossy().into_owned();
        let (prose, broken, hollow) = (path(&prose), path(&broken), path(&hollow));
        let cases = [
            (unfit(Some("/no/such"), None, None), File::Authorities, "cannot be read"),
            (unfit(Some(&prose), None, None), File::Authorities, "holds no certificate"),
            (unfit(Some(&broken), None, None), File::Authorities, "is not PEM"),
            (unfit(Some(&hollow), None, None), File::Authorities, "cannot be understood"),
            (unfit(None, Some(&prose), None), File::Certificate, "without its key"),
            (unfit(None, None, Some(&prose)), File::Key, "without its certificate"),
            (unfit(None, Some(&prose), Some(&prose)), File::Certificate, "holds no certificate"),
            (unfit(None, Some(&hollow), Some(&prose)), File::Key, "holds no key"),
        ];
        for (found, which, problem) in cases {
            assert!(found.as_ref().is_some_and(|(file, text)| *file == which && text.contains(problem)), "{found:?}");
        }
    }
}

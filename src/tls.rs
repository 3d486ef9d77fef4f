//! What we trust when we speak TLS: the system's certificate authorities, by rustls with ring.

use std::sync::{Arc, OnceLock};

/// A client's view of TLS. Read once: the system's store does not change under a running worker.
pub fn client_config() -> rustls::ClientConfig {
    static CONFIG: OnceLock<rustls::ClientConfig> = OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let mut roots = rustls::RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            match builder {
                Ok(builder) => builder.with_root_certificates(roots).with_no_client_auth(),
                Err(error) => unreachable!("ring offers the default protocol versions: {error}"),
            }
        })
        .clone()
}

/// Makes ring the provider of every library that asks for the process's default. Twice is once.
pub fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

//! TLS to all three stores, with authorities and certificates made here: what is right works, and what is not says why.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use aegis_ingest::chroma::Client;
use aegis_ingest::config::{Config, Given};
use aegis_ingest::redis::Redis;
use aegis_ingest::timescale::Database;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::support::servers::{OwnPostgres, OwnRedis, chroma, free_port};
use crate::support::space::{Stores, connect_database, connect_redis};
use crate::support::{LONG, SOON, Space, Worker, rights, send, stores, until, worker};

/// What all servers here are asked for by.
pub const HOST: &str = "localhost";

/// A certificate and its key, PEM.
pub struct Pair {
    certificate: String,
    key: String,
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub fn issue(&self, host: &str) -> Pair {
        self.issue_until(host, 2100)
    }

    fn issue_until(&self, host: &str, year: i32) -> Pair {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, host);
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        Pair { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

/// Nobody's authority vouches for it, as for Debian's snakeoil.
fn self_signed() -> Pair {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([HOST.to_owned()]).unwrap();
    Pair { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

/// The authority that is ours, one that is not, and files of both for the client's side.
pub struct Pki {
    pub ours: Authority,
    strange: Authority,
    folder: TempDir,
}

/// Which client certificate is shown.
#[derive(Clone, Copy, Debug)]
pub enum Shown {
    Nothing,
    Ours,
    Strange,
}

impl Pki {
    pub fn new() -> Self {
        aegis_ingest::tls::install_provider();
        let (ours, strange) = (Authority::new("ours"), Authority::new("strange"));
        let pki = Self { ours, strange, folder: TempDir::new().unwrap() };
        pki.write("ca.pem", &pki.ours.pem);
        for (name, authority) in [("ours", &pki.ours), ("strange", &pki.strange)] {
            let pair = authority.issue("aegis");
            pki.write(&format!("{name}.pem"), &pair.certificate);
            pki.write(&format!("{name}.key"), &pair.key);
        }
        pki
    }

    /// Puts our authority where a server reads it.
    pub fn hand_authority_to(&self, data: &Path) {
        hand_over(data, "ca.pem", &self.ours.pem);
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.folder.path().join(name), text).unwrap();
        self.path(name)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Settings for trusting ours and showing a certificate.
    pub fn settings(&self, shown: Shown) -> Vec<(&'static str, String)> {
        let mut settings = vec![("AEGIS_TLS_CA_FILE", self.path("ca.pem"))];
        let name = match shown {
            Shown::Nothing => return settings,
            Shown::Ours => "ours",
            Shown::Strange => "strange",
        };
        settings.push(("AEGIS_TLS_CERT_FILE", self.path(&format!("{name}.pem"))));
        settings.push(("AEGIS_TLS_KEY_FILE", self.path(&format!("{name}.key"))));
        settings
    }

    fn config(&self, variable: &str, url: &str, shown: Shown) -> Config {
        let settings = self.settings(shown);
        let pairs = settings.iter().map(|(name, value)| (*name, value.as_str())).chain([(variable, url)]);
        Config::load(&Given::from_pairs(pairs)).unwrap_or_else(|bad| panic!("{bad}"))
    }
}

/// Puts a file where a server reads it, and nobody else.
fn hand_over(folder: &Path, name: &str, text: &str) {
    let (path, owner) = (folder.join(name), std::fs::metadata(folder).unwrap());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

/// A Redis with a TLS port beside the plain one.
struct TlsRedis {
    server: OwnRedis,
    port: u16,
}

impl TlsRedis {
    fn new(pki: &Pki) -> Self {
        let server = OwnRedis::new();
        pki.hand_authority_to(server.data());
        Self { server, port: free_port() }
    }

    fn url(&self) -> String {
        format!("rediss://{HOST}:{}", self.port)
    }

    /// Shows this certificate from now on, and ends all connections.
    async fn show(&self, pair: &Pair, wants_client: bool) {
        show_redis(&self.server, self.port, pair, wants_client).await;
    }
}

/// Makes a Redis with a file of authorities show this certificate on its TLS port, and ends all connections.
pub async fn show_redis(server: &OwnRedis, port: u16, pair: &Pair, wants_client: bool) {
    // Redis reads the files anew when their names change.
    let name = free_port();
    hand_over(server.data(), &format!("{name}.pem"), &pair.certificate);
    hand_over(server.data(), &format!("{name}.key"), &pair.key);
    let mut plain = connect_redis(&server.url()).await;
    let (_, folder): (String, String) = redis::cmd("CONFIG").arg("GET").arg("dir").query_async(&mut plain).await.unwrap();
    let mut command = redis::cmd("CONFIG");
    command.arg("SET").arg("tls-port").arg(port);
    command.arg("tls-cert-file").arg(format!("{folder}/{name}.pem"));
    command.arg("tls-key-file").arg(format!("{folder}/{name}.key"));
    command.arg("tls-ca-cert-file").arg(format!("{folder}/ca.pem"));
    command.arg("tls-auth-clients").arg(if wants_client { "yes" } else { "no" });
    command.exec_async(&mut plain).await.unwrap();
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").exec_async(&mut plain).await.unwrap();
}

/// Makes a PostgreSQL server show this certificate, and want one of ours if asked; restarts it.
fn show(server: &mut OwnPostgres, pki: &Pki, pair: &Pair, wants_client: bool) {
    let data = server.data().to_owned();
    hand_over(&data, "ca.pem", &pki.ours.pem);
    hand_over(&data, "server.pem", &pair.certificate);
    hand_over(&data, "server.key", &pair.key);
    hand_over(
        &data,
        "postgresql.auto.conf",
        "ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'\nssl_ca_file = 'ca.pem'\n",
    );
    let option = if wants_client { " clientcert=verify-ca" } else { "" };
    hand_over(
        &data,
        "pg_hba.conf",
        &format!(
            "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256{option}\nhostnossl all all 127.0.0.1/32 scram-sha-256\n"
        ),
    );
    server.restart();
}

/// Ends TLS in front of a server that speaks none. Ends with the test's runtime.
struct Front {
    port: u16,
    shown: Arc<Mutex<Arc<ServerConfig>>>,
}

impl Front {
    async fn new(pki: &Pki, pair: &Pair, wants_client: bool, behind: u16) -> Self {
        let shown = Arc::new(Mutex::new(Self::config(pki, pair, wants_client)));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let now = Arc::clone(&shown);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(Arc::clone(&now.lock().unwrap()));
                tokio::spawn(async move {
                    let mut client = acceptor.accept(client).await?;
                    let mut server = TcpStream::connect(("127.0.0.1", behind)).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self { port, shown }
    }

    fn config(pki: &Pki, pair: &Pair, wants_client: bool) -> Arc<ServerConfig> {
        let builder = if wants_client {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(pki.ours.pem.as_bytes()).unwrap()).unwrap();
            ServerConfig::builder().with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build().unwrap())
        } else {
            ServerConfig::builder().with_no_client_auth()
        };
        let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
        Arc::new(builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap()).unwrap())
    }

    fn show(&self, pki: &Pki, pair: &Pair, wants_client: bool) {
        *self.shown.lock().unwrap() = Self::config(pki, pair, wants_client);
    }

    fn url(&self) -> String {
        format!("https://{HOST}:{}", self.port)
    }
}

/// Certificates of servers, whether they want one of the client, what that shows, and a part of the error there is, if any. The
/// same for Redis and Chroma, which are always checked in full.
fn cases(pki: &Pki) -> Vec<(Pair, bool, Shown, Option<&'static str>)> {
    vec![
        (pki.ours.issue(HOST), false, Shown::Nothing, None),
        (pki.ours.issue_until(HOST, 2002), false, Shown::Nothing, Some("expired at 2002-01-01")),
        (pki.ours.issue("elsewhere.example"), false, Shown::Nothing, Some("is for elsewhere.example, not for localhost")),
        (pki.strange.issue(HOST), false, Shown::Nothing, Some("not signed by an authority that AEGIS_TLS_CA_FILE names")),
        (self_signed(), false, Shown::Nothing, Some("not signed by an authority that AEGIS_TLS_CA_FILE names")),
        (pki.ours.issue(HOST), true, Shown::Ours, None),
        (pki.ours.issue(HOST), true, Shown::Nothing, Some("wants a client certificate; name one in AEGIS_TLS_CERT_FILE")),
        (pki.ours.issue(HOST), true, Shown::Strange, Some("does not accept the client certificate in AEGIS_TLS_CERT_FILE")),
    ]
}

/// Asks again while the connection only broke: with TLS 1.3 a server refuses a client certificate after the handshake, and a
/// request that is sent into the closing connection may meet its end before the reason is read.
async fn reason<T, E: ToString>(mut ask: impl AsyncFnMut() -> Result<T, E>) -> Result<T, String> {
    let mut answer = Err(String::new());
    for _ in 0..5 {
        answer = ask().await.map_err(|error| error.to_string());
        let broke = |text: &String| text.contains("cannot be reached") || text.contains("broke");
        if !answer.as_ref().is_err_and(broke) {
            break;
        }
    }
    answer
}

fn judge(case: &str, found: Result<(), String>, wanted: Option<&str>) {
    match (found, wanted) {
        (Ok(()), None) => {}
        (Err(text), Some(part)) if text.contains(part) => {}
        (found, wanted) => panic!("{case}: wanted {wanted:?}, found {found:?}"),
    }
}

#[tokio::test]
async fn redis_is_trusted_by_its_certificate() {
    let pki = Pki::new();
    let server = TlsRedis::new(&pki);
    for (number, (pair, wants_client, shown, wanted)) in cases(&pki).into_iter().enumerate() {
        server.show(&pair, wants_client).await;
        let config = pki.config("AEGIS_REDIS_URL", &server.url(), shown);
        let redis = Redis::new(&config.redis).unwrap();
        judge(&format!("case {number}"), reason(async || redis.ping().await).await, wanted);
    }
}

#[tokio::test]
async fn chroma_is_trusted_by_its_certificate() {
    let pki = Pki::new();
    let behind = std::thread::scope(|scope| scope.spawn(|| chroma().port()).join().unwrap());
    let front = Front::new(&pki, &pki.ours.issue(HOST), false, behind).await;
    for (number, (pair, wants_client, shown, wanted)) in cases(&pki).into_iter().enumerate() {
        front.show(&pki, &pair, wants_client);
        let config = pki.config("AEGIS_CHROMA_URL", &front.url(), shown);
        let client = Client::new(&config.chroma).unwrap();
        judge(&format!("case {number}"), reason(async || client.heartbeat().await).await, wanted);
    }
}

/// Of a server that no trusted authority vouches for.
const UNKNOWN: Result<bool, &str> = Err("not signed by an authority");

#[tokio::test]
async fn postgres_is_trusted_as_sslmode_says() {
    let pki = Pki::new();
    let mut server = OwnPostgres::new();
    let (port, ca) = (server.port(), pki.path("ca.pem"));
    let strange = pki.write("strange-ca.pem", &pki.strange.pem);
    let ask = async |parameters: String, shown: Option<Shown>| {
        let url = format!("postgres://aegis:aegis@{HOST}:{port}/aegis?{parameters}");
        let config = match shown {
            Some(shown) => pki.config("AEGIS_DATABASE_URL", &url, shown),
            None => Config::load(&Given::from_pairs([("AEGIS_DATABASE_URL", url.as_str())])).unwrap(),
        };
        let database = Database::new(&config.database, 1).unwrap();
        let client = reason(async || database.connection().await).await?;
        let row = client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.unwrap();
        Ok::<bool, String>(row.get(0))
    };
    let check = async |parameters: &str, shown: Option<Shown>, wanted: Result<bool, &str>| match (
        ask(parameters.to_owned(), shown).await,
        wanted,
    ) {
        (Ok(encrypted), Ok(wanted)) if encrypted == wanted => {}
        (Err(text), Err(part)) if text.contains(part) => {}
        (found, wanted) => panic!("{parameters:?} {shown:?}: wanted {wanted:?}, found {found:?}"),
    };
    // Without TLS.
    check("", None, Ok(false)).await;
    check("sslmode=allow", Some(Shown::Nothing), Ok(false)).await;
    check("sslmode=require", None, Err("no TLS with PostgreSQL: the server offers none")).await;

    // A certificate that nobody vouches for, as Debian's server has one from its installation.
    show(&mut server, &pki, &self_signed(), false);
    check("", None, Ok(true)).await;
    check("", Some(Shown::Nothing), Ok(true)).await;
    check("sslmode=disable", None, Ok(false)).await;
    check("sslmode=allow", None, Ok(true)).await;
    check("sslmode=require", None, Ok(true)).await;
    check("sslmode=require", Some(Shown::Nothing), UNKNOWN).await;
    check(&format!("sslmode=require&sslrootcert={ca}"), None, UNKNOWN).await;
    check("sslmode=verify-ca", None, UNKNOWN).await;
    check("sslmode=verify-full", Some(Shown::Nothing), UNKNOWN).await;
    check("sslrootcert=system", Some(Shown::Nothing), UNKNOWN).await;

    show(&mut server, &pki, &pki.ours.issue(HOST), false);
    check("sslmode=verify-full", Some(Shown::Nothing), Ok(true)).await;
    check("sslmode=verify-full&sslnegotiation=direct", Some(Shown::Nothing), Ok(true)).await;
    check(&format!("sslmode=verify-full&sslrootcert={strange}"), Some(Shown::Nothing), UNKNOWN).await;
    check("sslmode=verify-full", None, UNKNOWN).await;

    show(&mut server, &pki, &pki.ours.issue("elsewhere.example"), false);
    check("sslmode=verify-ca", Some(Shown::Nothing), Ok(true)).await;
    check("sslmode=verify-full", Some(Shown::Nothing), Err("is for elsewhere.example, not for localhost")).await;

    show(&mut server, &pki, &pki.ours.issue_until(HOST, 2002), false);
    check("sslmode=require", None, Ok(true)).await;
    check("sslmode=verify-ca", Some(Shown::Nothing), Err("expired at 2002-01-01")).await;
    check("sslmode=verify-full", Some(Shown::Nothing), Err("expired at 2002-01-01")).await;

    show(&mut server, &pki, &pki.ours.issue(HOST), true);
    check("sslmode=verify-full", Some(Shown::Ours), Ok(true)).await;
    check("sslmode=verify-full", Some(Shown::Nothing), Err("client certificate")).await;
    check("sslmode=verify-full", Some(Shown::Strange), Err("does not accept the client certificate")).await;
    let own = format!("sslmode=verify-full&sslcert={}&sslkey={}", pki.path("ours.pem"), pki.path("ours.key"));
    check(&own, Some(Shown::Strange), Ok(true)).await;
}

#[tokio::test]
async fn events_go_through_and_a_bad_certificate_in_mid_flight_is_waited_out() {
    let pki = Pki::new();
    let good = pki.ours.issue(HOST);
    let redis_server = TlsRedis::new(&pki);
    redis_server.show(&good, true).await;
    let mut postgres = OwnPostgres::new();
    show(&mut postgres, &pki, &good, true);
    // The test itself looks past TLS, by the ports and the address without it.
    let plain = Stores {
        redis_url: Some(redis_server.server.url()),
        database_url: Some(format!("{}?sslmode=disable", postgres.url("aegis"))),
        chroma_url: None,
    };
    let space = Space::with("tls", plain).await;
    let behind = space.chroma_url.rsplit_once(':').unwrap().1.parse().unwrap();
    let front = Front::new(&pki, &good, true, behind).await;
    let redis_url = rights::as_user(&redis_server.url(), &format!("{}-worker", space.prefix), rights::SECRET);
    let database_url = format!("postgres://aegis_worker:{}@{HOST}:{}/aegis?sslmode=verify-full", rights::SECRET, postgres.port());
    let chroma_url = front.url();
    let mut settings = pki.settings(Shown::Ours);
    settings.push(("AEGIS_REDIS_URL", redis_url));
    settings.push(("AEGIS_DATABASE_URL", database_url));
    settings.push(("AEGIS_CHROMA_URL", chroma_url));
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut worker = Worker::start(&space, &settings);
    worker.ready().await;

    let mut redis = space.redis().await;
    let database = space.administrator().await;
    let turn = json!({"session_id": "s", "user_id": "u", "transcript": "hello"});
    send::json(&mut redis, &space.stream("interactions"), &turn).await;
    send::json(&mut redis, &space.stream("sessions"), &json!({"session_id": "s", "user_id": "u", "status": "started", "seq": 1}))
        .await;
    let vector = json!({"id": "v", "session_id": "s", "user_id": "u", "document": "hello", "embedding": [1.0, 0.0]});
    send::json(&mut redis, &space.stream("embeddings"), &vector).await;
    worker.settled(&space, &["interactions", "sessions", "embeddings"], LONG).await;
    assert_eq!(stores::count(&database, "interaction_logs").await, 1);
    assert_eq!(stores::count(&database, "session_events").await, 1);
    let collection = space.chroma().collection(&space.collection).await.unwrap().unwrap();
    assert_eq!(space.chroma().count(collection.id).await.unwrap(), 1);
    let clear = "SELECT count(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
                 WHERE application_name = 'aegis-ingest' AND (NOT ssl OR client_dn IS NULL)";
    assert_eq!(database.query_one(clear, &[]).await.unwrap().get::<_, i64>(0), 0);

    redis_server.show(&pki.strange.issue(HOST), true).await;
    until("the outage to be told", SOON, async || worker.log().contains("not signed by an authority").then_some(())).await;
    assert!(worker.is_running());
    redis_server.show(&good, true).await;
    let mut redis = connect_redis(&space.redis_url).await;
    send::json(&mut redis, &space.stream("interactions"), &turn).await;
    worker.settled(&space, &["interactions"], LONG).await;
    assert_eq!(stores::count(&database, "interaction_logs").await, 2);
    worker.stop();
    assert_eq!(connect_database(&space.database_url).await.query("SELECT 1", &[]).await.unwrap().len(), 1);
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_at_start_ends_the_worker() {
    let pki = Pki::new();
    let server = TlsRedis::new(&pki);
    server.show(&pki.strange.issue(HOST), false).await;
    let mut postgres = OwnPostgres::new();
    show(&mut postgres, &pki, &pki.ours.issue("elsewhere.example"), false);
    let (strange, ca, addr) = (server.url(), pki.path("ca.pem"), format!("127.0.0.1:{}", free_port()));
    let elsewhere = format!("postgres://aegis:aegis@{HOST}:{}/aegis?sslmode=verify-full", postgres.port());
    let common = [("AEGIS_TLS_CA_FILE", ca.as_str()), ("AEGIS_HTTP_ADDR", &addr)];

    let plain = postgres.url("aegis");
    let settings = [&common[..], &[("AEGIS_REDIS_URL", &strange), ("AEGIS_DATABASE_URL", &plain)]].concat();
    let output = worker::command(&["run", "--lanes", "interactions"], &settings);
    let said_of_redis = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said_of_redis}");
    assert!(said_of_redis.contains("not signed by an authority that AEGIS_TLS_CA_FILE names"), "{said_of_redis}");

    let plain = server.server.url();
    let settings = [&common[..], &[("AEGIS_REDIS_URL", &plain), ("AEGIS_DATABASE_URL", &elsewhere)]].concat();
    let output = worker::command(&["run", "--lanes", "interactions"], &settings);
    let said_of_database = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said_of_database}");
    assert!(said_of_database.contains("is for elsewhere.example, not for localhost"), "{said_of_database}");

    let settings = [&common[..], &[("AEGIS_REDIS_URL", &strange), ("AEGIS_DATABASE_URL", &elsewhere)]].concat();
    let output = worker::command(&["check", "--lanes", "interactions"], &settings);
    let checked = said(&output);
    assert_eq!(output.status.code(), Some(1), "{checked}");
    assert!(checked.contains("not signed by an authority") && checked.contains("is for elsewhere.example"), "{checked}");
}

#[test]
fn files_that_do_not_serve_are_bad_settings() {
    let pki = Pki::new();
    let (ca, ours, key, other) = (pki.path("ca.pem"), pki.path("ours.pem"), pki.path("ours.key"), pki.path("strange.key"));
    let prose = pki.write("prose.pem", "nothing of the kind\n");
    let in_url = format!("postgres://aegis:s3cr3t@127.0.0.1:1/aegis?sslmode=verify-full&sslrootcert={prose}");
    let cases: [(&[(&str, &str)], &str); 9] = [
        (&[("AEGIS_TLS_CA_FILE", "/no/such/file")], "AEGIS_TLS_CA_FILE is \"/no/such/file\", which cannot be read"),
        (&[("AEGIS_TLS_CA_FILE", &prose)], "which holds no certificate"),
        (&[("AEGIS_TLS_CERT_FILE", &ours)], "AEGIS_TLS_CERT_FILE is"),
        (&[("AEGIS_TLS_KEY_FILE", &key)], "AEGIS_TLS_KEY_FILE is"),
        (&[("AEGIS_TLS_CERT_FILE", &ours), ("AEGIS_TLS_KEY_FILE", &prose)], "which holds no key"),
        (&[("AEGIS_TLS_CERT_FILE", &ours), ("AEGIS_TLS_KEY_FILE", &other)], "which is not the key of the certificate"),
        (&[("AEGIS_DATABASE_URL", &in_url)], "sslrootcert to name a PEM file"),
        (&[("AEGIS_DATABASE_URL", "postgres://u@h/d?sslmode=verify")], "sslmode to be disable"),
        (&[("AEGIS_TLS_CA_FILE", &ca), ("AEGIS_REDIS_URL", "rediss://h/#insecure")], "no #insecure"),
    ];
    for (settings, wanted) in cases {
        let output = worker::command(&["run"], settings);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{settings:?}: {text}");
        assert!(text.contains(wanted) && !text.contains("s3cr3t"), "{settings:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{settings:?}: {text}");
    }
}

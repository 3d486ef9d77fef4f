//! A place of its own for each test: a key prefix, a database and a collection, so that tests run side by side.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aegis_ingest::config;
use redis::aio::MultiplexedConnection;
use tokio::sync::OnceCell;
use tokio_postgres::NoTls;

use super::{servers, worker};

/// Database that is migrated once, by the real program, and copied for each space.
const MIGRATED: &str = "aegis_migrated";

/// Where one test's data go.
#[derive(Clone, Debug)]
pub struct Space {
    /// Unique in this process; also the database's name.
    pub name: String,
    /// For `AEGIS_KEY_PREFIX`.
    pub prefix: String,
    /// For `AEGIS_REDIS_URL`.
    pub redis_url: String,
    /// For `AEGIS_DATABASE_URL`.
    pub database_url: String,
    /// For `AEGIS_CHROMA_URL`.
    pub chroma_url: String,
    /// For `AEGIS_CHROMA_COLLECTION`.
    pub collection: String,
    /// For `AEGIS_CHROMA_SPACE`.
    pub distance: config::Space,
}

/// The stores of a space; shared ones unless said otherwise.
#[derive(Default)]
#[allow(clippy::struct_field_names, reason = "they are the settings of these names")]
pub struct Stores {
    /// Address of Redis.
    pub redis_url: Option<String>,
    /// Address of a database that exists; it need not be migrated, since workers do it at their start.
    pub database_url: Option<String>,
    /// Address of Chroma.
    pub chroma_url: Option<String>,
}

impl Space {
    /// A space on the shared servers, with a database that is migrated.
    pub async fn new(test: &str) -> Self {
        Self::with(test, Stores::default()).await
    }

    /// A space on servers of the test's own, or behind proxies; those left out are the shared ones.
    pub async fn with(test: &str, stores: Stores) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let test: String =
            test.chars().take(30).map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
        let name = format!("t{}_{}_{test}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let redis_url = stores.redis_url.unwrap_or_else(|| blocking(|| servers::redis().url()));
        let chroma_url = stores.chroma_url.unwrap_or_else(|| blocking(|| servers::chroma().url()));
        let database_url = match stores.database_url {
            Some(url) => url,
            None => copy_of_migrated(&name).await,
        };
        let collection = format!("{}-x", name.replace('_', "-"));
        Self { prefix: name.clone(), redis_url, database_url, chroma_url, collection, distance: config::Space::Cosine, name }
    }

    /// A database of its own on the shared server, empty: not migrated.
    pub async fn unmigrated(test: &str) -> Self {
        let mut space = Self::new(test).await;
        let name = format!("{}_empty", space.name);
        let server = blocking(servers::postgres);
        create_database(server, &name, "aegis").await;
        space.database_url = server.url(&name);
        space
    }

    /// Settings for a worker in this space.
    pub fn settings(&self) -> Vec<(String, String)> {
        [
            ("AEGIS_REDIS_URL", self.redis_url.as_str()),
            ("AEGIS_DATABASE_URL", &self.database_url),
            ("AEGIS_CHROMA_URL", &self.chroma_url),
            ("AEGIS_KEY_PREFIX", &self.prefix),
            ("AEGIS_CHROMA_COLLECTION", &self.collection),
            ("AEGIS_CHROMA_SPACE", self.distance.name()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// The stream of a lane (`interactions`, `sessions`, `embeddings`) with one partition.
    pub fn stream(&self, lane: &str) -> String {
        format!("{}:{lane}", self.prefix)
    }

    /// The stream of a partition, with several.
    pub fn partition(&self, lane: &str, partition: u16) -> String {
        format!("{}:{lane}:{{{partition}}}", self.prefix)
    }

    /// The dead letters of a lane with one partition.
    pub fn dead(&self, lane: &str) -> String {
        format!("{}:{lane}:dead", self.prefix)
    }

    /// The hash of a session.
    pub fn session_key(&self, session_id: &str) -> String {
        format!("{}:session:{session_id}", self.prefix)
    }

    /// A new connection to Redis, with patience for large pipelines.
    pub async fn redis(&self) -> MultiplexedConnection {
        connect_redis(&self.redis_url).await
    }

    /// A new connection to the database.
    pub async fn database(&self) -> tokio_postgres::Client {
        connect_database(&self.database_url).await
    }

    /// A client of Chroma that creates collections with this space's distance.
    pub fn chroma(&self) -> aegis_ingest::chroma::Client {
        let settings = self.settings();
        let settings = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        aegis_ingest::tls::install_provider();
        let config = config::Config::load(&config::Given::from_pairs(settings)).expect("sound settings").chroma;
        aegis_ingest::chroma::Client::new(&config).expect("a usable address")
    }
}

/// Starting a server takes seconds and blocks: it must not hold up the test's own tasks.
fn blocking<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// A new connection to Redis, with patience for large pipelines.
pub async fn connect_redis(url: &str) -> MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(10)))
        .set_response_timeout(Some(Duration::from_mins(1)));
    let client = redis::Client::open(url).expect("a usable address");
    client.get_multiplexed_async_connection_with_config(&config).await.expect("Redis")
}

/// A new connection to a database.
pub async fn connect_database(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
    tokio::spawn(connection);
    client
}

async fn create_database(server: &servers::OwnPostgres, name: &str, template: &str) {
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = ONE_AT_A_TIME.lock().await;
    let client = connect_database(&server.url("postgres")).await;
    // The launcher of TimescaleDB looks into every database now and then, and a template must not be in use.
    let mut tries = 0;
    while let Err(error) = client.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}")).await {
        tries += 1;
        let in_use = error.code() == Some(&tokio_postgres::error::SqlState::OBJECT_IN_USE);
        assert!(in_use && tries < 20, "CREATE DATABASE {name} TEMPLATE {template}: {error:?}");
    }
}

/// A copy of the database that is migrated once by `aegis-ingest migrate`.
async fn copy_of_migrated(name: &str) -> String {
    static DONE: OnceCell<()> = OnceCell::const_new();
    let server = blocking(servers::postgres);
    DONE.get_or_init(|| async {
        create_database(server, MIGRATED, "aegis").await;
        let url = server.url(MIGRATED);
        let output = worker::command(&["migrate"], &[("AEGIS_DATABASE_URL", url.as_str())]);
        assert!(output.status.success(), "aegis-ingest migrate: {output:?}");
        let client = connect_database(&server.url("postgres")).await;
        client.batch_execute(&format!("ALTER DATABASE {MIGRATED} ALLOW_CONNECTIONS false")).await.expect("the owner may");
    })
    .await;
    create_database(server, name, MIGRATED).await;
    server.url(name)
}

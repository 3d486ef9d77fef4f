//! A place of its own for each test: a key prefix, a database and a collection, so that tests run side by side.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aegis_ingest::config;
use redis::aio::MultiplexedConnection;
use tokio_postgres::NoTls;

use super::rights::{self, Redis, Rights};
use super::servers;

/// Where one test's data go.
#[derive(Clone, Debug)]
pub struct Space {
    /// Unique in this process; also the database's name.
    pub name: String,
    /// For `AEGIS_KEY_PREFIX`; users of Redis are for one prefix, see [`Space::with_prefix`].
    pub prefix: String,
    /// The administrator's address of Redis; programs are given their own user's, see [`Space::settings`].
    pub redis_url: String,
    /// The administrator's address of the database; programs are given their own role's.
    pub database_url: String,
    /// For `AEGIS_CHROMA_URL`.
    pub chroma_url: String,
    /// For `AEGIS_CHROMA_COLLECTION`.
    pub collection: String,
    /// For `AEGIS_CHROMA_SPACE`.
    pub distance: config::Space,
    /// What its programs may do.
    pub rights: Rights,
}

/// The stores of a space; shared ones unless said otherwise.
#[derive(Default)]
#[allow(clippy::struct_field_names, reason = "they are the settings of these names")]
pub struct Stores {
    /// The administrator's address of Redis.
    pub redis_url: Option<String>,
    /// The administrator's address of a database that exists.
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
            None => copy_of(rights::MIGRATED, &name).await,
        };
        // Several servers: the test makes the users on each.
        if !redis_url.starts_with("redis+") {
            rights::make_redis_users(&redis_url, &name).await;
        }
        let collection = format!("{}-x", name.replace('_', "-"));
        let (distance, rights) = (config::Space::Cosine, Rights::Least);
        Self { prefix: name.clone(), redis_url, database_url, chroma_url, collection, distance, rights, name }
    }

    /// The same under another key prefix, with users for it.
    pub async fn with_prefix(self, prefix: &str) -> Self {
        rights::make_redis_users(&self.redis_url, prefix).await;
        Self { prefix: prefix.to_owned(), ..self }
    }

    /// The same for programs with all rights, which migrate by themselves.
    pub fn with_all_rights(self) -> Self {
        Self { rights: Rights::All, ..self }
    }

    /// A database of its own on the shared server, empty: not migrated.
    pub async fn unmigrated(test: &str) -> Self {
        let mut space = Self::new(test).await;
        let name = format!("{}_empty", space.name);
        space.database_url = copy_of(rights::EMPTY, &name).await;
        space
    }

    /// Address of Redis as a user of `users.acl`: `producer`, `worker`, `operator`, `metrics` or `keda`.
    pub fn redis_url_of(&self, user: &str) -> String {
        rights::as_user(&self.redis_url, &format!("{}-{user}", self.prefix), rights::SECRET)
    }

    /// Address of the database as a role of `roles.sql`: `migrator`, `worker` or `reader`.
    pub fn database_url_of(&self, role: &str) -> String {
        rights::as_user(&self.database_url, &format!("aegis_{role}"), rights::SECRET)
    }

    /// Settings for a worker in this space.
    pub fn settings(&self) -> Vec<(String, String)> {
        self.settings_of("worker")
    }

    /// Settings for a program with the Redis user `worker` or `operator`.
    pub fn settings_of(&self, user: &str) -> Vec<(String, String)> {
        let (redis_url, database_url, migrate) = match self.rights {
            Rights::Least => (self.redis_url_of(user), self.database_url_of("worker"), "false"),
            Rights::All => (self.redis_url.clone(), self.database_url.clone(), "true"),
        };
        [
            ("AEGIS_REDIS_URL", redis_url.as_str()),
            ("AEGIS_DATABASE_URL", &database_url),
            ("AEGIS_MIGRATE_ON_START", migrate),
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

    /// New connections to Redis, with patience for large pipelines: the administrator's, and the producer's for sending.
    pub async fn redis(&self) -> Redis {
        let administrator = connect_redis(&self.redis_url).await;
        let producer = match self.rights {
            Rights::Least => connect_redis(&self.redis_url_of("producer")).await,
            Rights::All => administrator.clone(),
        };
        Redis::new(administrator, producer)
    }

    /// A new connection to the database as the reader: it sees what people and dashboards see.
    pub async fn database(&self) -> tokio_postgres::Client {
        connect_database(&self.database_url_of("reader")).await
    }

    /// A new connection to the database for what only an administrator may.
    pub async fn administrator(&self) -> tokio_postgres::Client {
        connect_database(&self.database_url).await
    }

    /// A client of Chroma that creates collections with this space's distance.
    pub fn chroma(&self) -> aegis_ingest::chroma::Client {
        let settings = self.settings();
        // An address of a cluster would want partitions, which are none of Chroma's.
        let settings = settings.iter().filter(|(name, _)| name != "AEGIS_REDIS_URL");
        let settings = settings.map(|(name, value)| (name.as_str(), value.as_str()));
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

/// A database of that name on the shared server, a copy of another one with what the roles may do there; the administrator's
/// address of it.
async fn copy_of(template: &str, name: &str) -> String {
    let server = blocking(servers::postgres);
    create_database(server, name, template).await;
    // CREATE DATABASE copies what is in a database, and leaves out who may connect to it.
    let grants = "UPDATE pg_database SET datacl = (SELECT datacl FROM pg_database WHERE datname = 'aegis') WHERE datname = $1";
    let client = connect_database(&server.url("postgres")).await;
    assert_eq!(client.execute(grants, &[&name]).await.expect("an administrator may"), 1);
    server.url(name)
}

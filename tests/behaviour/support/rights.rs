//! The roles of `infra/timescale/roles.sql` and the users of `infra/redis/users.acl`: what every test's programs run with. A test
//! that breaks something does so as the administrator, by name ([`Space::administrator`](super::Space::administrator)).

use std::path::Path;
use std::process::Command;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisFuture, Value};

use super::servers::{free_port, in_root, repository};
use super::{space, worker};

/// The password of all of them.
pub const SECRET: &str = "least-secret";
/// Database of [`prepare_cluster`] that holds nothing but the extension.
pub const EMPTY: &str = "aegis_empty";
/// Database of [`prepare_cluster`] that is migrated, to be copied; nobody connects to it.
pub const MIGRATED: &str = "aegis_migrated";

/// What a space's programs may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rights {
    /// The worker's role and user, and a schema that somebody else has migrated.
    #[default]
    Least,
    /// The administrator's, and the worker migrates by itself: for tests of just that.
    All,
}

/// An address with another user.
pub fn as_user(url: &str, user: &str, password: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("an address");
    let (_, place) = rest.rsplit_once('@').unwrap_or(("", rest));
    format!("{scheme}://{user}:{password}@{place}")
}

/// Makes the users of `users.acl` for a key prefix (`PREFIX-worker` and so on), also for after a restart.
pub async fn make_redis_users(url: &str, prefix: &str) {
    let text = std::fs::read_to_string(repository().join("infra/redis/users.acl")).expect("users.acl");
    let text = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let mut redis = space::connect_redis(url).await;
    for user in text.split("user aegis-").skip(1) {
        let mut words = user.split_whitespace();
        let name = words.next().expect("a name");
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg(format!("{prefix}-{name}")).arg("reset");
        for word in words {
            let word = word.replace("aegis:", &format!("{prefix}:"));
            command.arg(if word == format!("#{{redis_{name}}}") { format!(">{SECRET}") } else { word });
        }
        let _: String = command.query_async(&mut redis).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let _: String = redis::cmd("ACL").arg("SAVE").query_async(&mut redis).await.expect("ACL SAVE");
}

/// A connection of a test: the administrator's, to look and to break, beside the producer's, by which [`send`](super::send) writes.
pub struct Redis {
    administrator: MultiplexedConnection,
    producer: MultiplexedConnection,
}

impl Redis {
    pub fn new(administrator: MultiplexedConnection, producer: MultiplexedConnection) -> Self {
        Self { administrator, producer }
    }
}

impl std::ops::Deref for Redis {
    type Target = MultiplexedConnection;

    fn deref(&self) -> &MultiplexedConnection {
        &self.administrator
    }
}

impl std::ops::DerefMut for Redis {
    fn deref_mut(&mut self) -> &mut MultiplexedConnection {
        &mut self.administrator
    }
}

impl ConnectionLike for Redis {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        self.administrator.req_packed_command(cmd)
    }

    fn req_packed_commands<'a>(&'a mut self, pipeline: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        self.administrator.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.administrator.get_db()
    }
}

/// What entries can be written by.
pub trait Produces {
    fn producer(&mut self) -> &mut MultiplexedConnection;
}

impl Produces for Redis {
    fn producer(&mut self) -> &mut MultiplexedConnection {
        &mut self.producer
    }
}

impl Produces for MultiplexedConnection {
    fn producer(&mut self) -> &mut MultiplexedConnection {
        self
    }
}

/// Makes the roles in a copy of the template cluster, and three databases: `aegis`, migrated by the migrator; [`MIGRATED`], its
/// copy; [`EMPTY`]. The role `aegis` is the administrator from then on.
pub fn prepare_cluster(outside: &Path, inside: &str) {
    let secrets = outside.join("secrets");
    std::fs::create_dir_all(&secrets).expect("a folder");
    for role in ["migrator", "worker", "reader", "eraser"] {
        std::fs::write(secrets.join(format!("postgres_{role}")), SECRET).expect("a secret");
    }
    std::fs::copy(repository().join("infra/timescale/roles.sql"), secrets.join("roles.sql")).expect("roles.sql");
    let port = free_port().to_string();
    // No background worker: it would be in a database that is to be copied.
    let server = format!("-p {port} -c unix_socket_directories={inside} -c fsync=off -c timescaledb.max_background_workers=0");
    run(in_root(&["pg_ctl", "-D", inside, "-w", "-l", &format!("{inside}/prepare.log"), "start", "-o", &server]));
    let administer = |database: &str, arguments: &[&str]| {
        let psql = ["psql", "-qXAt", "-v", "ON_ERROR_STOP=1", "-h", inside, "-p", &port, "-U", "postgres", "-d", database];
        let mut command = in_root(&[&psql, arguments].concat());
        command.env("SECRETS_DIR", format!("{inside}/secrets"));
        run(command);
    };
    let roles = format!("{inside}/secrets/roles.sql");
    administer(
        "postgres",
        &["-c", "ALTER ROLE aegis SUPERUSER", "-c", &format!("CREATE DATABASE {EMPTY} OWNER aegis TEMPLATE aegis")],
    );
    administer(EMPTY, &["-f", &roles]);
    administer("aegis", &["-f", &roles]);
    let url = format!("postgres://aegis_migrator:{SECRET}@127.0.0.1:{port}/aegis");
    let output = worker::command(&["migrate"], &[("AEGIS_DATABASE_URL", url.as_str())]);
    assert!(output.status.success(), "aegis-ingest migrate: {output:?}");
    administer("aegis", &["-f", &roles]);
    administer("postgres", &["-c", &format!("CREATE DATABASE {MIGRATED} OWNER aegis TEMPLATE aegis ALLOW_CONNECTIONS false")]);
    run(in_root(&["pg_ctl", "-D", inside, "-w", "-m", "fast", "stop"]));
}

fn run(mut command: Command) {
    // To a file: a server that pg_ctl starts would keep a pipe open.
    let said = tempfile::tempfile().expect("a temporary file");
    command.stdout(said.try_clone().expect("a file")).stderr(said.try_clone().expect("a file"));
    let status = command.status().expect("infra/local/in-root");
    if !status.success() {
        let mut text = String::new();
        let mut said = said;
        let _ = std::io::Seek::rewind(&mut said);
        let _ = std::io::Read::read_to_string(&mut said, &mut text);
        panic!("{command:?}: {status}\n{text}");
    }
}

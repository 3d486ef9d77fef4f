//! Several Redis servers that belong together: a cluster ([`Cluster`]), or one watched by sentinels ([`Watched`]); and a producer
//! that follows them ([`Sender`]) without sharing a line with the program.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::time::Duration;

use redis::aio::MultiplexedConnection;

use super::rights::make_redis_users;
use super::send::Fields;
use super::servers::{OwnRedis, OwnSentinel, free_port};
use super::wait::{LONG, until};

/// After which a node counts as gone, milliseconds: short for a test, long enough for two busy cores.
const NODE_TIMEOUT_MS: &str = "2000";

/// Whoever serves a key now.
#[allow(async_fn_in_trait, reason = "tests await it where it is called")]
pub trait Primaries {
    /// The port of the key's primary; `None`: nobody knows at the moment.
    async fn of(&self, key: &str) -> Option<u16>;

    /// A connection to a node; `None`: it is away.
    async fn at(&self, port: u16) -> Option<MultiplexedConnection>;

    /// A connection to a key's primary, which is waited for.
    async fn connection(&self, key: &str) -> MultiplexedConnection {
        until(&format!("a primary of {key}"), LONG, async || self.at(self.of(key).await?).await).await
    }
}

/// A connection whose answers do not take for ever; `None`: the server is away.
pub async fn connect(url: String) -> Option<MultiplexedConnection> {
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(2)))
        .set_response_timeout(Some(Duration::from_secs(5)));
    let client = redis::Client::open(url).expect("a usable address");
    client.get_multiplexed_async_connection_with_config(&config).await.ok()
}

fn aside<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// A cluster on loopback.
pub struct Cluster {
    nodes: BTreeMap<u16, OwnRedis>,
    slots: std::sync::Mutex<HashMap<String, u16>>,
}

impl Cluster {
    /// Three primaries, each with so many replicas, that serve all slots.
    pub async fn start(replicas: usize, arguments: &[&str]) -> Self {
        let count = 3 * (1 + replicas);
        let mut nodes = BTreeMap::new();
        let mut ports = Vec::new();
        for _ in 0..count {
            let bus = free_port().to_string();
            let own = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", NODE_TIMEOUT_MS];
            let durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--repl-diskless-sync-delay", "0"];
            let node = aside(|| OwnRedis::with(&[&own[..], &durable, arguments].concat()));
            ports.push((node.port(), bus));
            nodes.insert(node.port(), node);
        }
        let cluster = Self { nodes, slots: std::sync::Mutex::default() };
        let mut connections = Vec::new();
        for (port, _) in &ports {
            connections.push(cluster.at(*port).await.expect("a node"));
        }
        for (number, node) in connections.iter_mut().enumerate() {
            cluster_command(node, &["SET-CONFIG-EPOCH", &(number + 1).to_string()]).await;
        }
        let (first, bus) = (ports[0].0.to_string(), &ports[0].1);
        for node in &mut connections[1..] {
            cluster_command(node, &["MEET", "127.0.0.1", &first, bus]).await;
        }
        for (number, range) in ["0 5460", "5461 10922", "10923 16383"].iter().enumerate() {
            let (from, to) = range.split_once(' ').unwrap();
            cluster_command(&mut connections[number], &["ADDSLOTSRANGE", from, to]).await;
        }
        for (number, node) in connections.iter_mut().enumerate() {
            until("every node to know every other", LONG, async || {
                let nodes: String = redis::cmd("CLUSTER").arg("NODES").query_async(node).await.ok()?;
                (nodes.lines().filter(|line| !line.contains("handshake")).count() == count).then_some(())
            })
            .await;
            if number >= 3 {
                let primary = cluster.id(ports[number % 3].0).await;
                until("a replica", LONG, async || {
                    redis::cmd("CLUSTER").arg("REPLICATE").arg(&primary).query_async::<()>(node).await.ok()
                })
                .await;
            }
        }
        cluster.well().await;
        cluster
    }

    /// Waits until every node says that all slots are served, and every replica follows its primary.
    pub async fn well(&self) {
        for (port, node) in &self.nodes {
            if node.is_running() {
                until(&format!("node {port} of the cluster to be well"), LONG, async || {
                    let mut node = self.at(*port).await?;
                    let state: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut node).await.ok()?;
                    let replication: String = redis::cmd("INFO").arg("replication").query_async(&mut node).await.ok()?;
                    let alone = replication.contains("role:master") && !replication.contains("connected_slaves:0");
                    let follows = replication.contains("master_link_status:up");
                    (state.contains("cluster_state:ok") && (alone || follows || self.nodes.len() == 3)).then_some(())
                })
                .await;
            }
        }
    }

    /// For `AEGIS_REDIS_URL`, as the administrator: two of the nodes are enough to find the others.
    pub fn url(&self) -> String {
        let nodes: Vec<_> = self.nodes.keys().take(2).map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    /// Makes the users of `users.acl` on every node.
    pub async fn make_users(&self, prefix: &str) {
        for node in self.nodes.values() {
            make_redis_users(&node.url(), prefix).await;
        }
    }

    /// Ports of all nodes.
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.keys().copied().collect()
    }

    /// One node.
    pub fn node(&mut self, port: u16) -> &mut OwnRedis {
        self.nodes.get_mut(&port).expect("a node of this port")
    }

    async fn id(&self, port: u16) -> String {
        let mut node = self.at(port).await.expect("a node");
        redis::cmd("CLUSTER").arg("MYID").query_async(&mut node).await.expect("CLUSTER MYID")
    }

    /// The slot of a key, as Redis has it.
    pub async fn slot(&self, key: &str) -> Option<u16> {
        if let Some(slot) = self.slots.lock().unwrap().get(key) {
            return Some(*slot);
        }
        for port in self.running() {
            let Some(mut node) = self.at(port).await else { continue };
            if let Ok(slot) = redis::cmd("CLUSTER").arg("KEYSLOT").arg(key).query_async::<u16>(&mut node).await {
                self.slots.lock().unwrap().insert(key.to_owned(), slot);
                return Some(slot);
            }
        }
        None
    }

    fn running(&self) -> Vec<u16> {
        self.nodes.iter().filter(|(_, node)| node.is_running()).map(|(port, _)| *port).collect()
    }

    /// The port of a slot's primary, if that runs.
    pub async fn owner(&self, slot: u16) -> Option<u16> {
        for port in self.running() {
            let Some(mut node) = self.at(port).await else { continue };
            let rows: Vec<Vec<redis::Value>> =
                redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut node).await.unwrap_or_default();
            for row in rows {
                let range: (u16, u16) = (number(&row[0]), number(&row[1]));
                let redis::Value::Array(primary) = &row[2] else { continue };
                let owner = number(&primary[1]);
                if (range.0..=range.1).contains(&slot) && self.nodes.get(&owner).is_some_and(OwnRedis::is_running) {
                    return Some(owner);
                }
            }
        }
        None
    }

    /// Kills the primary of a slot and waits for the replica that is promoted; returns both.
    pub async fn fail_over(&mut self, slot: u16) -> (u16, u16) {
        let old = self.owner(slot).await.expect("a primary");
        aside(|| self.node(old).kill());
        let new = until("a replica to be promoted", LONG, async || self.owner(slot).await.filter(|new| *new != old)).await;
        (old, new)
    }

    /// Moves slots with their keys to another primary, as resharding does; between the move of the keys and of the slots each
    /// question for them is answered with ASK for that long.
    pub async fn move_slots(&self, slots: RangeInclusive<u16>, to: u16, window: Duration) -> usize {
        let (mut moved, last) = (0, *slots.end());
        let from = self.owner(*slots.start()).await.expect("a primary");
        assert_ne!(from, to, "they are there already");
        let (from_id, to_id) = (self.id(from).await, self.id(to).await);
        let (mut source, mut target) = (self.at(from).await.unwrap(), self.at(to).await.unwrap());
        for slot in slots.clone() {
            let slot = slot.to_string();
            cluster_command(&mut target, &["SETSLOT", &slot, "IMPORTING", &from_id]).await;
            cluster_command(&mut source, &["SETSLOT", &slot, "MIGRATING", &to_id]).await;
            loop {
                let keys: Vec<String> =
                    redis::cmd("CLUSTER").arg("GETKEYSINSLOT").arg(&slot).arg(100).query_async(&mut source).await.unwrap();
                if keys.is_empty() {
                    break;
                }
                moved += keys.len();
                let mut migrate = redis::cmd("MIGRATE");
                migrate.arg("127.0.0.1").arg(to).arg("").arg(0).arg(5000).arg("KEYS").arg(&keys);
                migrate.exec_async(&mut source).await.expect("MIGRATE");
            }
        }
        tokio::time::sleep(window).await;
        let mut nodes = vec![target, source];
        for port in self.running().into_iter().filter(|port| ![from, to].contains(port)) {
            nodes.extend(self.at(port).await);
        }
        for slot in slots {
            for node in &mut nodes {
                let mut command = redis::cmd("CLUSTER");
                command.arg("SETSLOT").arg(slot).arg("NODE").arg(&to_id);
                // Replicas refuse, and learn it from their primaries.
                let _ = command.exec_async(node).await;
            }
        }
        until("the slots to have a new primary", LONG, async || (self.owner(last).await == Some(to)).then_some(())).await;
        moved
    }

    /// All keys' values of XLEN in sum.
    pub async fn length(&self, keys: &[String]) -> u64 {
        let mut sum = 0;
        for key in keys {
            sum += super::stores::length(&mut self.connection(key).await, key).await;
        }
        sum
    }
}

fn number(value: &redis::Value) -> u16 {
    redis::from_redis_value(value.clone()).expect("a number")
}

async fn cluster_command(node: &mut MultiplexedConnection, arguments: &[&str]) {
    let done = redis::cmd("CLUSTER").arg(arguments).exec_async(node).await;
    done.unwrap_or_else(|error| panic!("CLUSTER {arguments:?}: {error}"));
}

impl Primaries for Cluster {
    async fn of(&self, key: &str) -> Option<u16> {
        self.owner(self.slot(key).await?).await
    }

    async fn at(&self, port: u16) -> Option<MultiplexedConnection> {
        connect(format!("redis://127.0.0.1:{port}")).await
    }
}

/// One primary, two replicas, and three sentinels that watch them under the name `voice`.
pub struct Watched {
    nodes: BTreeMap<u16, OwnRedis>,
    sentinels: Vec<OwnSentinel>,
}

impl Watched {
    /// What the sentinels call it.
    pub const NAME: &str = "voice";

    /// Started; the replicas follow, and the sentinels know each other.
    pub async fn start() -> Self {
        let durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--repl-diskless-sync-delay", "0"];
        let primary = aside(|| OwnRedis::with(&durable));
        let of = format!("127.0.0.1 {}", primary.port());
        let mut nodes = BTreeMap::new();
        for _ in 0..2 {
            let replica = aside(|| OwnRedis::with(&[&durable[..], &["--replicaof", &of]].concat()));
            nodes.insert(replica.port(), replica);
        }
        let port = primary.port();
        nodes.insert(port, primary);
        let watched = Self { nodes, sentinels: Vec::new() };
        until("two replicas", LONG, async || {
            let text: String = redis::cmd("INFO").arg("replication").query_async(&mut watched.at(port).await?).await.ok()?;
            (text.matches("state=online").count() == 2).then_some(())
        })
        .await;
        let sentinels = (0..3).map(|_| aside(|| OwnSentinel::new(Self::NAME, port))).collect();
        let watched = Self { sentinels, ..watched };
        for sentinel in &watched.sentinels {
            until("the sentinels to know each other", LONG, async || {
                let mut sentinel = watched.at(sentinel.port()).await?;
                let text: String = redis::cmd("INFO").arg("sentinel").query_async(&mut sentinel).await.ok()?;
                (text.contains("slaves=2,sentinels=3")).then_some(())
            })
            .await;
        }
        watched
    }

    /// For `AEGIS_REDIS_URL`, as the administrator.
    pub fn url(&self) -> String {
        let sentinels: Vec<_> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        format!("redis+sentinel://{}/{}", sentinels.join(","), Self::NAME)
    }

    /// Makes the users of `users.acl` on every server.
    pub async fn make_users(&self, prefix: &str) {
        for node in self.nodes.values() {
            make_redis_users(&node.url(), prefix).await;
        }
    }

    /// One server.
    pub fn node(&mut self, port: u16) -> &mut OwnRedis {
        self.nodes.get_mut(&port).expect("a server of this port")
    }

    /// One sentinel.
    pub fn sentinel(&mut self, number: usize) -> &mut OwnSentinel {
        &mut self.sentinels[number]
    }

    /// Kills the primary and waits for the replica that is promoted; returns both.
    pub async fn fail_over(&mut self) -> (u16, u16) {
        let old = self.of("").await.expect("a primary");
        aside(|| self.node(old).kill());
        let new = until("a replica to be promoted", LONG, async || self.of("").await.filter(|new| *new != old)).await;
        (old, new)
    }
}

impl Primaries for Watched {
    async fn of(&self, _: &str) -> Option<u16> {
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.is_running()) {
            let Some(mut sentinel) = self.at(sentinel.port()).await else { continue };
            let mut command = redis::cmd("SENTINEL");
            command.arg("GET-MASTER-ADDR-BY-NAME").arg(Self::NAME);
            let Ok((_, port)) = command.query_async::<(String, u16)>(&mut sentinel).await else { continue };
            let Some(mut node) = self.at(port).await else { continue };
            let role: Vec<redis::Value> = redis::cmd("ROLE").query_async(&mut node).await.unwrap_or_default();
            if role.first().is_some_and(|role| *role == redis::Value::BulkString(b"master".to_vec())) {
                return Some(port);
            }
        }
        None
    }

    async fn at(&self, port: u16) -> Option<MultiplexedConnection> {
        connect(format!("redis://127.0.0.1:{port}")).await
    }
}

/// Writes entries until a replica has them too: then no failover loses them.
pub struct Sender {
    connections: HashMap<u16, MultiplexedConnection>,
    /// Entries that were sent again, since nobody could tell whether they had arrived.
    pub again: usize,
}

impl Sender {
    pub fn new() -> Self {
        Self { connections: HashMap::new(), again: 0 }
    }

    /// Writes entries of one stream. With `safe` they are on a replica when it returns; without, the primary has said yes.
    pub async fn send(&mut self, primaries: &impl Primaries, stream: &str, entries: &[Fields], safe: bool) {
        let mut pipeline = redis::pipe();
        for fields in entries {
            let command = pipeline.cmd("XADD").arg(stream).arg("*");
            for (name, value) in fields {
                command.arg(name).arg(value.as_slice());
            }
        }
        let mut first = true;
        until(&format!("{stream} to take entries"), LONG, async || {
            if !std::mem::take(&mut first) {
                self.again += entries.len();
            }
            let port = primaries.of(stream).await?;
            let connection = match self.connections.get(&port) {
                Some(connection) => connection.clone(),
                None => self.connections.entry(port).or_insert(primaries.at(port).await?).clone(),
            };
            let sent = Self::send_at(connection, &pipeline, safe).await;
            if sent.is_none() {
                self.connections.remove(&port);
            }
            sent
        })
        .await;
    }

    async fn send_at(mut connection: MultiplexedConnection, pipeline: &redis::Pipeline, safe: bool) -> Option<()> {
        let _: Vec<String> = pipeline.query_async(&mut connection).await.ok()?;
        // The same connection, since WAIT means what it wrote.
        for _ in 0..60 {
            if !safe {
                return Some(());
            }
            let copies: u64 = redis::cmd("WAIT").arg(1).arg(500).query_async(&mut connection).await.ok()?;
            if copies >= 1 {
                return Some(());
            }
        }
        None
    }
}

//! Which server serves a key: the one place that knows whether there is one server, one that sentinels name, or a cluster.
//!
//! Everything else asks [`Topology::serving`] for the server of a key before each command, and says [`Topology::doubt`] when the
//! answer was an error that may mean that another server serves it now. The next question then asks the sentinels or the cluster
//! afresh. So a failed primary, a replica's promotion and slots on the move are outages like others: tried again, with growing
//! pauses, until the map is right.
//!
//! The `redis` crate's own cluster client does not serve here: it takes no pipeline over several slots, tries again inside without
//! a word, and does not tell where the reader's own connection should go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo as _, Value};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rand::seq::SliceRandom as _;

use super::RedisError;
use super::wire::Server;
use crate::config::{self, RedisAddress, Secret};
use crate::tls::Tls;

/// Connections to one server for everything that does not block. They are multiplexed, so a few serve all lanes.
const POOL_SIZE: usize = 4;
/// Nodes of a cluster that are asked for the map at the same time; one of them answers.
const ASKED_AT_ONCE: usize = 3;
/// A map that is younger is asked for again only when a server itself says that it is wrong: many lanes fail at the same time,
/// and one question is enough for all of them.
const MAP_AGE_MIN: Duration = Duration::from_millis(100);

/// One server: where it is, and pooled connections to it.
pub(super) struct Node {
    /// `host:port`.
    pub(super) name: String,
    pub(super) server: Server,
    pool: deadpool_redis::Pool,
}

impl Node {
    /// A pooled connection; its answers have the configured deadline.
    pub(super) async fn connection(&self) -> Result<deadpool_redis::Connection, RedisError> {
        self.pool.get().await.map_err(|error| match error {
            deadpool_redis::PoolError::Backend(error) => RedisError::from(&error),
            deadpool_redis::PoolError::Timeout(_) => RedisError::Unreachable("no connection within the timeout".to_owned()),
            deadpool_redis::PoolError::Closed
            | deadpool_redis::PoolError::NoRuntimeSpecified
            | deadpool_redis::PoolError::PostCreateHook(_) => RedisError::Unexpected(error.to_string()),
        })
    }

    /// Runs one command.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &::redis::Cmd) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        command.query_async(&mut connection).await.map_err(|error| RedisError::from(&error))
    }

    /// Runs a pipeline.
    pub(super) async fn pipeline<T: FromRedisValue>(&self, commands: &::redis::Pipeline) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        commands.query_async(&mut connection).await.map_err(|error| RedisError::from(&error))
    }
}

/// Which server serves which slots, as it was told at one moment.
pub(super) struct Map {
    pub(super) nodes: Vec<Arc<Node>>,
    /// First slot, last slot, and which of the nodes, in the order of slots.
    ranges: Vec<(u16, u16, usize)>,
    since: Instant,
}

impl Map {
    fn of_one(node: Arc<Node>) -> Self {
        Self { nodes: vec![node], ranges: vec![(0, SLOTS - 1, 0)], since: Instant::now() }
    }

    fn node(&self, key: &str) -> Result<&Arc<Node>, RedisError> {
        if let [node] = self.nodes.as_slice() {
            return Ok(node);
        }
        let slot = slot(key.as_bytes());
        let at = self.ranges.partition_point(|(_, last, _)| *last < slot);
        let range = self.ranges.get(at).filter(|(first, ..)| *first <= slot);
        range.map(|(.., node)| &self.nodes[*node]).ok_or_else(|| RedisError::Unavailable(format!("no node serves slot {slot}")))
    }
}

/// The server of a key, and the map that says so.
#[derive(Clone)]
pub struct Place {
    pub(super) node: Arc<Node>,
    map: Arc<Map>,
}

impl Place {
    /// Host and port of the server.
    pub fn server(&self) -> &str {
        &self.node.name
    }

    /// Whether both are the same server.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.node, &other.node)
    }
}

/// How to talk to a server of this installation, whichever it is.
struct Manner {
    /// Credentials, database and settings of TCP; its host is another.
    pattern: ConnectionInfo,
    tls: Tls,
    timeout: Duration,
}

impl Manner {
    fn new(address: &Secret, config: &config::Redis) -> Result<Self, RedisError> {
        let info = address.expose().into_connection_info().map_err(|error| RedisError::from(&error))?;
        // Without it a pipeline of small commands waits for the peer's delayed acknowledgement.
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let pattern = info.set_tcp_settings(tcp);
        Ok(Self { pattern, tls: config.tls.clone(), timeout: config.timeout })
    }

    fn place(&self) -> Result<(String, u16), RedisError> {
        match self.pattern.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Ok((host.clone(), *port)),
            _ => Err(RedisError::Unexpected("a unix socket, which is not supported".to_owned())),
        }
    }

    fn info(&self, host: &str, port: u16) -> Result<ConnectionInfo, RedisError> {
        let host = host.to_owned();
        let ConnectionAddr::TcpTls { insecure, .. } = self.pattern.addr() else {
            return Ok(self.pattern.clone().set_addr(ConnectionAddr::Tcp(host, port)));
        };
        let address = ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: None };
        let client = ::redis::Client::build_with_tls(self.pattern.clone().set_addr(address), self.tls.for_redis());
        Ok(client.map_err(|error| RedisError::from(&error))?.get_connection_info().clone())
    }

    fn node(&self, host: &str, port: u16) -> Result<Node, RedisError> {
        let info = self.info(host, port)?;
        let manager =
            deadpool_redis::Manager::new_with_config(info.clone(), self.deadlines()).map_err(|error| RedisError::from(&error))?;
        let pool = deadpool_redis::Pool::builder(manager)
            .max_size(POOL_SIZE)
            .wait_timeout(Some(self.timeout))
            .create_timeout(Some(self.timeout))
            .recycle_timeout(Some(self.timeout))
            .runtime(deadpool_redis::Runtime::Tokio1)
            .build()
            .map_err(|error| RedisError::Unexpected(error.to_string()))?;
        Ok(Node { name: format!("{host}:{port}"), server: Server::new(info, &self.tls), pool })
    }

    fn deadlines(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new().set_connection_timeout(Some(self.timeout)).set_response_timeout(Some(self.timeout))
    }

    /// Asks one question on a connection that is made for it.
    async fn ask(&self, host: &str, port: u16, command: &::redis::Cmd) -> Result<Value, RedisError> {
        let client = ::redis::Client::open(self.info(host, port)?).map_err(|error| RedisError::from(&error))?;
        let deadlines = self.deadlines();
        let connecting = client.get_multiplexed_async_connection_with_config(&deadlines);
        let mut connection = connecting.await.map_err(|error| RedisError::from(&error))?;
        command.query_async(&mut connection).await.map_err(|error| RedisError::from(&error))
    }
}

/// Where the map comes from.
enum Source {
    /// There is one server, and it stays where it is.
    Fixed,
    /// The cluster itself, through the nodes that are known and these.
    Cluster(Vec<(String, u16)>),
    /// The sentinels.
    Sentinels { sentinels: Vec<Manner>, master: String },
}

#[derive(Default)]
struct Known {
    /// `None`: it has to be asked for.
    map: Option<Arc<Map>>,
    /// Of the last map, for their pools and to ask them again.
    nodes: Vec<Arc<Node>>,
    /// The last question in vain: who waited for its outcome does not ask once more.
    failed: Option<(Instant, RedisError)>,
}

/// The servers of one installation, and which of them serves a key.
pub(super) struct Topology {
    source: Source,
    manner: Manner,
    known: Mutex<Known>,
    asking: tokio::sync::Mutex<()>,
}

impl Topology {
    /// Prepares; no connection is opened yet.
    ///
    /// # Errors
    /// The address is unusable.
    pub(super) fn new(config: &config::Redis) -> Result<Self, RedisError> {
        let mut known = Known::default();
        let (manner, source) = match &config.address {
            RedisAddress::One(address) => {
                let manner = Manner::new(address, config)?;
                let (host, port) = manner.place()?;
                known.map = Some(Arc::new(Map::of_one(Arc::new(manner.node(&host, port)?))));
                (manner, Source::Fixed)
            }
            RedisAddress::Cluster(nodes) => {
                let manners = nodes.iter().map(|node| Manner::new(node, config)).collect::<Result<Vec<_>, _>>()?;
                let seeds = manners.iter().map(Manner::place).collect::<Result<Vec<_>, _>>()?;
                let first = manners.into_iter().next();
                (first.ok_or_else(|| RedisError::Unexpected("an address without nodes".to_owned()))?, Source::Cluster(seeds))
            }
            RedisAddress::Sentinel { sentinels, master, server } => {
                let sentinels = sentinels.iter().map(|address| Manner::new(address, config)).collect::<Result<Vec<_>, _>>()?;
                (Manner::new(server, config)?, Source::Sentinels { sentinels, master: master.clone() })
            }
        };
        Ok(Self { source, manner, known: Mutex::new(known), asking: tokio::sync::Mutex::default() })
    }

    /// Whether keys are spread over several servers.
    pub(super) const fn is_cluster(&self) -> bool {
        matches!(self.source, Source::Cluster(_))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic while the lock is held leaves a map that is still whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server of a key.
    ///
    /// # Errors
    /// Nobody could be asked, or no server serves it now.
    pub(super) async fn serving(&self, key: &str) -> Result<Place, RedisError> {
        let map = self.map().await?;
        match map.node(key) {
            Ok(node) => Ok(Place { node: Arc::clone(node), map: Arc::clone(&map) }),
            Err(error) => {
                self.forget(&map, &error);
                Err(error)
            }
        }
    }

    /// Takes note of an error that a server of this map gave.
    pub(super) fn doubt(&self, place: &Place, error: &RedisError) {
        self.forget(&place.map, error);
    }

    pub(super) fn forget(&self, map: &Arc<Map>, error: &RedisError) {
        let due = match error {
            RedisError::Moved(_) => true,
            RedisError::Unreachable(_) | RedisError::Unavailable(_) => map.since.elapsed() >= MAP_AGE_MIN,
            RedisError::Refused(_)
            | RedisError::NoGroup(_)
            | RedisError::WrongType(_)
            | RedisError::NoScript
            | RedisError::Unexpected(_) => false,
        };
        if due && !matches!(self.source, Source::Fixed) {
            let mut known = self.known();
            // Somebody else's newer map is not in doubt.
            known.map.take_if(|known| Arc::ptr_eq(known, map));
        }
    }

    /// The map: the one that is known, or a new one.
    pub(super) async fn map(&self) -> Result<Arc<Map>, RedisError> {
        let began = Instant::now();
        if let Some(map) = &self.known().map {
            return Ok(Arc::clone(map));
        }
        let _turn = self.asking.lock().await;
        let nodes = {
            let known = self.known();
            match (&known.map, &known.failed) {
                (Some(map), _) => return Ok(Arc::clone(map)),
                (None, Some((at, error))) if *at >= began => return Err(error.clone()),
                (None, _) => known.nodes.clone(),
            }
        };
        let found = match &self.source {
            Source::Fixed => Err(RedisError::Unexpected("the one server was forgotten".to_owned())),
            Source::Cluster(seeds) => self.ask_cluster(seeds, &nodes).await,
            Source::Sentinels { sentinels, master } => self.ask_sentinels(sentinels, master, &nodes).await,
        };
        let mut known = self.known();
        match found {
            Ok(map) => {
                let map = Arc::new(map);
                known.nodes.clone_from(&map.nodes);
                known.map = Some(Arc::clone(&map));
                Ok(map)
            }
            Err(error) => {
                known.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// The node of that name with the connections that it has already, or a new one.
    fn node(&self, nodes: &[Arc<Node>], host: &str, port: u16) -> Result<Arc<Node>, RedisError> {
        let name = format!("{host}:{port}");
        match nodes.iter().find(|node| node.name == name) {
            Some(node) => Ok(Arc::clone(node)),
            None => Ok(Arc::new(self.manner.node(host, port)?)),
        }
    }

    async fn ask_cluster(&self, seeds: &[(String, u16)], nodes: &[Arc<Node>]) -> Result<Map, RedisError> {
        let mut places: Vec<(String, u16)> = nodes.iter().filter_map(|node| node.server.place()).collect();
        places.extend(seeds.iter().filter(|seed| !places.contains(seed)).cloned().collect::<Vec<_>>());
        // Not always the same one, which may be the one that is cut off from the others.
        places.shuffle(&mut rand::rng());
        let mut command = ::redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let mut refused = None;
        for places in places.chunks(ASKED_AT_ONCE) {
            let mut asked: FuturesUnordered<_> = (places.iter())
                .map(async |(host, port)| {
                    let reply = self.manner.ask(host, *port, &command).await?;
                    slots(reply, host)
                })
                .collect();
            while let Some(answer) = asked.next().await {
                match answer {
                    Ok(slots) => return self.map_of(slots, nodes),
                    // A wrong password says more than a node that is away.
                    Err(error) => match refused {
                        Some(RedisError::Refused(_)) => {}
                        _ => refused = Some(error),
                    },
                }
            }
        }
        Err(refused.unwrap_or_else(|| RedisError::Unexpected("an address without nodes".to_owned())))
    }

    fn map_of(&self, slots: Vec<Slots>, nodes: &[Arc<Node>]) -> Result<Map, RedisError> {
        let mut map = Map { nodes: Vec::new(), ranges: Vec::new(), since: Instant::now() };
        for Slots { first, last, host, port } in slots {
            let node = self.node(nodes, &host, port)?;
            let at = map.nodes.iter().position(|known| known.name == node.name).unwrap_or_else(|| {
                map.nodes.push(node);
                map.nodes.len() - 1
            });
            map.ranges.push((first, last, at));
        }
        map.ranges.sort_unstable();
        Ok(map)
    }

    async fn ask_sentinels(&self, sentinels: &[Manner], master: &str, nodes: &[Arc<Node>]) -> Result<Map, RedisError> {
        let mut command = ::redis::cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let mut asked: FuturesUnordered<_> = (sentinels.iter())
            .map(async |sentinel| {
                let (host, port) = sentinel.place()?;
                let reply = sentinel.ask(&host, port, &command).await?;
                Ok::<_, RedisError>(::redis::from_redis_value::<Option<(String, u16)>>(reply).ok().flatten())
            })
            .collect();
        // One that lags behind a failover is outvoted.
        let mut votes: HashMap<(String, u16), usize> = HashMap::new();
        let mut trouble = RedisError::Unavailable(format!("no sentinel knows a server named {master}"));
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(Some(place)) => {
                    let votes = votes.entry(place).or_default();
                    *votes += 1;
                    if *votes * 2 > sentinels.len() {
                        break;
                    }
                }
                Ok(None) => {}
                Err(error) => trouble = of_sentinels(error),
            }
        }
        drop(asked);
        let (host, port) = elected(votes).unwrap_or(Err(trouble))?;
        // Sentinels name the old one until the new one is agreed upon; what it is, it knows itself.
        let role: Vec<Value> = ::redis::from_redis_value(self.manner.ask(&host, port, &::redis::cmd("ROLE")).await?)
            .map_err(|_| RedisError::Unexpected("an answer to ROLE that is none".to_owned()))?;
        let role = role.into_iter().next().and_then(|role| ::redis::from_redis_value::<String>(role).ok()).unwrap_or_default();
        if role != "master" {
            return Err(RedisError::Unavailable(format!("{host}:{port} is named by the sentinels and is a {role}")));
        }
        Ok(Map::of_one(self.node(nodes, &host, port)?))
    }

    /// A connection to a server that nobody shares, with its own deadline for answers.
    pub(super) async fn own_connection(&self, node: &Node, answers: Duration) -> Result<MultiplexedConnection, RedisError> {
        let client = ::redis::Client::open(node.server.address.clone()).map_err(|error| RedisError::from(&error))?;
        let deadlines = self.manner.deadlines().set_response_timeout(Some(answers));
        client.get_multiplexed_async_connection_with_config(&deadlines).await.map_err(|error| RedisError::from(&error))
    }
}

/// The server that most sentinels name; `None` when none of them names one.
fn elected(votes: HashMap<(String, u16), usize>) -> Option<Result<(String, u16), RedisError>> {
    let most = votes.values().max().copied()?;
    let mut named: Vec<_> = votes.into_iter().filter(|(_, votes)| *votes == most).map(|(place, _)| place).collect();
    let place = named.pop()?;
    // The old primary may be back and believe to be one still: what it would be told now is lost when it learns better.
    Some(if named.is_empty() {
        Ok(place)
    } else {
        Err(RedisError::Unavailable("the sentinels do not agree yet on which server is the primary".to_owned()))
    })
}

/// Tells whose error it is: an operator would look at the server otherwise.
fn of_sentinels(error: RedisError) -> RedisError {
    match error {
        RedisError::Unreachable(text) => RedisError::Unreachable(format!("of the sentinels: {text}")),
        RedisError::Unavailable(text) => RedisError::Unavailable(format!("of the sentinels: {text}")),
        other => other,
    }
}

/// Slots and their primary.
#[derive(Debug, PartialEq, Eq)]
struct Slots {
    first: u16,
    last: u16,
    host: String,
    port: u16,
}

/// Reads the reply of CLUSTER SLOTS; `asked` is the host that gave it, which an empty address stands for.
fn slots(reply: Value, asked: &str) -> Result<Vec<Slots>, RedisError> {
    let unexpected = || RedisError::Unexpected("an answer to CLUSTER SLOTS that is none".to_owned());
    let rows: Vec<Vec<Value>> = ::redis::from_redis_value(reply).map_err(|_| unexpected())?;
    let mut all = Vec::with_capacity(rows.len());
    for row in rows {
        let mut row = row.into_iter();
        let (Some(first), Some(last), Some(primary)) = (row.next(), row.next(), row.next()) else { return Err(unexpected()) };
        let number = |value: Value| ::redis::from_redis_value::<u16>(value).map_err(|_| unexpected());
        let primary: Vec<Value> = ::redis::from_redis_value(primary).map_err(|_| unexpected())?;
        let mut primary = primary.into_iter();
        let (Some(host), Some(port)) = (primary.next(), primary.next()) else { return Err(unexpected()) };
        let host: Option<String> = ::redis::from_redis_value(host).map_err(|_| unexpected())?;
        let host = match host.as_deref() {
            None | Some("") => asked.to_owned(),
            Some("?") => {
                return Err(RedisError::Unavailable("a node of the cluster does not know its own host name yet".to_owned()));
            }
            Some(host) => host.to_owned(),
        };
        all.push(Slots { first: number(first)?, last: number(last)?, host, port: number(port)? });
    }
    if all.is_empty() {
        return Err(RedisError::Unavailable("the cluster serves no slot yet".to_owned()));
    }
    Ok(all)
}

/// Slots of a cluster.
const SLOTS: u16 = 16_384;

/// The slot of a key, as the Redis Cluster specification has it: CRC-16/XMODEM of the first `{…}` that is not empty, else of all.
fn slot(key: &[u8]) -> u16 {
    let tagged = memchr::memchr(b'{', key).and_then(|open| {
        let rest = &key[open + 1..];
        memchr::memchr(b'}', rest).filter(|len| *len > 0).map(|len| &rest[..len])
    });
    let crc = tagged.unwrap_or(key).iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 })
    });
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot(b"123456789"), 0x31C3);
        assert_eq!(slot(b"foo"), 12182);
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_eq!(slot(b"foo{}{bar}"), 8363);
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_eq!(slot(b"aegis:interactions:{3}"), slot(b"aegis:interactions:{3}:dead"));
    }

    #[test]
    fn who_most_sentinels_name_is_the_primary_and_a_tie_is_waited_out() {
        let (old, new) = (("10.0.0.1".to_owned(), 6379), ("10.0.0.2".to_owned(), 6379));
        assert_eq!(elected(HashMap::new()), None);
        assert_eq!(elected(HashMap::from([(old.clone(), 1), (new.clone(), 2)])), Some(Ok(new.clone())));
        let tie = elected(HashMap::from([(old, 1), (new, 1)]));
        assert!(matches!(tie, Some(Err(RedisError::Unavailable(_)))), "{tie:?}");
    }

    #[test]
    fn the_map_of_a_cluster_is_read_with_and_without_addresses() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let node = |host: Value, port| Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(vec![])]);
        let row = |first, last, nodes: Vec<Value>| Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat());
        let reply = Value::Array(vec![
            row(0, 99, vec![node(text("10.0.0.1"), 7000), node(text("10.0.0.2"), 7001)]),
            row(100, 16383, vec![node(Value::Nil, 7002)]),
        ]);
        let wanted = [
            Slots { first: 0, last: 99, host: "10.0.0.1".to_owned(), port: 7000 },
            Slots { first: 100, last: 16383, host: "asked".to_owned(), port: 7002 },
        ];
        assert_eq!(slots(reply, "asked").unwrap(), wanted);
        assert!(matches!(slots(Value::Array(vec![]), "asked"), Err(RedisError::Unavailable(_))));
        assert!(matches!(slots(Value::Okay, "asked"), Err(RedisError::Unexpected(_))));
    }
}

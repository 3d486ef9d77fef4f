//! The table of settings.

/// One variable of the environment; its flag is the name without `AEGIS_`, in lower case, with dashes.
#[derive(Debug)]
pub struct Setting {
    /// The variable.
    pub name: &'static str,
    /// What holds when it is unset.
    pub default: Option<&'static str>,
    /// Never shown, and also read from the file that `<name>_FILE` names.
    pub secret: bool,
    /// What it is, for help texts.
    pub help: &'static str,
    /// Why the default is what it is; empty where it is a matter of deployment.
    pub why: &'static str,
}

impl Setting {
    /// The flag that wins over the variable.
    pub fn flag(&self) -> String {
        self.name.trim_start_matches("AEGIS_").to_lowercase().replace('_', "-")
    }
}

/// Every setting, in the order in which people meet them.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "AEGIS_REDIS_URL",
        default: Some("redis://127.0.0.1:6379"),
        secret: true,
        help: "Redis with the streams, user and password in the address; redis+cluster://n1:p1,n2:p2 for a cluster, redis+sentinel://s1:p1,s2:p2/NAME behind sentinels, rediss for TLS",
        why: "",
    },
    Setting {
        name: "AEGIS_DATABASE_URL",
        default: Some("postgres://aegis:aegis@127.0.0.1:5432/aegis"),
        secret: true,
        help: "PostgreSQL with TimescaleDB; sslmode, sslrootcert, sslcert, sslkey as in libpq; the direct port, not a transaction-mode pooler",
        why: "",
    },
    Setting {
        name: "AEGIS_CHROMA_URL",
        default: Some("http://127.0.0.1:8000"),
        secret: false,
        help: "Chroma's base address",
        why: "",
    },
    Setting {
        name: "AEGIS_CHROMA_TOKEN",
        default: None,
        secret: true,
        help: "Sent to Chroma as x-chroma-token, for the proxy in front of it",
        why: "",
    },
    Setting {
        name: "AEGIS_TLS_CA_FILE",
        default: None,
        secret: false,
        help: "PEM file with the authorities that sign the certificates of Redis, PostgreSQL and Chroma, in place of the system's",
        why: "In place of, not beside: whoever names their own authority does not mean that any public one may vouch for the server too.",
    },
    Setting {
        name: "AEGIS_TLS_CERT_FILE",
        default: None,
        secret: false,
        help: "PEM file with the client certificate, for a server that wants one; with AEGIS_TLS_KEY_FILE",
        why: "",
    },
    Setting {
        name: "AEGIS_TLS_KEY_FILE",
        default: None,
        secret: false,
        help: "PEM file with the key of the client certificate, not encrypted",
        why: "",
    },
    Setting {
        name: "AEGIS_CHROMA_COLLECTION",
        default: Some("interactions"),
        secret: false,
        help: "Collection of vectors that name none",
        why: "",
    },
    Setting {
        name: "AEGIS_CHROMA_SPACE",
        default: Some("cosine"),
        secret: false,
        help: "Distance of collections that the worker creates: cosine, l2 or ip",
        why: "",
    },
    Setting {
        name: "AEGIS_HTTP_ADDR",
        default: Some("127.0.0.1:9464"),
        secret: false,
        help: "Where /healthz, /readyz and /metrics listen",
        why: "",
    },
    Setting {
        name: "AEGIS_API_KEYS",
        default: None,
        secret: true,
        help: "Keys for /metrics and the body of /readyz, comma-separated, several at once for rotation",
        why: "",
    },
    Setting {
        name: "AEGIS_LANES",
        default: Some("interactions,sessions,embeddings"),
        secret: false,
        help: "Lanes that this worker serves; archive beside them keeps every vector in embedding_log",
        why: "archive is not among the default ones: it takes as much room again as the vectors, for teams that cannot make them anew.",
    },
    Setting { name: "AEGIS_KEY_PREFIX", default: Some("aegis"), secret: false, help: "Prefix of every Redis key", why: "" },
    Setting { name: "AEGIS_GROUP", default: Some("aegis"), secret: false, help: "Consumer group", why: "" },
    Setting {
        name: "AEGIS_CONSUMER",
        default: None,
        secret: false,
        help: "This worker's name in the group; unset: host name and a random suffix",
        why: "",
    },
    Setting {
        name: "AEGIS_PARTITIONS",
        default: Some("1"),
        secret: false,
        help: "Streams a lane, 1 to 1024; the same for every producer and worker",
        why: "One Redis core gives some 300,000 entries a second; partitions spread them over a cluster.",
    },
    Setting {
        name: "AEGIS_CLAIM_IDLE",
        default: Some("30s"),
        secret: false,
        help: "Idle time after which another worker's pending entry is taken over",
        why: "A worker renews what it holds each third of it, so that only the dead lose entries.",
    },
    Setting {
        name: "AEGIS_DRAIN_TIMEOUT",
        default: Some("20s"),
        secret: false,
        help: "On SIGTERM or SIGINT: time to write and acknowledge what is in hand",
        why: "Below the 30 s of grace that orchestrators give by default.",
    },
    Setting {
        name: "AEGIS_MAX_DELIVERIES",
        default: Some("10"),
        secret: false,
        help: "Deliveries of one entry after which it is set aside; from half of it on the entry is written alone",
        why: "An innocent entry is delivered again by every crash around it; ten crashes in a row around one entry are its own doing.",
    },
    Setting {
        name: "AEGIS_DEAD_MAX",
        default: Some("100000"),
        secret: false,
        help: "Dead letters kept a stream; past it the oldest goes, with a warning and a count",
        why: "At a kilobyte each that is 100 MB of Redis a stream.",
    },
    Setting {
        name: "AEGIS_RETAIN",
        default: Some("10m"),
        secret: false,
        help: "Age from which entries that every consumer group has settled are trimmed; 0s: at once, or never",
        why: "Long enough to read the last minutes again with a group of one's own, short enough that 10,000 events a second stay below 6 GB of Redis.",
    },
    Setting {
        name: "AEGIS_MAX_EVENT_AGE",
        default: Some("365d"),
        secret: false,
        help: "Oldest occurred_at that is taken",
        why: "A broken clock must not litter the hypertable with chunks.",
    },
    Setting {
        name: "AEGIS_MAX_CLOCK_SKEW",
        default: Some("1h"),
        secret: false,
        help: "How far ahead of the worker's clock occurred_at may be",
        why: "",
    },
    Setting {
        name: "AEGIS_MAX_ENTRY_BYTES",
        default: Some("1048576"),
        secret: false,
        help: "Longest payload of one stream entry, bytes",
        why: "Redis takes 512 MiB; one such entry must not be the worker's memory.",
    },
    Setting {
        name: "AEGIS_SESSION_TTL",
        default: Some("24h"),
        secret: false,
        help: "Life of a session's hash past its last update",
        why: "",
    },
    Setting {
        name: "AEGIS_SESSION_ENDED_TTL",
        default: Some("1h"),
        secret: false,
        help: "Life of a session's hash once the session has ended",
        why: "",
    },
    Setting {
        name: "AEGIS_BATCH_ROWS",
        default: Some("10000"),
        secret: false,
        help: "Most events a batch",
        why: "A COPY's fixed cost (a round trip, a commit, an fsync) is a twentieth of the time of 10,000 rows, and updates of one session fold further; beyond that only memory and freshness are spent.",
    },
    Setting {
        name: "AEGIS_BATCH_BYTES",
        default: Some("2097152"),
        secret: false,
        help: "Most payload bytes a batch",
        why: "With three writers, one batch gathering and one being read, three lanes stay below 64 MiB.",
    },
    Setting {
        name: "AEGIS_BATCH_AGE",
        default: Some("100ms"),
        secret: false,
        help: "How long a batch waits for the connection in use before another one is taken",
        why: "Longer than a write takes on a healthy disk, so that one connection serves live traffic and a backlog of sessions gathers in full batches; short enough that a connection that hangs does not hold up what comes behind it.",
    },
    Setting {
        name: "AEGIS_BATCH_VECTORS",
        default: Some("500"),
        secret: false,
        help: "Most vectors a request to Chroma",
        why: "Chroma takes 300 to 1,000 vectors a request best; 500 of 1,536 dimensions are 4 MiB on the wire.",
    },
    Setting {
        name: "AEGIS_WRITERS",
        default: Some("3"),
        secret: false,
        help: "Most batches of one lane written at once, each on a connection of its own",
        why: "Two backends copying keep two cores busy and the third hides the commit; more only contend for the same index pages.",
    },
    Setting {
        name: "AEGIS_REDIS_TIMEOUT",
        default: Some("5s"),
        secret: false,
        help: "Deadline of a connection to Redis and of each answer",
        why: "Redis answers in microseconds; past seconds the connection is gone.",
    },
    Setting {
        name: "AEGIS_DATABASE_CONNECT_TIMEOUT",
        default: Some("5s"),
        secret: false,
        help: "Deadline of a connection to PostgreSQL",
        why: "",
    },
    Setting {
        name: "AEGIS_DATABASE_WRITE_TIMEOUT",
        default: Some("60s"),
        secret: false,
        help: "Deadline of one write: COPY, merge and commit",
        why: "statement_timeout does not end a COPY that streams; this does.",
    },
    Setting {
        name: "AEGIS_CHROMA_TIMEOUT",
        default: Some("60s"),
        secret: false,
        help: "Deadline of one request to Chroma",
        why: "",
    },
    Setting {
        name: "AEGIS_MIGRATE_ON_START",
        default: Some("true"),
        secret: false,
        help: "Whether run brings the schema up to date first",
        why: "",
    },
    Setting {
        name: "AEGIS_CHUNK_INTERVAL",
        default: Some("1d"),
        secret: false,
        help: "Time that one chunk of a hypertable spans, 1h to 365d; for chunks to come",
        why: "At 100 million events a day the newest chunk's index, 5 GB, stays in memory; retention drops whole chunks, so a smaller one is more exact and more of them cost more planning.",
    },
    Setting {
        name: "AEGIS_RETENTION",
        default: Some("never"),
        secret: false,
        help: "Age at which rows of the hypertables are dropped, in whole chunks; not below AEGIS_MAX_EVENT_AGE",
        why: "Nobody's data go unless somebody said so.",
    },
    Setting {
        name: "AEGIS_COLUMNSTORE_AFTER",
        default: Some("never"),
        secret: false,
        help: "Age at which chunks go to the columnstore, which the Timescale edition has; below AEGIS_RETENTION",
        why: "It saves nine tenths of the disk and makes late events dearer: how late yours are decides, and a week is a fair start.",
    },
    Setting {
        name: "AEGIS_AGGREGATES",
        default: Some("false"),
        secret: false,
        help: "Whether there are interactions_per_minute and sessions_per_minute: continuous aggregates, plain views on the Apache edition",
        why: "A continuous aggregate costs each insert a trigger and the server a job a minute: asked for, not given.",
    },
    Setting {
        name: "AEGIS_LOG",
        default: Some("info"),
        secret: false,
        help: "Log filter: a level, or levels by module",
        why: "",
    },
    Setting { name: "AEGIS_LOG_FORMAT", default: Some("json"), secret: false, help: "json, or pretty for a terminal", why: "" },
];

/// The setting of that name.
pub(super) fn find(name: &str) -> &'static Setting {
    let found = SETTINGS.iter().find(|setting| setting.name == name);
    found.unwrap_or_else(|| unreachable!("{name} is missing in the table of settings"))
}

/// Whether the name is a setting, or the file of a secret one.
pub(super) fn knows(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.name == name || (setting.secret && name.strip_suffix("_FILE") == Some(setting.name)))
}

/// The setting that a misspelt name most likely meant.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let (distance, nearest) = SETTINGS.iter().map(|setting| (distance(name, setting.name), setting.name)).min()?;
    (distance <= 3).then_some(nearest)
}

/// Levenshtein distance, by the two-row method of Wagner and Fischer (1974).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

//! The lanes, and the streams in Redis that they read.

use std::fmt;
use std::str::FromStr;

/// Where interactions, session updates and vectors come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Turns of voice interactions, to `interaction_logs`.
    Interactions,
    /// Session updates, to `session_events`, `sessions` and the Redis hash.
    Sessions,
    /// Vectors, to Chroma.
    Embeddings,
    /// The same vectors out of the same streams, to `embedding_log`, from which a lost collection is rebuilt.
    Archive,
}

impl Lane {
    /// All lanes, in the order in which they are listed to people.
    pub const ALL: [Self; 4] = [Self::Interactions, Self::Sessions, Self::Embeddings, Self::Archive];
    /// Those with streams of their own: what producers write to.
    pub const PRODUCED: [Self; 3] = [Self::Interactions, Self::Sessions, Self::Embeddings];

    /// The name in stream keys, settings and metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interactions => "interactions",
            Self::Sessions => "sessions",
            Self::Embeddings => "embeddings",
            Self::Archive => "archive",
        }
    }

    /// The lane whose streams it reads, and whose dead letters are its own.
    #[must_use]
    pub const fn source(self) -> Self {
        match self {
            Self::Interactions | Self::Sessions | Self::Embeddings => self,
            Self::Archive => Self::Embeddings,
        }
    }

    /// Whether the lane writes to PostgreSQL (the others write to Chroma).
    pub const fn needs_database(self) -> bool {
        !matches!(self, Self::Embeddings)
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Lane {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|lane| lane.name() == text)
            .ok_or_else(|| "one of interactions, sessions, embeddings, archive".to_owned())
    }
}

/// Streams, group and naming in Redis.
#[derive(Clone, Debug)]
pub struct Streams {
    /// Prefix of every key.
    pub prefix: String,
    /// The consumer group.
    pub group: String,
    /// This worker's name in the group.
    pub consumer: String,
    /// Streams a lane; with 1 the stream has no hash tag.
    pub partitions: u16,
}

impl Streams {
    /// The stream of a lane and partition, as producers write it.
    pub fn key(&self, lane: Lane, partition: u16) -> String {
        let lane = lane.source();
        if self.partitions == 1 { format!("{}:{lane}", self.prefix) } else { format!("{}:{lane}:{{{partition}}}", self.prefix) }
    }

    /// The same streams as a lane reads them: through a group of its own where another lane reads them too, so that neither
    /// waits for the other's store.
    #[must_use]
    pub fn of(&self, lane: Lane) -> Self {
        match lane {
            Lane::Interactions | Lane::Sessions | Lane::Embeddings => self.clone(),
            Lane::Archive => Self { group: format!("{}-archive", self.group), ..self.clone() },
        }
    }

    /// All streams of a lane.
    pub fn keys(&self, lane: Lane) -> Vec<String> {
        (0..self.partitions).map(|partition| self.key(lane, partition)).collect()
    }

    /// Where the dead letters of a stream stand.
    pub fn dead(stream: &str) -> String {
        format!("{stream}:dead")
    }

    /// The hash that holds a session's state.
    pub fn session(&self, session_id: &str) -> String {
        format!("{}:session:{session_id}", self.prefix)
    }
}

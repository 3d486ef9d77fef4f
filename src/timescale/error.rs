//! The errors of the PostgreSQL edge, and the one table that says what to do about each.

use tokio_postgres::error::SqlState;

use crate::seam::{Answer, WriteError};
use crate::tls::{Refusal, mistrust};

/// What can go wrong between us and PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// No connection, a connection that broke, or no answer in time.
    #[error("PostgreSQL cannot be reached: {0}")]
    Unreachable(String),
    /// PostgreSQL is there and cannot serve now: starting, stopping, full, out of connections, a deadlock.
    #[error("PostgreSQL cannot serve now: {0}")]
    Unavailable(String),
    /// A wrong password, a role that may not do this, or a certificate that one side does not accept.
    #[error("{}", .0.of("PostgreSQL", "role"))]
    Refused(Refusal),
    /// A table, column or function is missing: the schema is not what this program needs.
    #[error("the schema does not fit: {0}; `aegis-ingest migrate` brings it up to date")]
    Schema(String),
    /// Rows with these keys exist.
    #[error("some rows are there already")]
    Duplicate,
    /// So many rows of the columnstore would have to be looked through that TimescaleDB's limit for one transaction forbids it.
    #[error("the rows lie among more compressed ones than one transaction may unpack")]
    Compressed,
    /// The rows themselves are refused.
    #[error("PostgreSQL refuses a row: {0}")]
    Data(String),
    /// A bug of ours.
    #[error("PostgreSQL does not understand this program: {0}")]
    Bug(String),
}

impl DatabaseError {
    /// The one answer to each error.
    pub const fn answer(&self) -> Answer {
        match self {
            Self::Unreachable(_) | Self::Unavailable(_) => Answer::Wait,
            // The way aside lifts the limit.
            Self::Compressed => Answer::Wait,
            // At start these end the program; in mid-flight somebody is changing roles or tables, and losing the worker would
            // not help.
            Self::Refused(_) | Self::Schema(_) => Answer::Wait,
            Self::Duplicate | Self::Data(_) => Answer::SetAside,
            Self::Bug(_) => Answer::Stop,
        }
    }

    /// The error as the lane sees it.
    pub(super) fn into_write_error(self) -> WriteError {
        match self.answer() {
            Answer::Wait => WriteError::Away(self.to_string()),
            // Destinations find the refused row themselves: one that gets here was not looked for.
            Answer::SetAside | Answer::Stop => WriteError::Bug(self.to_string()),
        }
    }
}

impl From<&tokio_postgres::Error> for DatabaseError {
    fn from(error: &tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            if let Some(reason) = mistrust(error) {
                return Self::Refused(Refusal::Tls(reason));
            }
            // The client's own words; it has no type for them.
            if std::error::Error::source(error).is_some_and(|cause| cause.to_string() == "server does not support TLS") {
                return Self::Refused(Refusal::Tls(
                    "the server offers none, and sslmode asks for it; turn ssl on there".to_owned(),
                ));
            }
            // Without a word from the server: the connection broke, was refused, or ended in mid-message.
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
            return if error.is_closed() || std::error::Error::source(error).is_some() {
                Self::Unreachable(format!("{error}{cause}"))
            } else {
                Self::Unreachable(error.to_string())
            };
        };
        let code = db.code();
        // The message alone: detail and hint quote rows, which hold what people said.
        let text = || match db.constraint() {
            Some(constraint) => format!("SQLSTATE {}, constraint {constraint}", code.code()),
            None => format!("SQLSTATE {}, {}", code.code(), harmless(code.code(), db.message())),
        };
        if *code == SqlState::UNIQUE_VIOLATION {
            return Self::Duplicate;
        }
        // TimescaleDB's timescaledb.max_tuples_decompressed_per_dml_transaction: of the same class as a full disk, and it would be
        // waited out for ever.
        if *code == SqlState::CONFIGURATION_LIMIT_EXCEEDED && db.message().contains("decompress") {
            return Self::Compressed;
        }
        match &code.code()[..2] {
            // connection exception; transaction rollback (deadlock, serialization); insufficient resources (disk full, too many
            // connections); lock not available; operator intervention (shutdown, crash, starting up); system error; internal
            // error; TimescaleDB's own; object not in prerequisite state. And the read-only transactions of a failover to a
            // standby.
            "08" | "40" | "53" | "55" | "57" | "58" | "XX" | "TS" | "F0" | "25" => Self::Unavailable(text()),
            "28" => Self::Refused(Refusal::User(text())),
            // data exception, integrity constraint violation; a limit that this row exceeds, such as that of an index which a team
            // added; a trigger's own refusal.
            "22" | "23" | "44" | "54" | "P0" => Self::Data(text()),
            "3D" | "3F" => Self::Schema(text()),
            "42" if *code == SqlState::INSUFFICIENT_PRIVILEGE => Self::Refused(Refusal::User(text())),
            "42" if matches!(code.code(), "42P01" | "42703" | "42883" | "42704") => Self::Schema(text()),
            _ => Self::Bug(text()),
        }
    }
}

/// Messages of classes 22, 23, 44 and P0 may quote a value; the others are the server's own words.
fn harmless<'a>(code: &str, message: &'a str) -> &'a str {
    match &code[..2] {
        "22" | "23" | "44" | "P0" => "a value is not acceptable",
        _ => message,
    }
}

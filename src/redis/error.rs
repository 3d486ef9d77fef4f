//! The errors of the Redis edge, and the one table that says what to do about each.

use crate::seam::Answer;
use crate::tls::{Refusal, mistrust};

/// What can go wrong between us and Redis.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisError {
    /// No connection, a connection that broke, or no answer in time.
    #[error("Redis cannot be reached: {0}")]
    Unreachable(String),
    /// Redis is there and cannot serve now: loading, failing over, out of memory, at its limit of clients.
    #[error("Redis cannot serve now: {0}")]
    Unavailable(String),
    /// Another server serves this key now: a slot was moved, or a primary was demoted.
    #[error("another Redis server serves this now ({0}); a cluster wants the address redis+cluster://")]
    Moved(String),
    /// A wrong password, a user that may not do this, or a certificate that one side does not accept.
    #[error("{}", .0.of("Redis", "user"))]
    Refused(Refusal),
    /// The stream or its group is gone.
    #[error("the consumer group is gone: {0}")]
    NoGroup(String),
    /// A key holds something else than it should.
    #[error("a key holds another type: {0}")]
    WrongType(String),
    /// A script that has to be sent again.
    #[error("the script is not loaded")]
    NoScript,
    /// An answer that this program does not understand: a bug of ours, or a server that is none.
    #[error("Redis gave an answer that was not expected: {0}")]
    Unexpected(String),
}

impl RedisError {
    /// The one answer to each error. There is no `SetAside`: Redis never refuses a single event.
    pub const fn answer(&self) -> Answer {
        match self {
            Self::Unreachable(_) | Self::Unavailable(_) => Answer::Wait,
            // Until the cluster or the sentinels tell where.
            Self::Moved(_) => Answer::Wait,
            // At start these end the program; in mid-flight somebody is changing passwords or keys, and losing the worker
            // would not help.
            Self::Refused(_) | Self::WrongType(_) => Answer::Wait,
            // The group is made again by the reader.
            Self::NoGroup(_) => Answer::Wait,
            Self::NoScript => Answer::Wait,
            Self::Unexpected(_) => Answer::Stop,
        }
    }

    /// The error of an `-ERR …` line.
    pub(super) fn from_line(line: &str) -> Self {
        let (code, detail) = line.split_once(' ').unwrap_or((line, ""));
        Self::from_code(code, detail)
    }

    fn from_code(code: &str, detail: &str) -> Self {
        let text = || format!("{code} {detail}").trim_end().chars().take(200).collect::<String>();
        match code {
            "MOVED" | "READONLY" => Self::Moved(text()),
            // ASK: a slot on its way; its keys are found again once it has arrived.
            "LOADING" | "CLUSTERDOWN" | "MASTERDOWN" | "TRYAGAIN" | "ASK" | "OOM" | "MISCONF" | "BUSY" | "NOREPLICAS"
            | "UNBLOCKED" | "EXECABORT" | "NOTREADY" => Self::Unavailable(text()),
            "NOGROUP" => Self::NoGroup(text()),
            "WRONGPASS" | "NOAUTH" | "NOPERM" => Self::Refused(Refusal::User(text())),
            "WRONGTYPE" => Self::WrongType(text()),
            "NOSCRIPT" => Self::NoScript,
            "ERR" if detail.contains("max number of clients") || detail.contains("max clients") => Self::Unavailable(text()),
            // What AUTH says to a password where none is set.
            "ERR" if detail.starts_with("AUTH") || detail.contains("without any password configured") => {
                Self::Refused(Refusal::User(text()))
            }
            // A script passes a failing command's error on inside its own.
            "ERR" if detail.contains("-OOM") || detail.contains("OOM command") => Self::Unavailable(text()),
            "ERR" if detail.contains("-READONLY") => Self::Moved(text()),
            _ => Self::Unexpected(text()),
        }
    }
}

impl From<&::redis::RedisError> for RedisError {
    fn from(error: &::redis::RedisError) -> Self {
        use ::redis::ErrorKind;
        if let Some(reason) = mistrust(error) {
            return Self::Refused(Refusal::Tls(reason));
        }
        if let Some(code) = error.code() {
            return Self::from_code(code, error.detail().unwrap_or_default());
        }
        match error.kind() {
            ErrorKind::AuthenticationFailed => Self::Refused(Refusal::User(error.to_string())),
            ErrorKind::InvalidClientConfig | ErrorKind::UnexpectedReturnType => Self::Unexpected(error.to_string()),
            // Everything without a code is the connection's doing: broken, refused, timed out, cut in mid-reply.
            _ => Self::Unreachable(error.to_string()),
        }
    }
}

impl From<std::io::Error> for RedisError {
    fn from(error: std::io::Error) -> Self {
        match mistrust(&error) {
            Some(reason) => Self::Refused(Refusal::Tls(reason)),
            None => Self::Unreachable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failover_is_waited_out_and_nonsense_stops() {
        for line in [
            "LOADING Redis is loading",
            "READONLY You can't write",
            "CLUSTERDOWN Hash slot",
            "MASTERDOWN Link",
            "OOM command",
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "TRYAGAIN Multiple keys request",
        ] {
            assert_eq!(RedisError::from_line(line).answer(), Answer::Wait, "{line}");
        }
        assert_eq!(RedisError::from_line("NOGROUP No such key"), RedisError::NoGroup("NOGROUP No such key".to_owned()));
        assert_eq!(RedisError::from_line("ERR unknown command").answer(), Answer::Stop);
    }
}

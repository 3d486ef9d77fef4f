//! Removing somebody's rows, in one transaction: as long as it is not committed, what is known of the person is still there, so that
//! a run that is killed before can begin again.

use std::collections::HashSet;

use tokio_postgres::{Client, Transaction};

use super::embedding_log::LOCK_KEY;
use super::session_tables::{SESSION_COLUMNS, whole_session};
use super::{DatabaseError, connect};
use crate::config;
use crate::event::SessionState;
use crate::event::subject::{Subject, Wanted};

/// Tries of the transaction: workers that merge the same sessions can make a circle of waiting, of which the server ends one.
const TRIES_MAX: u32 = 5;

/// What of a row in `embedding_log` is a person's ($1: the user; $2: sessions that are the user's alone).
const LOG_OF_USER: &str = "(metadata->>'user_id' = $1 OR user_id = $1
  OR (user_id IS NULL AND metadata->>'user_id' IS NULL AND coalesce(session_id, metadata->>'session_id') = ANY($2)))";
const LOG_OF_SESSION: &str = "((session_id = $1 OR metadata->>'session_id' = $1) AND $2::text[] IS NOT NULL)";
/// Sessions whose row came from the user: the status that counts, or the state map.
const SESSIONS_OF_USER: &str = "(user_id = $1 OR (session_id = ANY($2) AND state_event IN
  (SELECT event_id FROM session_events WHERE user_id = $1 AND session_id = ANY($2))))";
/// Folds what is left of sessions, as the worker would have.
const FOLD: &str = "
WITH given AS (SELECT * FROM session_events WHERE session_id = ANY($1)),
     last AS (SELECT DISTINCT ON (session_id) * FROM given ORDER BY session_id, seq DESC, occurred_at DESC, event_id DESC),
     stateful AS (SELECT DISTINCT ON (session_id) * FROM given WHERE state IS NOT NULL ORDER BY session_id, seq DESC, occurred_at DESC, event_id DESC),
     began AS (SELECT session_id, min(occurred_at) AS at FROM given GROUP BY session_id)
INSERT INTO sessions (session_id, user_id, status, seq, started_at, updated_at, ended_at, status_event, state, state_seq, state_at, state_event)
SELECT last.session_id, last.user_id, last.status, last.seq, began.at, last.occurred_at, CASE WHEN last.status = 'ended' THEN last.occurred_at END,
       last.event_id, stateful.state, stateful.seq, stateful.occurred_at, stateful.event_id
FROM last JOIN began USING (session_id) LEFT JOIN stateful USING (session_id)
ON CONFLICT (session_id) DO NOTHING";

/// Rows removed, or to be removed, by table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// `interaction_logs`
    pub interactions: u64,
    /// `session_events`
    pub session_events: u64,
    /// `sessions`
    pub sessions: u64,
    /// `embedding_log`
    pub embeddings: u64,
}

/// A connection that removes a person's rows. No rebuild runs beside it.
pub struct Eraser {
    client: Client,
    _connection: tokio::task::JoinHandle<()>,
    has_log: bool,
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` wants it")]
fn failed(error: tokio_postgres::Error) -> DatabaseError {
    DatabaseError::from(&error)
}

impl Eraser {
    /// Connects. `None`: a rebuild of embeddings or another erasure is under way.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn open(config: &config::Database) -> Result<Option<Self>, DatabaseError> {
        let (client, connection) = connect(config).await?;
        // No index serves a search by user, on purpose (see V1): it goes through every row.
        client.batch_execute("SET statement_timeout = 0").await.map_err(failed)?;
        let row = client
            .query_one("SELECT pg_try_advisory_lock($1), to_regclass('embedding_log') IS NOT NULL", &[&LOCK_KEY])
            .await
            .map_err(failed)?;
        Ok(row.get::<_, bool>(0).then(|| Self { client, _connection: connection, has_log: row.get(1) }))
    }

    /// Sessions in which the user took part.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn sessions_of(&self, user: &str) -> Result<HashSet<String>, DatabaseError> {
        let mut query = "SELECT session_id FROM interaction_logs WHERE user_id = $1 UNION SELECT session_id FROM session_events WHERE user_id = $1
                     UNION SELECT session_id FROM sessions WHERE user_id = $1"
            .to_owned();
        if self.has_log {
            query += " UNION SELECT coalesce(session_id, metadata->>'session_id') FROM embedding_log WHERE coalesce(user_id, metadata->>'user_id') = $1";
        }
        let rows = self.client.query(&query, &[&user]).await.map_err(failed)?;
        Ok(rows.iter().filter_map(|row| row.get::<_, Option<String>>(0)).collect())
    }

    /// Those of these sessions in which somebody else took part as well.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn shared(&self, user: &str, sessions: &HashSet<String>) -> Result<HashSet<String>, DatabaseError> {
        let sessions: Vec<_> = sessions.iter().collect();
        let mut query = "SELECT session_id FROM interaction_logs WHERE session_id = ANY($2) AND user_id <> $1
                     UNION SELECT session_id FROM session_events WHERE session_id = ANY($2) AND user_id <> $1
                     UNION SELECT session_id FROM sessions WHERE session_id = ANY($2) AND user_id <> $1"
            .to_owned();
        if self.has_log {
            query += " UNION SELECT coalesce(session_id, metadata->>'session_id') FROM embedding_log
                       WHERE coalesce(session_id, metadata->>'session_id') = ANY($2) AND coalesce(user_id, metadata->>'user_id') <> $1";
        }
        let rows = self.client.query(&query, &[&user, &sessions]).await.map_err(failed)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Records of Chroma that the archive knows as the subject's: collection and id.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn archived(&self, wanted: &Wanted) -> Result<Vec<(String, String)>, DatabaseError> {
        if !self.has_log {
            return Ok(Vec::new());
        }
        let of = Conditions::of(&wanted.subject).log;
        let query = format!("SELECT DISTINCT collection, id FROM embedding_log WHERE {of} ORDER BY 1, 2");
        let sessions: Vec<_> = wanted.sessions.iter().collect();
        let rows = self.client.query(&query, &[&wanted.subject.id(), &sessions]).await.map_err(failed)?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Those of these sessions whose row came from the subject.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn from_subject(&self, wanted: &Wanted, sessions: &HashSet<String>) -> Result<HashSet<String>, DatabaseError> {
        let query = format!("SELECT session_id FROM sessions WHERE {}", Conditions::of(&wanted.subject).sessions);
        let sessions: Vec<_> = sessions.iter().collect();
        let rows = self.client.query(&query, &[&wanted.subject.id(), &sessions]).await.map_err(failed)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Counts the subject's rows.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn count(&mut self, wanted: &Wanted, sessions: &HashSet<String>) -> Result<Rows, DatabaseError> {
        Ok(self.transact(wanted, sessions, false).await?.0)
    }

    /// Removes the subject's rows, and folds anew the sessions of which others' updates are left. Returns their ids as well.
    ///
    /// # Errors
    /// The database is away or refuses; nothing is removed then.
    pub async fn remove(
        &mut self,
        wanted: &Wanted,
        sessions: &HashSet<String>,
    ) -> Result<(Rows, HashSet<String>), DatabaseError> {
        let mut tries = 1;
        loop {
            match self.transact(wanted, sessions, true).await {
                Err(DatabaseError::Unavailable(_)) if tries < TRIES_MAX && !self.client.is_closed() => tries += 1,
                done => return done,
            }
        }
    }

    /// Deletes, or counts by the same conditions.
    async fn transact(
        &mut self,
        wanted: &Wanted,
        sessions: &HashSet<String>,
        act: bool,
    ) -> Result<(Rows, HashSet<String>), DatabaseError> {
        let of = Conditions::of(&wanted.subject);
        let (id, alone): (&str, Vec<_>) = (wanted.subject.id(), wanted.sessions.iter().collect());
        let all: Vec<_> = sessions.iter().collect();
        let has_log = self.has_log;
        let transaction = self.client.transaction().await.map_err(failed)?;
        let mut rows = Rows::default();
        // Rows in the columnstore are decompressed to be deleted, up to a limit that guards against doing so by mistake.
        let unlimited = "SELECT set_config(name, '0', true) FROM pg_settings WHERE name = 'timescaledb.max_tuples_decompressed_per_dml_transaction'";
        transaction.query(unlimited, &[]).await.map_err(failed)?;
        if !act {
            let count =
                async |table: &str, condition: &str, with: &[&String]| count(&transaction, table, condition, id, with).await;
            rows.interactions = count("interaction_logs", of.rows, &all).await?;
            rows.session_events = count("session_events", of.rows, &all).await?;
            rows.sessions = count("sessions", of.sessions, &all).await?;
            rows.embeddings = if has_log { count("embedding_log", of.log, &alone).await? } else { 0 };
            return Ok((rows, HashSet::new()));
        }
        let touched = transaction
            .query(&format!("DELETE FROM sessions WHERE {} RETURNING session_id", of.sessions), &[&id, &all])
            .await
            .map_err(failed)?;
        let touched: HashSet<String> = touched.iter().map(|row| row.get(0)).collect();
        rows.sessions = touched.len() as u64;
        let delete = async |table: &str, condition: &str, with: &[&String]| {
            let statement = format!("DELETE FROM {table} WHERE {condition}");
            transaction.execute(&statement, &[&id, &with]).await.map_err(failed)
        };
        rows.interactions = delete("interaction_logs", of.rows, &all).await?;
        rows.session_events = delete("session_events", of.rows, &all).await?;
        rows.embeddings = if has_log { delete("embedding_log", of.log, &alone).await? } else { 0 };
        let again: Vec<_> = touched.iter().collect();
        transaction.execute(FOLD, &[&again]).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok((rows, touched))
    }

    /// Sessions as the table has them now.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn sessions(&self, session_ids: &HashSet<String>) -> Result<Vec<SessionState>, DatabaseError> {
        let query = format!("SELECT {SESSION_COLUMNS} FROM sessions WHERE session_id = ANY($1)");
        let ids: Vec<_> = session_ids.iter().collect();
        let rows = self.client.query(&query, &[&ids]).await.map_err(failed)?;
        rows.iter().map(|row| whole_session(row).map_err(failed)).collect()
    }
}

async fn count(
    transaction: &Transaction<'_>,
    table: &str,
    condition: &str,
    id: &str,
    with: &[&String],
) -> Result<u64, DatabaseError> {
    let query = format!("SELECT count(*) FROM {table} WHERE {condition}");
    let row = transaction.query_one(&query, &[&id, &with]).await.map_err(failed)?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}

/// Which rows are a subject's; $1 is its id, $2 sessions.
struct Conditions {
    rows: &'static str,
    sessions: &'static str,
    log: &'static str,
}

impl Conditions {
    const fn of(subject: &Subject) -> Self {
        match subject {
            Subject::User(_) => {
                Self { rows: "user_id = $1 AND $2::text[] IS NOT NULL", sessions: SESSIONS_OF_USER, log: LOG_OF_USER }
            }
            Subject::Session(_) => Self {
                rows: "session_id = $1 AND $2::text[] IS NOT NULL",
                sessions: "session_id = $1 AND $2::text[] IS NOT NULL",
                log: LOG_OF_SESSION,
            },
        }
    }
}

//! The table of sessions out of the updates in `session_events`, a page at a time, while workers go on writing.
//!
//! Each page is folded and merged by the server in one statement. The merge is the workers' own: a register only ever goes to the
//! later version, so any number of pages, rebuilds and workers at once come to the same end.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::copy::attempt;
use super::frame::Micros;
use super::session_tables::{LATER, LATER_STATE, MERGE, SESSION_COLUMNS, whole_session};
use super::{Database, DatabaseError};
use crate::event::SessionState;

/// Updates a page: some ten milliseconds of the server, and rows of the table locked for no longer.
pub const PAGE_EVENTS: i64 = 5_000;
/// Sessions read at once for their hashes.
const PAGE_SESSIONS: i64 = 500;

const SPAN: &str = "SELECT min(occurred_at), max(occurred_at) FROM session_events WHERE occurred_at >= $1";
/// The first comparison lets TimescaleDB leave out chunks.
const PAGE: &str = "
WITH page AS MATERIALIZED (
  SELECT occurred_at, event_id, session_id, user_id, status, seq, state FROM session_events
  WHERE occurred_at >= $1 AND (occurred_at, event_id) > ($1, $2) AND occurred_at <= $3{only}
  ORDER BY occurred_at, event_id LIMIT $4
), folded AS (
  SELECT winner.session_id, user_id, status, seq, started_at, occurred_at, event_id, state, state_seq, state_at, state_event
  FROM (SELECT DISTINCT ON (session_id) session_id, user_id, status, seq, occurred_at, event_id FROM page
        ORDER BY session_id, seq DESC, occurred_at DESC, event_id DESC) winner
  JOIN (SELECT session_id, min(occurred_at) AS started_at FROM page GROUP BY session_id) first USING (session_id)
  LEFT JOIN (SELECT DISTINCT ON (session_id) session_id, state, seq AS state_seq, occurred_at AS state_at, event_id AS state_event
        FROM page WHERE state IS NOT NULL ORDER BY session_id, seq DESC, occurred_at DESC, event_id DESC) stateful USING (session_id)
), changed AS ({change})
SELECT (SELECT count(*) FROM page), (SELECT count(*) FROM changed), occurred_at, event_id
FROM page ORDER BY occurred_at DESC, event_id DESC LIMIT 1";
/// In the order of the ids, as workers do: two that merge the same sessions do not wait for each other in a circle.
const CHANGE: &str = "
  INSERT INTO sessions AS known (session_id, user_id, status, seq, started_at, updated_at, ended_at, status_event, state, state_seq, state_at, state_event)
  SELECT session_id, user_id, status, seq, started_at, occurred_at, CASE WHEN status = 'ended' THEN occurred_at END, event_id, state, state_seq, state_at, state_event
  FROM folded ORDER BY session_id
  {conflict} WHERE {news} RETURNING 1";
const WOULD_CHANGE: &str = "
  SELECT FROM (SELECT session_id, seq, started_at, occurred_at AS updated_at, event_id AS status_event, state_seq, state_at, state_event FROM folded) excluded
  LEFT JOIN sessions known USING (session_id) WHERE known.session_id IS NULL OR {news}";
const SESSIONS: &str = "
SELECT {columns}
FROM sessions WHERE session_id > $1 AND updated_at >= $2{only} ORDER BY session_id LIMIT $3";

/// Which updates and sessions are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only from this time on, Unix microseconds.
    pub since_us: Option<i64>,
    /// Only this session.
    pub session_id: Option<String>,
}

/// Where a page ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    at_us: i64,
    event_id: Uuid,
}

impl Cursor {
    /// Before the first update at this time, Unix microseconds.
    pub const fn before(at_us: i64) -> Self {
        Self { at_us: at_us - 1, event_id: Uuid::max() }
    }

    /// Time of the last update, Unix microseconds.
    pub const fn at_us(&self) -> i64 {
        self.at_us
    }
}

/// What a page brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Updates in it.
    pub events: u64,
    /// Sessions that it made, or brought forward; in a dry run those that it would.
    pub changed: u64,
    /// Where the next one begins.
    pub end: Cursor,
}

/// Rebuilds sessions.
pub struct SessionRebuild {
    database: Database,
    scope: Scope,
    page: String,
    sessions: String,
}

impl SessionRebuild {
    /// For the sessions of the scope; a dry run changes nothing.
    pub fn new(database: Database, scope: Scope, dry_run: bool) -> Self {
        let news = format!("({LATER}) OR {LATER_STATE} OR excluded.started_at < known.started_at");
        let merge = MERGE.replace("{later}", LATER).replace("{later_state}", LATER_STATE);
        let (from, until) = (merge.find("ON CONFLICT").unwrap_or(0), merge.find("RETURNING").unwrap_or(merge.len()));
        let change = if dry_run { WOULD_CHANGE } else { CHANGE };
        let change = change.replace("{conflict}", &merge[from..until]).replace("{news}", &news);
        let only = |parameter: &str| match &scope.session_id {
            Some(_) => format!(" AND session_id = {parameter}"),
            None => String::new(),
        };
        let page = PAGE.replace("{change}", &change).replace("{only}", &only("$5"));
        let sessions = SESSIONS.replace("{columns}", SESSION_COLUMNS).replace("{only}", &only("$4"));
        Self { database, scope, page, sessions }
    }

    /// Times of the first and the last update that there is now; `None`: there is none. Later ones are the workers'.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn span(&self) -> Result<Option<(i64, i64)>, DatabaseError> {
        // The earliest time that PostgreSQL knows, in Unix microseconds.
        let since = Micros(self.scope.since_us.unwrap_or(-210_866_803_200_000_000));
        let rows = self.query(SPAN, &[&since]).await?;
        let row = rows.first().ok_or_else(|| DatabaseError::Bug("no answer to an aggregate".to_owned()))?;
        let at = |at: usize| row.try_get::<_, Option<Micros>>(at).map_err(|error| DatabaseError::from(&error));
        Ok(at(0)?.zip(at(1)?).map(|(first, last)| (first.0, last.0)))
    }

    /// Merges the next page of updates, up to a time. `None`: there are no more.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn page(&self, after: Cursor, until_us: i64) -> Result<Option<Page>, DatabaseError> {
        let (at, until) = (Micros(after.at_us), Micros(until_us));
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&at, &after.event_id, &until, &PAGE_EVENTS];
        if let Some(session_id) = &self.scope.session_id {
            parameters.push(session_id);
        }
        let rows = self.query(&self.page, &parameters).await?;
        let page = |row: &Row| {
            Ok(Page {
                events: row.try_get::<_, i64>(0)? as u64,
                changed: row.try_get::<_, i64>(1)? as u64,
                end: Cursor { at_us: row.try_get::<_, Micros>(2)?.0, event_id: row.try_get(3)? },
            })
        };
        rows.first().map(page).transpose().map_err(|error: tokio_postgres::Error| DatabaseError::from(&error))
    }

    /// The next sessions of the table by id that were updated at `updated_us` (Unix microseconds) or later.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn sessions(&self, after: &str, updated_us: i64) -> Result<Vec<SessionState>, DatabaseError> {
        let updated = Micros(updated_us.max(self.scope.since_us.unwrap_or(i64::MIN)));
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&after, &updated, &PAGE_SESSIONS];
        if let Some(session_id) = &self.scope.session_id {
            parameters.push(session_id);
        }
        let rows = self.query(&self.sessions, &parameters).await?;
        rows.iter().map(|row| whole_session(row).map_err(|error| DatabaseError::from(&error))).collect()
    }

    async fn query(&self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, DatabaseError> {
        attempt(&self.database, false, async |client| {
            let failed = |error: tokio_postgres::Error| DatabaseError::from(&error);
            let statement = client.prepare_cached(statement).await.map_err(failed)?;
            client.query(&statement, parameters).await.map_err(failed)
        })
        .await
    }
}

//! Session updates to `session_events`, and what they fold to into `sessions`, in one transaction.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use deadpool_postgres::Object;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::copy::{Target, Way, attempt, bring, settle_rows};
use super::frame::{Frames, Judged, Micros, SESSION_EVENT_COLUMNS};
use super::{Database, DatabaseError};
use crate::event::{Folded, SessionState, SessionUpdate, Version, fold};
use crate::seam::{Place, Rows, WriteError, Written};

/// Merges folded updates into `sessions`: each register goes to the later version, whatever is there already.
pub(super) const MERGE: &str = "
INSERT INTO sessions AS known (session_id, user_id, status, seq, started_at, updated_at, ended_at, status_event, state, state_seq, state_at, state_event)
SELECT session_id, user_id, status, seq, started_at, at, CASE WHEN status = 'ended' THEN at END, event, state::jsonb, state_seq, state_at, state_event
FROM unnest($1::text[], $2::text[], $3::text[], $4::int8[], $5::timestamptz[], $6::timestamptz[], $7::uuid[], $8::text[], $9::int8[], $10::timestamptz[], $11::uuid[])
     AS given (session_id, user_id, status, seq, started_at, at, event, state, state_seq, state_at, state_event)
ON CONFLICT (session_id) DO UPDATE SET
  user_id      = CASE WHEN {later} THEN excluded.user_id ELSE known.user_id END,
  status       = CASE WHEN {later} THEN excluded.status ELSE known.status END,
  seq          = CASE WHEN {later} THEN excluded.seq ELSE known.seq END,
  updated_at   = CASE WHEN {later} THEN excluded.updated_at ELSE known.updated_at END,
  ended_at     = CASE WHEN {later} THEN excluded.ended_at ELSE known.ended_at END,
  status_event = CASE WHEN {later} THEN excluded.status_event ELSE known.status_event END,
  started_at   = least(known.started_at, excluded.started_at),
  state        = CASE WHEN {later_state} THEN excluded.state ELSE known.state END,
  state_seq    = CASE WHEN {later_state} THEN excluded.state_seq ELSE known.state_seq END,
  state_at     = CASE WHEN {later_state} THEN excluded.state_at ELSE known.state_at END,
  state_event  = CASE WHEN {later_state} THEN excluded.state_event ELSE known.state_event END
RETURNING session_id, user_id, status, seq, started_at, updated_at, status_event, state_seq, state_at, state_event";
pub(super) const LATER: &str =
    "(excluded.seq, excluded.updated_at, excluded.status_event) > (known.seq, known.updated_at, known.status_event)";
pub(super) const LATER_STATE: &str = "(excluded.state_seq IS NOT NULL AND (known.state_seq IS NULL OR
  (excluded.state_seq, excluded.state_at, excluded.state_event) > (known.state_seq, known.state_at, known.state_event)))";
/// Columns of `sessions` in the order of [`whole_session`].
pub(super) const SESSION_COLUMNS: &str =
    "session_id, user_id, status, seq, started_at, updated_at, status_event, state_seq, state_at, state_event, state::text";
/// State maps of sessions, for hashes that are gone.
const STATES: &str = "SELECT session_id, state::text, state_seq, state_at, state_event FROM sessions WHERE session_id = ANY($1) AND state IS NOT NULL";

/// Session updates of a batch.
#[derive(Debug, Default)]
pub struct SessionRows(Frames);

impl SessionRows {
    /// Adds an update.
    #[inline]
    pub fn push(&mut self, update: &SessionUpdate<'_>, place: Place) {
        self.0.session_event(update, place);
    }
}

impl Rows for SessionRows {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn forget(&mut self, entry: u32) {
        self.0.forget(entry);
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// The hypertable of session updates and the table of sessions.
pub struct SessionTables {
    database: Database,
    target: Target,
    merge: String,
}

impl SessionTables {
    /// The tables.
    pub fn new(database: Database) -> Self {
        let definitions =
            "occurred_at timestamptz, event_id uuid, session_id text, user_id text, status text, seq bigint, state jsonb";
        let merge = MERGE.replace("{later}", LATER).replace("{later_state}", LATER_STATE);
        Self { database, target: Target::new("session_events", SESSION_EVENT_COLUMNS, definitions), merge }
    }

    /// Writes updates and merges what they fold to. Returns what became of them, and every touched session as it is now; its
    /// state map only where this batch brought the one that counts ([`SessionTables::states`] has the others).
    ///
    /// # Errors
    /// The database is away, or a bug.
    pub async fn write(&self, rows: &mut SessionRows) -> Result<(Written, Vec<SessionState>), WriteError> {
        rows.0.order();
        let frames = &rows.0;
        let states = Mutex::new(Vec::new());
        let written = settle_rows(frames, |from, to, way| {
            let states = &states;
            async move {
                let (new, merged) = self.write_rows(frames, from, to, way).await?;
                states.lock().unwrap_or_else(PoisonError::into_inner).extend(merged);
                Ok(new)
            }
        })
        .await?;
        Ok((written, states.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    async fn write_rows(
        &self,
        frames: &Frames,
        from: usize,
        to: usize,
        way: Way,
    ) -> Result<(u64, Vec<SessionState>), DatabaseError> {
        let folded = fold(frames.session_events(from, to));
        attempt(&self.database, true, async |client| {
            let new = bring(client, &self.target, way, frames, (from, to)).await?;
            Ok((new, self.merge(client, &folded).await?))
        })
        .await
    }

    async fn merge(&self, client: &Object, folded: &[Folded<'_>]) -> Result<Vec<SessionState>, DatabaseError> {
        let failed = |error: tokio_postgres::Error| DatabaseError::from(&error);
        let statement = client.prepare_cached(&self.merge).await.map_err(failed)?;
        let session_ids: Vec<_> = folded.iter().map(|session| Judged(session.session_id.as_bytes())).collect();
        let user_ids: Vec<_> = folded.iter().map(|session| Judged(session.user_id.as_bytes())).collect();
        let statuses: Vec<&str> = folded.iter().map(|session| session.status.name()).collect();
        let seqs: Vec<i64> = folded.iter().map(|session| session.status_version.seq).collect();
        let started: Vec<Micros> = folded.iter().map(|session| Micros(session.started_at_us)).collect();
        let ats: Vec<Micros> = folded.iter().map(|session| Micros(session.status_version.at_us)).collect();
        let events: Vec<Uuid> = folded.iter().map(|session| session.status_version.event_id).collect();
        let states: Vec<_> = folded.iter().map(|session| session.state.map(|(_, json)| Judged(json))).collect();
        let versions = || folded.iter().map(|session| session.state.map(|(version, _)| version));
        let state_seqs: Vec<Option<i64>> = versions().map(|version| version.map(|version| version.seq)).collect();
        let state_ats: Vec<Option<Micros>> = versions().map(|version| version.map(|version| Micros(version.at_us))).collect();
        let state_events: Vec<Option<Uuid>> = versions().map(|version| version.map(|version| version.event_id)).collect();
        let parameters: [&(dyn ToSql + Sync); 11] =
            [&session_ids, &user_ids, &statuses, &seqs, &started, &ats, &events, &states, &state_seqs, &state_ats, &state_events];
        let merged = client.query(&statement, &parameters).await.map_err(failed)?;
        merged.iter().map(|row| state(row, folded).map_err(failed)).collect()
    }

    /// The state maps that the table has for some sessions.
    ///
    /// # Errors
    /// The database is away, or a bug.
    pub async fn states(&self, session_ids: &[&str]) -> Result<HashMap<String, (Version, Vec<u8>)>, WriteError> {
        let found = attempt(&self.database, false, async |client| {
            let failed = |error: tokio_postgres::Error| DatabaseError::from(&error);
            let statement = client.prepare_cached(STATES).await.map_err(failed)?;
            let rows = client.query(&statement, &[&session_ids]).await.map_err(failed)?;
            let json = |row: &Row| row.try_get(1).map(String::into_bytes);
            let state = |row: &Row| Ok((row.try_get(0)?, (version(row, 2)?.unwrap_or(NO_VERSION), json(row)?)));
            rows.iter().map(|row| state(row).map_err(failed)).collect()
        });
        found.await.map_err(DatabaseError::into_write_error)
    }
}

const NO_VERSION: Version = Version { seq: 0, at_us: i64::MIN, event_id: Uuid::nil() };

fn version(row: &Row, at: usize) -> Result<Option<Version>, tokio_postgres::Error> {
    let Some(seq) = row.try_get::<_, Option<i64>>(at)? else { return Ok(None) };
    Ok(Some(Version { seq, at_us: row.try_get::<_, Micros>(at + 1)?.0, event_id: row.try_get(at + 2)? }))
}

/// A row of the answer; the state map is not in it, but among what was brought, which is in the order of the ids.
fn state(row: &Row, brought: &[Folded<'_>]) -> Result<SessionState, tokio_postgres::Error> {
    let session_id: &str = row.try_get(0)?;
    let state_version = version(row, 7)?;
    let ours = brought.binary_search_by(|session| session.session_id.as_bytes().cmp(session_id.as_bytes())).ok();
    let ours = ours.and_then(|at| brought[at].state).filter(|(version, _)| Some(*version) == state_version);
    let state = ours.map(|(version, json)| (version, json.to_vec()));
    session(row, state, state_version.is_some())
}

/// A session with its state map, out of [`SESSION_COLUMNS`].
pub(super) fn whole_session(row: &Row) -> Result<SessionState, tokio_postgres::Error> {
    let state = version(row, 7)?.zip(row.try_get(10)?).map(|(version, json): (_, String)| (version, json.into_bytes()));
    let stateful = state.is_some();
    session(row, state, stateful)
}

fn session(row: &Row, state: Option<(Version, Vec<u8>)>, stateful: bool) -> Result<SessionState, tokio_postgres::Error> {
    Ok(SessionState {
        session_id: row.try_get(0)?,
        user_id: row.try_get(1)?,
        status: row.try_get(2)?,
        started_at_us: row.try_get::<_, Micros>(4)?.0,
        status_version: Version { seq: row.try_get(3)?, at_us: row.try_get::<_, Micros>(5)?.0, event_id: row.try_get(6)? },
        state,
        stateful,
    })
}

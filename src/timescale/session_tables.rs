//! Session updates to `session_events`, and what they fold to into `sessions`, in one transaction.

use std::collections::HashSet;
use std::ops::Range;

use deadpool_postgres::Object;
use uuid::Uuid;

use super::copy::{Target, Way, attempt, bring, settle_rows};
use super::frame::{Frames, SESSION_EVENT_COLUMNS};
use super::{Database, DatabaseError};
use crate::event::{Folded, Head, SessionState, SessionUpdate, Status, Version, fold};
use crate::seam::{Place, Rows, WriteError, Written};

/// Merges folded updates into `sessions`: each register goes to the later version, whatever is there already.
const MERGE: &str = "
INSERT INTO sessions AS known (session_id, user_id, status, seq, started_at, updated_at, ended_at, status_event, state, state_seq, state_at, state_event)
SELECT session_id, user_id, status, seq, 'epoch'::timestamptz + started_us * interval '1 microsecond', at,
       CASE WHEN status = 'ended' THEN at END, event, state::jsonb, state_seq, 'epoch'::timestamptz + state_us * interval '1 microsecond', state_event
FROM (SELECT *, 'epoch'::timestamptz + at_us * interval '1 microsecond' AS at
      FROM unnest($1::text[], $2::text[], $3::text[], $4::int8[], $5::int8[], $6::int8[], $7::uuid[], $8::text[], $9::int8[], $10::int8[], $11::uuid[])
      AS given (session_id, user_id, status, seq, started_us, at_us, event, state, state_seq, state_us, state_event)) AS given
ON CONFLICT (session_id) DO UPDATE SET
  (user_id, status, seq, updated_at, ended_at, status_event) =
    (SELECT winner.* FROM (SELECT excluded.user_id, excluded.status, excluded.seq, excluded.updated_at, excluded.ended_at, excluded.status_event
       WHERE (excluded.seq, excluded.updated_at, excluded.status_event) > (known.seq, known.updated_at, known.status_event)
     UNION ALL SELECT known.user_id, known.status, known.seq, known.updated_at, known.ended_at, known.status_event
     LIMIT 1) AS winner),
  started_at = least(known.started_at, excluded.started_at),
  (state, state_seq, state_at, state_event) =
    (SELECT winner.* FROM (SELECT excluded.state, excluded.state_seq, excluded.state_at, excluded.state_event
       WHERE excluded.state_seq IS NOT NULL AND (known.state_seq IS NULL
         OR (excluded.state_seq, excluded.state_at, excluded.state_event) > (known.state_seq, known.state_at, known.state_event))
     UNION ALL SELECT known.state, known.state_seq, known.state_at, known.state_event
     LIMIT 1) AS winner)
RETURNING session_id, user_id, status, seq, (extract(epoch FROM started_at) * 1000000)::int8,
          (extract(epoch FROM updated_at) * 1000000)::int8, (extract(epoch FROM ended_at) * 1000000)::int8, status_event,
          state::text, state_seq, (extract(epoch FROM state_at) * 1000000)::int8, state_event";

/// One update of a batch, its texts in the arena.
#[derive(Debug)]
struct Update {
    head: Head,
    session_id: Range<u32>,
    user_id: Range<u32>,
    status: Status,
    seq: i64,
    state: Option<Range<u32>>,
    place: Place,
}

/// Session updates of a batch.
#[derive(Debug, Default)]
pub struct SessionRows {
    frames: Frames,
    arena: Vec<u8>,
    updates: Vec<Update>,
}

impl SessionRows {
    /// Adds an update.
    pub fn push(&mut self, update: &SessionUpdate<'_>, place: Place) {
        self.frames.session_event(update, place);
        let mut keep = |bytes: &[u8]| {
            let from = self.arena.len() as u32;
            self.arena.extend_from_slice(bytes);
            from..self.arena.len() as u32
        };
        let session_id = keep(update.session_id.as_bytes());
        let user_id = keep(update.user_id.as_bytes());
        let state = update.state.map(&mut keep);
        self.updates.push(Update {
            head: update.head,
            session_id,
            user_id,
            status: update.status,
            seq: update.seq,
            state,
            place,
        });
    }

    fn text(&self, range: &Range<u32>) -> &str {
        // Only texts were put into the arena.
        std::str::from_utf8(&self.arena[range.start as usize..range.end as usize]).unwrap_or_default()
    }

    /// The states that some of the updates fold to.
    fn fold(&self, taken: impl Fn(Place) -> bool) -> Vec<Folded<'_>> {
        fold(self.updates.iter().filter(|update| taken(update.place)).map(|update| SessionUpdate {
            head: update.head,
            session_id: self.text(&update.session_id),
            user_id: self.text(&update.user_id),
            status: update.status,
            seq: update.seq,
            state: update.state.as_ref().map(|range| &self.arena[range.start as usize..range.end as usize]),
        }))
    }
}

impl Rows for SessionRows {
    fn len(&self) -> usize {
        self.frames.len()
    }

    fn bytes(&self) -> usize {
        self.frames.bytes() + self.arena.capacity() + self.updates.capacity() * size_of::<Update>()
    }
}

/// The hypertable of session updates and the table of sessions.
pub struct SessionTables {
    database: Database,
    target: Target,
}

impl SessionTables {
    /// The tables.
    pub fn new(database: Database) -> Self {
        let definitions =
            "occurred_at timestamptz, event_id uuid, session_id text, user_id text, status text, seq bigint, state jsonb";
        Self { database, target: Target::new("session_events", SESSION_EVENT_COLUMNS, definitions) }
    }

    /// Writes updates and merges what they fold to. Returns what became of them, and every touched session as it is now.
    ///
    /// # Errors
    /// The database is away, or a bug.
    pub async fn write(&self, rows: &mut SessionRows) -> Result<(Written, Vec<SessionState>), WriteError> {
        rows.frames.order();
        let rows = &*rows;
        let states = std::sync::Mutex::new(Vec::new());
        let written = settle_rows(&rows.frames, |from, to, way| {
            let states = &states;
            async move {
                let (new, merged) = self.write_rows(rows, from, to, way).await?;
                states.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(merged);
                Ok(new)
            }
        })
        .await?;
        Ok((written, states.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    async fn write_rows(
        &self,
        rows: &SessionRows,
        from: usize,
        to: usize,
        way: Way,
    ) -> Result<(u64, Vec<SessionState>), DatabaseError> {
        let bytes = rows.frames.slice(from, to);
        let folded = if to - from == rows.len() {
            rows.fold(|_| true)
        } else {
            let taken: HashSet<Place> = rows.frames.places(from, to).collect();
            rows.fold(|place| taken.contains(&place))
        };
        attempt(&self.database, true, async |client| {
            let new = bring(client, &self.target, way, bytes).await?;
            Ok((new, merge(client, &folded).await?))
        })
        .await
    }
}

async fn merge(client: &Object, folded: &[Folded<'_>]) -> Result<Vec<SessionState>, DatabaseError> {
    let failed = |error: tokio_postgres::Error| DatabaseError::from(&error);
    let statement = client.prepare_cached(MERGE).await.map_err(failed)?;
    let column = |value: fn(&Folded<'_>) -> i64| folded.iter().map(value).collect::<Vec<i64>>();
    let session_ids: Vec<&str> = folded.iter().map(|session| session.session_id).collect();
    let user_ids: Vec<&str> = folded.iter().map(|session| session.user_id).collect();
    let statuses: Vec<&str> = folded.iter().map(|session| session.status.name()).collect();
    let seqs = column(|session| session.status_version.seq);
    let started = column(|session| session.started_at_us);
    let ats = column(|session| session.status_version.at_us);
    let events: Vec<Uuid> = folded.iter().map(|session| session.status_version.event_id).collect();
    let states: Vec<Option<&str>> =
        folded.iter().map(|session| session.state.and_then(|(_, json)| std::str::from_utf8(json).ok())).collect();
    let state_seqs: Vec<Option<i64>> = folded.iter().map(|session| session.state.map(|(version, _)| version.seq)).collect();
    let state_ats: Vec<Option<i64>> = folded.iter().map(|session| session.state.map(|(version, _)| version.at_us)).collect();
    let state_events: Vec<Option<Uuid>> =
        folded.iter().map(|session| session.state.map(|(version, _)| version.event_id)).collect();
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 11] =
        [&session_ids, &user_ids, &statuses, &seqs, &started, &ats, &events, &states, &state_seqs, &state_ats, &state_events];
    let merged = client.query(&statement, &parameters).await.map_err(failed)?;
    merged.iter().map(|row| state(row).map_err(failed)).collect()
}

fn state(row: &tokio_postgres::Row) -> Result<SessionState, tokio_postgres::Error> {
    let state = match (row.try_get::<_, Option<String>>(8)?, row.try_get::<_, Option<i64>>(9)?) {
        (Some(state), Some(seq)) => Some((Version { seq, at_us: row.try_get(10)?, event_id: row.try_get(11)? }, state)),
        _ => None,
    };
    Ok(SessionState {
        session_id: row.try_get(0)?,
        user_id: row.try_get(1)?,
        status: row.try_get(2)?,
        started_at_us: row.try_get(4)?,
        status_version: Version { seq: row.try_get(3)?, at_us: row.try_get(5)?, event_id: row.try_get(7)? },
        ended_at_us: row.try_get(6)?,
        state,
    })
}

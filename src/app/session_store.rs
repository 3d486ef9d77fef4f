//! Where sessions go: two tables in one transaction, then the hash. Here because it needs two stores that do not know each other.

use crate::config::BatchLimits;
use crate::event::msgpack::Reader;
use crate::event::{Decode as _, Fault, Judge, Origin, SessionState, SessionUpdate};
use crate::redis::RedisError;
use crate::redis::sessions::SessionHashes;
use crate::seam::{Answer, Destination, Place, WriteError, Written};
use crate::timescale::{SessionRows, SessionTables};

/// The tables and the hashes of sessions.
pub(super) struct SessionStore {
    tables: SessionTables,
    hashes: SessionHashes,
    limits: BatchLimits,
}

impl SessionStore {
    pub(super) const fn new(tables: SessionTables, hashes: SessionHashes, limits: BatchLimits) -> Self {
        Self { tables, hashes, limits }
    }
}

impl Destination for SessionStore {
    type Rows = SessionRows;

    #[inline]
    fn push(
        &self,
        judge: &mut Judge,
        event: &mut Reader<'_>,
        origin: &Origin<'_>,
        place: Place,
        rows: &mut SessionRows,
    ) -> Result<(), Fault> {
        let update = SessionUpdate::decode(judge, event, origin)?;
        rows.push(&update, place);
        Ok(())
    }

    async fn write(&self, rows: &mut SessionRows) -> Result<Written, WriteError> {
        let (written, sessions) = self.tables.write(rows).await?;
        // The hash gets what the table has now, not what this batch brought. Where it had expired, or was lost, it gets the
        // state map as well.
        let bare = self.hashes.merge(&sessions).await.map_err(|error| write_error(&error))?;
        if !bare.is_empty() {
            let ids: Vec<_> = bare.iter().map(|session| session.session_id.as_str()).collect();
            let mut states = self.tables.states(&ids).await?;
            let whole: Vec<_> = (bare.into_iter().cloned())
                .map(|session| SessionState { state: states.remove(&session.session_id), ..session })
                .collect();
            self.hashes.merge(&whole).await.map_err(|error| write_error(&error))?;
        }
        Ok(written)
    }

    fn rows_max(&self) -> usize {
        self.limits.rows_max
    }

    fn writers_max(&self) -> usize {
        self.limits.writers_max
    }

    fn beside_stream(&self) -> bool {
        true
    }
}

fn write_error(error: &RedisError) -> WriteError {
    match error.answer() {
        Answer::Wait => WriteError::Away(error.to_string()),
        Answer::SetAside | Answer::Stop => WriteError::Bug(error.to_string()),
    }
}

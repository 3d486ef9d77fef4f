//! Where sessions go: two tables in one transaction, then the hash. Here because it needs two stores that do not know each other.

use crate::config::BatchLimits;
use crate::event::{Decode as _, Fault, Judge, Origin, SessionUpdate};
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
        event: &[u8],
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
        // The hash gets what the table has now, not what this batch brought: it is complete even where it had expired.
        self.hashes.merge(&sessions).await.map_err(|error| match error.answer() {
            Answer::Wait => WriteError::Away(error.to_string()),
            Answer::SetAside | Answer::Stop => WriteError::Bug(error.to_string()),
        })?;
        Ok(written)
    }

    fn rows_max(&self) -> usize {
        self.limits.rows_max
    }

    fn writers_max(&self) -> usize {
        self.limits.writers_max
    }

    fn component(&self) -> &'static str {
        "database"
    }
}

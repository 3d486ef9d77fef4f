//! Interactions to `interaction_logs`.

use std::collections::HashSet;

use super::copy::{Target, Way, attempt, bring, settle_rows};
use super::frame::{Frames, INTERACTION_COLUMNS};
use super::{Database, DatabaseError};
use crate::config::BatchLimits;
use crate::event::msgpack::Reader;
use crate::event::{Decode as _, Fault, Interaction, Judge, Origin};
use crate::seam::{Destination, Forward, Place, Rows, WriteError, Written};

/// Interactions of a batch: frames, and the vectors that go on to the embeddings lane.
#[derive(Debug, Default)]
pub struct InteractionRows {
    frames: Frames,
    forwards: Vec<(Place, Vec<u8>)>,
}

impl Rows for InteractionRows {
    fn len(&self) -> usize {
        self.frames.len()
    }

    fn forget(&mut self, entry: u32) {
        self.frames.forget(entry);
        self.forwards.truncate(self.forwards.partition_point(|(place, _)| place.entry < entry));
    }

    fn clear(&mut self) {
        self.frames.clear();
        self.forwards.clear();
    }
}

/// The hypertable of interactions.
pub struct Interactions {
    database: Database,
    target: Target,
    limits: BatchLimits,
}

impl Interactions {
    /// The destination.
    pub fn new(database: Database, limits: BatchLimits) -> Self {
        let definitions = "occurred_at timestamptz, event_id uuid, session_id text, user_id text, intent text, latency_ms double precision, \
             confidence real, channel text, locale text, transcript text, attributes jsonb";
        Self { database, target: Target::new("interaction_logs", INTERACTION_COLUMNS, definitions), limits }
    }

    async fn write_rows(&self, frames: &Frames, from: usize, to: usize, way: Way) -> Result<u64, DatabaseError> {
        attempt(&self.database, way == Way::Aside, async |client| bring(client, &self.target, way, frames, (from, to)).await)
            .await
    }
}

impl Destination for Interactions {
    type Rows = InteractionRows;

    #[inline]
    fn push(
        &self,
        judge: &mut Judge,
        event: &mut Reader<'_>,
        origin: &Origin<'_>,
        place: Place,
        rows: &mut Self::Rows,
    ) -> Result<(), Fault> {
        let interaction = Interaction::decode(judge, event, origin)?;
        rows.frames.interaction(&interaction, place);
        if let Some(data) = interaction.forwarded() {
            rows.forwards.push((place, data));
        }
        Ok(())
    }

    async fn write(&self, rows: &mut Self::Rows) -> Result<Written, WriteError> {
        rows.frames.order();
        let frames = &rows.frames;
        let mut written = settle_rows(frames, |from, to, way| self.write_rows(frames, from, to, way)).await?;
        let rejected: HashSet<Place> = written.rejected.iter().map(|(place, _)| *place).collect();
        written.forwards = (rows.forwards.iter())
            .filter(|(place, _)| !rejected.contains(place))
            .map(|(place, data)| Forward { place: *place, data: data.clone() })
            .collect();
        Ok(written)
    }

    fn rows_max(&self) -> usize {
        self.limits.rows_max
    }

    fn writers_max(&self) -> usize {
        self.limits.writers_max
    }
}

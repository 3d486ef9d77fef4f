//! Dropping old rows where TimescaleDB has no policy for it, and refusing events that would be dropped at once.

use std::sync::Arc;
use std::time::Duration;

use super::Parts;
use crate::config::EventLimits;
use crate::lifecycle::Tasks;
use crate::timescale::{DatabaseError, policies};

/// Between two looks: a fraction of the smallest chunk, an hour. Each worker looks; the database lets one at a time.
const PERIOD: Duration = Duration::from_mins(10);

/// Starts to drop what is older than the stored retention, once the schema is there.
pub(super) fn spawn(parts: &Arc<Parts>, tasks: &mut Tasks) {
    let parts = Arc::clone(parts);
    let dropped = parts.recorder.chunks_dropped();
    tasks.spawn("retention", async move {
        let stop = &parts.leaving.stop;
        if stop.run_until_cancelled(parts.schema_ready.cancelled()).await.is_none() {
            return Ok(());
        }
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            while let Some(done) = stop.run_until_cancelled(policies::drop_expired(&parts.config.database)).await {
                match done {
                    Ok(chunks) if chunks.is_empty() => break,
                    Ok(chunks) => {
                        for table in chunks {
                            dropped.increment(table.chunks);
                            tracing::info!(
                                hypertable = table.hypertable,
                                chunks = table.chunks,
                                before = table.before,
                                "dropped chunks that are older than AEGIS_RETENTION"
                            );
                        }
                    }
                    // An outage is told by others.
                    Err(DatabaseError::Unreachable(_)) => break,
                    Err(error) => {
                        tracing::warn!(%error, "old chunks stay for now: tries again in ten minutes");
                        break;
                    }
                }
            }
        }
        Ok(())
    });
}

/// The limits of a lane that writes rows: an event older than what is kept would be acknowledged and then dropped. The
/// database's own retention counts, since it may have been migrated with other settings than this worker's.
pub(super) fn within(kept: Duration, limits: EventLimits) -> EventLimits {
    if kept >= limits.age_max {
        return limits;
    }
    tracing::warn!(
        retention = ?kept,
        age_max = ?limits.age_max,
        "the database drops rows before AEGIS_MAX_EVENT_AGE: events older than its retention are set aside"
    );
    EventLimits { age_max: kept, ..limits }
}

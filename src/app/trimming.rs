//! What every group has settled is trimmed: looked at every two seconds, in short steps with pauses between them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Parts;
use crate::config::Lane;
use crate::lifecycle::Tasks;
use crate::redis::trim::{Hold, Trimmer};
use crate::telemetry::metric::LaneMetrics;

/// Between two looks at a lane's streams: what is trimmed late costs memory, two seconds' worth of it.
const PERIOD: Duration = Duration::from_secs(2);
/// Pause after a step, as a multiple of the time that it took: trimming takes at most a tenth of Redis's one core.
const PAUSE_STEPS: u32 = 9;
/// Least pause after a step.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Longest one: where the machine is busy most of the time that a step takes is waiting, and trimming must keep up all the same.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// Steps at one stream before the lane's next one has its turn: some 400,000 entries.
const STEPS_MAX: usize = 200;
/// How long past `AEGIS_RETAIN` another group may be behind before the log tells of it: a restart or a slow hour of its own is
/// nobody's business here.
const HELD_TOLD: Duration = Duration::from_mins(10);

/// Starts trimming the streams of a lane, if `AEGIS_RETAIN` wants it.
pub(super) fn spawn(parts: &Arc<Parts>, lane: Lane, metrics: &Arc<LaneMetrics>, tasks: &mut Tasks) {
    // A lane that reads another one's streams leaves them to that one.
    let Some(retain) = parts.config.delivery.retain.filter(|_| lane.source() == lane) else { return };
    let (parts, metrics) = (Arc::clone(parts), Arc::clone(metrics));
    tasks.spawn("trimming", async move {
        let (streams, groups) = (&parts.config.streams, parts.config.groups_of(lane));
        let stream = |key: &String| Stream {
            trimmer: Trimmer::new(parts.redis.clone(), key, &groups, &streams.consumer, retain),
            told: false,
        };
        let mut streams_of_lane: Vec<_> = streams.keys(lane).iter().map(stream).collect();
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while parts.leaving.stop.run_until_cancelled(tick.tick()).await.is_some() {
            let round = async {
                let mut held = Duration::ZERO;
                for stream in &mut streams_of_lane {
                    held = held.max(stream.trim(&groups, &metrics).await);
                }
                metrics.trimming_held.set(held.as_secs_f64());
            };
            parts.leaving.stop.run_until_cancelled(round).await;
        }
        Ok(())
    });
}

/// One stream of the lane.
struct Stream {
    trimmer: Trimmer,
    /// The log has told that another group is behind.
    told: bool,
}

impl Stream {
    /// Trims until nothing more can go. Returns for how long another group has held entries back. Errors are not told here: the
    /// lane's reader meets the same ones.
    async fn trim(&mut self, own: &[String], metrics: &LaneMetrics) -> Duration {
        let mut holds = Vec::new();
        for _ in 0..STEPS_MAX {
            let began = Instant::now();
            let Ok(step) = self.trimmer.step().await else { return Duration::ZERO };
            metrics.entries_trimmed.increment(step.trimmed);
            holds = step.holds;
            if !step.more {
                break;
            }
            tokio::time::sleep((began.elapsed() * PAUSE_STEPS).clamp(PAUSE_MIN, PAUSE_MAX)).await;
        }
        let worst = holds.iter().filter(|hold| !own.contains(&hold.group)).max_by_key(|hold| hold.past);
        self.tell(worst);
        worst.map_or(Duration::ZERO, |hold| hold.past)
    }

    /// One line when another group falls far behind, one when none is any more.
    fn tell(&mut self, worst: Option<&Hold>) {
        let behind = worst.filter(|hold| hold.past >= HELD_TOLD);
        if let Some(hold) = behind.filter(|_| !self.told) {
            tracing::warn!(
                stream = self.trimmer.key(),
                group = hold.group,
                consumer = hold.consumer.as_deref().unwrap_or_default(),
                entry = %hold.entry,
                past_retain = ?Duration::from_secs(hold.past.as_secs()),
                "another consumer group has not settled old entries: they stay in Redis for its sake"
            );
        } else if behind.is_none() && self.told {
            tracing::info!(stream = self.trimmer.key(), "no other consumer group is far behind any more");
        }
        self.told = behind.is_some();
    }
}

//! What is looked at while the lanes work: whether the components answer, how the streams stand, what is in hand for long.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::{Parts, now_us};
use crate::chroma::ChromaError;
use crate::config::{Lane, Streams};
use crate::lifecycle::{Fatal, Tasks};
use crate::redis::inspect::Losses;
use crate::redis::{RedisError, Settler, inspect, remove_gone_consumers};
use crate::telemetry::health::Component;
use crate::telemetry::metric::{LaneMetrics, StreamState};

/// Between two questions to a component: readiness follows the truth within seconds.
const PROBE_PERIOD: Duration = Duration::from_secs(1);
/// After which a question counts as not answered.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at the streams: finer than any scrape, and a hundredth of a percent of a core.
const STREAMS_PERIOD: Duration = Duration::from_secs(2);

/// Starts the probes of the components that the lanes need.
pub(super) fn spawn(parts: &Arc<Parts>, tasks: &mut Tasks) {
    for component in Component::needed_by(&parts.config.lanes) {
        let parts = Arc::clone(parts);
        tasks.spawn("probe", async move {
            let mut first = true;
            let mut tick = tokio::time::interval(PROBE_PERIOD);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while parts.leaving.stop.run_until_cancelled(tick.tick()).await.is_some() {
                let answer = match component {
                    Component::Redis => {
                        let refused = |error: &RedisError| matches!(error, RedisError::Refused(_));
                        probe(parts.redis.ping(), &mut first, refused, "AEGIS_REDIS_URL").await?
                    }
                    // Whether the database lets us in at first is seen to with the schema.
                    Component::Database => probe(parts.database.ping(), &mut first, |_| false, "AEGIS_DATABASE_URL").await?,
                    Component::Chroma => {
                        let refused = |error: &ChromaError| matches!(error, ChromaError::Untrusted(_));
                        probe(parts.chroma.heartbeat(), &mut first, refused, "AEGIS_CHROMA_URL").await?
                    }
                };
                // A database that answers is of no use to the lanes before the schema is there.
                if component == Component::Database && answer.is_ok() && !parts.schema_ready.is_cancelled() {
                    continue;
                }
                parts.health.report(component, answer);
            }
            Ok(())
        });
    }
    let parts = Arc::clone(parts);
    tasks.spawn("redis memory", async move {
        let memory = parts.recorder.redis_memory();
        let mut tick = tokio::time::interval(STREAMS_PERIOD * 5);
        while parts.leaving.stop.run_until_cancelled(tick.tick()).await.is_some() {
            // Of several servers the one that is nearest to its limit: it is the first to refuse producers.
            match inspect::servers(&parts.redis).await.as_deref().map(inspect::fullest) {
                Ok(Some(server)) => {
                    memory.used_bytes.set(server.memory_used as f64);
                    memory.limit_bytes.set(server.memory_max as f64);
                }
                Ok(None) | Err(_) => memory.set_unknown(),
            }
        }
        Ok(())
    });
}

/// Asks a component. At first contact a wrong password or a certificate that cannot be trusted ends the program; later somebody
/// is changing it, and it is waited out.
async fn probe<E: std::fmt::Display>(
    ask: impl Future<Output = Result<(), E>>,
    first: &mut bool,
    refused: impl Fn(&E) -> bool,
    variable: &str,
) -> Result<Result<(), String>, Fatal> {
    match tokio::time::timeout(PROBE_TIMEOUT, ask).await {
        Ok(Err(error)) if *first && refused(&error) => Err(Fatal::Unusable(format!("{error}; see {variable}"))),
        Ok(answer) => {
            *first &= answer.is_err();
            Ok(answer.map_err(|error| error.to_string()))
        }
        Err(_) => Ok(Err("no answer within 2 seconds".to_owned())),
    }
}

/// Beyond a hundred streams a lane, looking at them all takes longer instead of costing more.
const STREAM_TIME_MIN: Duration = Duration::from_millis(20);

/// Starts looking at the streams of a lane.
pub(super) fn spawn_streams(
    parts: &Arc<Parts>,
    lane: Lane,
    metrics: &Arc<LaneMetrics>,
    losses: &[Arc<Losses>],
    tasks: &mut Tasks,
) {
    let (parts, metrics, losses) = (Arc::clone(parts), Arc::clone(metrics), losses.to_vec());
    tasks.spawn("streams", async move {
        let streams = parts.config.streams.of(lane);
        let keys = streams.keys(lane);
        let mut tick = tokio::time::interval(STREAMS_PERIOD.max(STREAM_TIME_MIN * keys.len() as u32));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while parts.leaving.stop.run_until_cancelled(tick.tick()).await.is_some() {
            match look(&parts, &streams, &keys, &losses, &metrics).await {
                Ok(state) => metrics.set_streams(&state),
                // The outage itself is told by the lane's reader.
                Err(_) => metrics.set_streams_unknown(),
            }
        }
        Ok(())
    });
}

async fn look(
    parts: &Parts,
    streams: &Streams,
    keys: &[String],
    losses: &[Arc<Losses>],
    metrics: &LaneMetrics,
) -> Result<StreamState, RedisError> {
    // Each dead letter counts once: with the lane that set it aside.
    let own_letters = metrics.lane.source() == metrics.lane;

    let mut sum = StreamState { lag: Some(0), ..StreamState::default() };
    let now_ms = (now_us() / 1000).unsigned_abs();
    for (key, losses) in keys.iter().zip(losses) {
        let stream = inspect::stream(&parts.redis, streams, key).await?;
        losses.note(&stream, metrics);
        sum.length += stream.length;
        sum.lag = sum.lag.zip(stream.lag).map(|(sum, lag)| sum + lag);
        sum.pending += stream.pending;
        sum.dead_letters += if own_letters { stream.dead_letters } else { 0 };
        sum.consumers = sum.consumers.max(stream.consumers.len() as u64);
        if let Some(oldest) = stream.oldest_unacknowledged {
            sum.oldest_unacknowledged = sum.oldest_unacknowledged.max(Duration::from_millis(now_ms.saturating_sub(oldest.ms)));
        }
    }
    Ok(sum)
}

/// Renews the idle time of what a lane has in hand for long, and removes consumers that are gone. Errors are not told here: the
/// lane's reader meets the same ones.
pub(super) async fn keep(settler: &Settler, metrics: &LaneMetrics, claim_idle: Duration) -> Infallible {
    let mut tick = tokio::time::interval((claim_idle / 6).max(Duration::from_millis(20)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0_u32;
    loop {
        tick.tick().await;
        if let Ok(renewed) = settler.renew().await {
            metrics.entries_renewed.increment(renewed as u64);
        }
        if round.is_multiple_of(12)
            && let Ok(removed @ 1..) = remove_gone_consumers(settler).await
        {
            tracing::info!(removed, "removed consumers that were gone and held nothing");
        }
        round = round.wrapping_add(1);
    }
}

//! What is pending for one consumer of a group.

use super::error::RedisError;
use super::{Redis, query};
use crate::seam::EntryId;

/// Pending entries looked at or claimed by one command: they keep the server for some milliseconds.
pub(super) const CLAIM_COUNT: usize = 1000;

/// How many entries are pending for a consumer.
///
/// # Errors
/// Redis is away or refuses.
pub(super) async fn count_of(redis: &Redis, key: &str, group: &str, consumer: &str) -> Result<usize, RedisError> {
    type Summary = (u64, Option<String>, Option<String>, Option<Vec<(String, usize)>>);
    let (_, _, _, consumers): Summary = query(redis, key, ::redis::cmd("XPENDING").arg(key).arg(group)).await?;
    Ok(consumers.into_iter().flatten().find(|(name, _)| name == consumer).map_or(0, |(_, count)| count))
}

/// A consumer's pending entries above `after`, at most [`CLAIM_COUNT`], and how often each was delivered. Unlike a read of the
/// own history it leaves that count as it is.
///
/// # Errors
/// Redis is away or refuses.
pub(super) async fn of(
    redis: &Redis,
    key: &str,
    group: &str,
    consumer: &str,
    after: EntryId,
) -> Result<Vec<(EntryId, u64)>, RedisError> {
    let mut command = ::redis::cmd("XPENDING");
    command.arg(key).arg(group).arg(format!("({after}")).arg("+").arg(CLAIM_COUNT).arg(consumer);
    let rows: Vec<(String, String, u64, u64)> = query(redis, key, &command).await?;
    Ok(rows.iter().filter_map(|(id, _, _, deliveries)| Some((id.parse().ok()?, *deliveries))).collect())
}

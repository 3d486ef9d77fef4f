//! Producers, consumers of two groups, claims, and two workers that trim, all at once: every group reads every entry.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::{client, trim_all, trimmer};
use crate::support::servers::OwnRedis;
use crate::support::space::connect_redis;
use crate::support::{LONG, until_equal};

const KEY: &str = "storm:interactions";
const ENTRIES: usize = 20_000;

async fn produce(url: String, mut rng: SmallRng) {
    let mut redis = connect_redis(&url).await;
    let mut sent = 0;
    while sent < ENTRIES {
        let count = rng.random_range(1..200).min(ENTRIES - sent);
        let mut pipeline = redis::pipe();
        for number in sent..sent + count {
            pipeline.cmd("XADD").arg(KEY).arg("*").arg("n").arg(number).ignore();
        }
        let () = pipeline.query_async(&mut redis).await.expect("XADD");
        sent += count;
    }
}

/// Reads, settles most of it at once, leaves some to be claimed, until it has been told that all was sent and nothing is left.
async fn consume(url: String, group: &'static str, name: String, mut rng: SmallRng, over: Arc<AtomicBool>) -> Vec<usize> {
    type Entries = Vec<(String, Option<Vec<String>>)>;
    let mut redis = connect_redis(&url).await;
    let mut seen = Vec::new();
    loop {
        let last = over.load(Ordering::Acquire);
        let count = rng.random_range(1..300);
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(group).arg(&name).arg("COUNT").arg(count).arg("STREAMS").arg(KEY).arg(">");
        let found: Option<Vec<(String, Entries)>> = read.query_async(&mut redis).await.expect("XREADGROUP");
        let mut entries = found.into_iter().flatten().flat_map(|(_, entries)| entries).collect::<Entries>();
        let mut claim = redis::cmd("XAUTOCLAIM");
        claim.arg(KEY).arg(group).arg(&name).arg(20).arg("0").arg("COUNT").arg(100);
        let (_, claimed, deleted): (String, Entries, Vec<String>) = claim.query_async(&mut redis).await.expect("XAUTOCLAIM");
        assert!(deleted.is_empty(), "{group} held {deleted:?}, which went");
        entries.extend(claimed);
        let idle = entries.is_empty();
        let mut ack = redis::cmd("XACK");
        ack.arg(KEY).arg(group);
        let mut acked = 0;
        for (id, fields) in entries {
            let fields = fields.unwrap_or_else(|| panic!("{group} holds {id}, which went"));
            // One in twenty is left until somebody claims it.
            if rng.random_bool(0.95) {
                seen.push(fields[1].parse().expect("a number"));
                ack.arg(id);
                acked += 1;
            }
        }
        if acked > 0 {
            let _: u64 = ack.query_async(&mut redis).await.expect("XACK");
        }
        if idle && last {
            let (pending, ..): (u64, redis::Value, redis::Value, redis::Value) =
                redis::cmd("XPENDING").arg(KEY).arg(group).query_async(&mut redis).await.expect("XPENDING");
            if pending == 0 {
                return seen;
            }
        }
    }
}

async fn storm(url: String) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut redis = connect_redis(&url).await;
    for group in ["aegis", "analytics"] {
        let () = redis::cmd("XGROUP")
            .arg("CREATE")
            .arg(KEY)
            .arg(group)
            .arg("0")
            .arg("MKSTREAM")
            .query_async(&mut redis)
            .await
            .unwrap();
    }
    let over = Arc::new(AtomicBool::new(false));
    let rng = |number: u64| SmallRng::seed_from_u64(seed ^ number << 32);
    let mut consumers = JoinSet::new();
    for number in 0..4 {
        let group = ["aegis", "analytics"][number as usize % 2];
        let consumer = consume(url.clone(), group, format!("c{number}"), rng(number), Arc::clone(&over));
        consumers.spawn(async move { (group, consumer.await) });
    }
    let mut trimmers = JoinSet::new();
    for name in ["w1", "w2"] {
        let (url, over) = (url.clone(), Arc::clone(&over));
        trimmers.spawn(async move {
            let mut trimmer = trimmer(&client(&url), KEY, name, Duration::ZERO);
            let mut trimmed = 0;
            while !over.load(Ordering::Acquire) {
                trimmed += trimmer.step().await.expect("Redis").trimmed;
            }
            trimmed
        });
    }
    produce(url.clone(), rng(9)).await;
    over.store(true, Ordering::Release);
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    while let Some(ended) = consumers.join_next().await {
        let (group, numbers) = ended.expect("a consumer does not panic");
        seen[usize::from(group == "analytics")].extend(numbers);
    }
    for (group, seen) in ["aegis", "analytics"].iter().zip(&seen) {
        assert_eq!(seen.len(), ENTRIES, "{group} has not seen every entry, seed {seed}");
    }
    let mut trimmed = 0;
    while let Some(ended) = trimmers.join_next().await {
        trimmed += ended.expect("a trimmer does not panic");
    }
    let mut last = trimmer(&client(&url), KEY, "w1", Duration::ZERO);
    let () = redis::cmd("HDEL").arg(format!("{KEY}:trimmer")).arg("by").query_async(&mut redis).await.unwrap();
    until_equal("the stream to be empty", LONG, 0, async || {
        trimmed += trim_all(&mut last).await;
        crate::support::stores::length(&mut connect_redis(&url).await, KEY).await
    })
    .await;
    assert_eq!(trimmed as usize, ENTRIES, "seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_group_reads_every_entry_while_two_trim() {
    let own = tokio::task::block_in_place(|| OwnRedis::with(&["--appendonly", "no"]));
    storm(own.url()).await;
    if let Some(newer) = tokio::task::block_in_place(|| OwnRedis::newer(&["--appendonly", "no"])) {
        storm(newer.url()).await;
    }
}

//! Trimming: what every group has settled goes once it is old enough, and never anything else.

mod flat;
mod groups;
mod schedules;
mod storm;

use std::time::Duration;

use aegis_ingest::config::{Config, Given};
use aegis_ingest::redis::Redis;
use aegis_ingest::redis::trim::Trimmer;

/// The program's own way to Redis.
fn client(url: &str) -> Redis {
    aegis_ingest::tls::install_provider();
    Redis::new(&Config::load(&Given::from_pairs([("AEGIS_REDIS_URL", url)])).expect("sound settings").redis).expect("an address")
}

/// Steps until nothing more can go; returns how many entries went.
async fn trim_all(trimmer: &mut Trimmer) -> u64 {
    let mut trimmed = 0;
    for _ in 0..100_000 {
        let step = trimmer.step().await.expect("Redis");
        trimmed += step.trimmed;
        if !step.more {
            return trimmed;
        }
    }
    panic!("trimming comes to no end");
}

/// A trimmer for group `aegis`.
fn trimmer(redis: &Redis, stream: &str, consumer: &str, retain: Duration) -> Trimmer {
    Trimmer::new(redis.clone(), stream, &["aegis".to_owned()], consumer, retain)
}

//! Nothing lost, nothing twice: what becomes of events when something fails on their way.
#![expect(clippy::float_cmp, reason = "counters are whole numbers")]

pub mod kit;
mod relay;

mod ambiguity;
mod dead_letters;
mod isolation;
mod leaving;
mod outage_of_chroma;
mod outage_of_postgres;
mod outage_of_redis;
mod poison;
mod promotion;
mod readiness;
mod start;
mod takeover;
mod vanishing;

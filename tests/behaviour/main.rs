//! End-to-end tests: the real program against real servers, which the tests start themselves. A file a behaviour.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "counters are whole numbers, and vectors are held against their bits")]

mod support;

mod archive;
mod backfill;
mod bad_input;
mod bad_settings;
mod batching;
mod by_hand;
mod decoding;
mod delivery;
mod endpoints;
mod erase;
mod inline_embedding;
mod past_one_machine;
mod policies;
mod readme;
mod rebuilding;
mod same_again;
mod schema;
mod sessions_property;
mod settings_docs;
mod timelines;
mod tls;
mod torture;
mod trimming;
mod vectors;

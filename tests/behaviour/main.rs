//! End-to-end tests: the real program against real servers, which the tests start themselves. A file a behaviour.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

mod support;

mod by_hand;
mod delivery;
mod same_again;
mod timelines;
mod torture;
mod vectors;

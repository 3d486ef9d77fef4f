//! End-to-end tests: the real program against real servers, which the tests start themselves. A file a behaviour.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

mod support;

mod delivery;
mod torture;

//! What the tests stand on: real servers ([`servers`]), a [`space::Space`] of its own for each test, the real program
//! ([`worker`]) with the least rights that it needs ([`rights`]), faults on the way ([`proxy`]), waiting without sleeping ([`wait`]), reading what arrived ([`stores`]), and an
//! oracle that shares no code with the program ([`fold`]).
//!
//! ```ignore
//! #[tokio::test]
//! async fn a_row_arrives() {
//!     let space = Space::new("a_row_arrives").await;
//!     let worker = Worker::start(&space, &[]);
//!     worker.ready().await;
//!     let mut redis = space.redis().await;
//!     send::json(&mut redis, &space.stream("interactions"), &json!({"session_id": "s", "user_id": "u"})).await;
//!     let database = space.database().await;
//!     until("the row", SOON, async || stores::count(&database, "interaction_logs").await.eq(&1).then_some(())).await;
//! }
//! ```
#![allow(dead_code, unused_imports, reason = "a library for tests, not all of which is in use on every day")]

pub mod cluster;
pub mod fold;
pub mod http;
pub mod msgpack;
pub mod proxy;
pub mod rights;
pub mod send;
pub mod servers;
pub mod space;
pub mod stores;
pub mod timeline;
pub mod wait;
pub mod worker;

pub use space::Space;
pub use wait::{LONG, SOON, until, until_equal};
pub use worker::Worker;

//! What voice services would write: made up from a seed, or read from a timeline file.
//!
//! A source yields [`Event`]s, each already encoded; [`Mixer`] puts events in between that must become dead letters;
//! [`Entries`] groups them into stream entries. The same options give the same bytes.
//!
//! **Architecture invariant:** no clock and no I/O in here but for [`timeline::read`] and [`timeline::vectors`]; randomness
//! comes from seeds that are arguments.

use std::sync::Arc;

use crate::config::Lane;

mod encode;
mod generator;
mod pack;
mod poison;
mod speech;
pub mod timeline;
mod vectors;

pub use encode::Format;
pub use generator::{Generator, Mix, Options};
pub use pack::{Content, Entries, Entry, Packer};
pub use poison::{Kind as Poison, Mixer};

/// One event as a producer would send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where it goes.
    pub lane: Lane,
    /// The session it belongs to, which decides its partition.
    pub session_id: Arc<str>,
    /// `occurred_at`, Unix microseconds.
    pub at_us: i64,
    /// The value of the entry's field, as [`Format`] has it.
    pub body: Vec<u8>,
    /// Set for an event that must become a dead letter.
    pub poison: Option<Poison>,
}

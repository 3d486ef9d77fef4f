//! What this worker has in hand: entries that were read and are not settled yet.
//!
//! Reading the own pending list again (after a reply that may have been lost, or after taking over from others) must leave out
//! what is being worked on.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::seam::EntryId;

#[derive(Default)]
struct Held {
    next: u64,
    chunks: HashMap<u64, Arc<[EntryId]>>,
}

/// The entries of one stream that are in hand.
#[derive(Clone, Default)]
pub struct InHand(Arc<Mutex<Held>>);

impl InHand {
    fn lock(&self) -> MutexGuard<'_, Held> {
        // A panic while the lock is held leaves a map that is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks entries as in hand until the [`Hold`] is dropped.
    pub fn hold(&self, ids: Arc<[EntryId]>) -> Hold {
        let mut held = self.lock();
        let number = held.next;
        held.next += 1;
        held.chunks.insert(number, ids);
        Hold { number, in_hand: self.clone() }
    }

    /// All entries in hand.
    pub fn ids(&self) -> HashSet<EntryId> {
        self.lock().chunks.values().flat_map(|ids| ids.iter().copied()).collect()
    }
}

/// Keeps entries marked as in hand.
pub struct Hold {
    number: u64,
    in_hand: InHand,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.in_hand.lock().chunks.remove(&self.number);
    }
}

//! What this worker has in hand: entries that were read and are not settled yet.
//!
//! How much that may be is bounded for all streams of a lane together ([`Room`]), however many they are.
//!
//! Reading the own pending list again (after a reply that may have been lost, or after taking over from others) must leave out
//! what is being worked on.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::seam::EntryId;

/// Bytes that a permit stands for.
const PERMIT_BYTES: usize = 1024;

/// Bytes of entries that the streams of one lane hold at the same time, from the socket until they are settled.
#[derive(Clone)]
pub struct Room(Arc<Semaphore>);

impl Room {
    /// Room for so many bytes; never less than four reads.
    pub fn new(bytes: usize) -> Self {
        let permits = bytes.max(4 * super::wire::READ_BYTES) / PERMIT_BYTES;
        Self(Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))))
    }
}

#[derive(Default)]
struct Held {
    next: u64,
    chunks: HashMap<u64, Arc<[EntryId]>>,
}

/// The entries of one stream that are in hand.
#[derive(Clone, Default)]
pub struct InHand {
    held: Arc<Mutex<Held>>,
    room: Option<Room>,
}

impl InHand {
    /// Nothing yet; it takes its room out of one that others share.
    pub fn within(room: Room) -> Self {
        Self { held: Arc::default(), room: Some(room) }
    }

    /// Waits for room for a read of so many bytes, at most [`READ_BYTES`](super::wire::READ_BYTES); who waits longest is the next.
    pub(super) async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let Room(room) = self.room.as_ref()?;
        // Closed never.
        Arc::clone(room).acquire_many_owned(bytes.div_ceil(PERMIT_BYTES) as u32).await.ok()
    }

    /// Whether a read of so many bytes would find room now.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.room.as_ref().is_none_or(|Room(room)| room.available_permits() >= bytes.div_ceil(PERMIT_BYTES))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // A panic while the lock is held leaves a map that is still whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks entries as in hand until the [`Hold`] is dropped. Of the room that was waited for it keeps what `bytes` need.
    pub fn hold(&self, ids: Arc<[EntryId]>, bytes: usize, mut room: Option<OwnedSemaphorePermit>) -> Hold {
        if let Some(room) = &mut room {
            drop(room.split(room.num_permits().saturating_sub(bytes.div_ceil(PERMIT_BYTES))));
        }
        let mut held = self.lock();
        let number = held.next;
        held.next += 1;
        held.chunks.insert(number, ids);
        Hold { number, in_hand: self.clone(), _room: room }
    }

    /// How many entries are in hand.
    pub(super) fn count(&self) -> usize {
        self.lock().chunks.values().map(|ids| ids.len()).sum()
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
    _room: Option<OwnedSemaphorePermit>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.in_hand.lock().chunks.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::READ_BYTES;
    use super::*;

    #[tokio::test]
    async fn room_is_there_until_it_is_held_and_again_once_it_is_let_go() {
        let in_hand = InHand::within(Room::new(4 * READ_BYTES));
        let mut holds = Vec::new();
        for _ in 0..4 {
            assert!(in_hand.has_room(READ_BYTES));
            let room = in_hand.room(READ_BYTES).await;
            holds.push(in_hand.hold(Arc::from([EntryId::default()]), READ_BYTES, room));
        }
        assert!(!in_hand.has_room(READ_BYTES));
        holds.pop();
        assert!(in_hand.has_room(READ_BYTES));
        assert!(InHand::default().has_room(usize::MAX), "nobody bounds it");
    }
}

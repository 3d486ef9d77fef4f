//! What is known of collections, so that a request need not ask for its collection first.

use std::collections::VecDeque;

use super::client::Collection;

/// Collections remembered: some 20 KiB of names. A worker that serves more asks again, which costs a request of a millisecond.
const REMEMBERED_MAX: usize = 256;

/// Collections by name, the one met last at the back.
#[derive(Debug, Default)]
pub(super) struct Collections(VecDeque<(String, Collection)>);

impl Collections {
    pub(super) fn get(&self, name: &str) -> Option<Collection> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, collection)| *collection)
    }

    /// Remembers a collection, in the place of the one met first when there are too many.
    pub(super) fn insert(&mut self, name: &str, collection: Collection) {
        self.0.retain(|(known, _)| known != name);
        if self.0.len() == REMEMBERED_MAX {
            self.0.pop_front();
        }
        self.0.push_back((name.to_owned(), collection));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let collection = Collection { id: uuid::Uuid::nil(), dimension: None, space: None };
        let mut known = Collections::default();
        for n in 0..=REMEMBERED_MAX {
            known.insert(&format!("c{n}"), collection);
        }
        known.insert("c5", Collection { dimension: Some(3), ..collection });
        assert_eq!(known.0.len(), REMEMBERED_MAX);
        assert_eq!(known.get("c0"), None);
        assert_eq!(known.get("c1"), Some(collection));
        assert_eq!(known.get("c5").and_then(|collection| collection.dimension), Some(3));
    }
}

//! Events that must become dead letters: one of every kind of mistake that producers make.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::encode::{Id, Keyed, Time, encode};
use super::{Content, Event, Format};
use crate::config::Lane;
use crate::event::Code;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes that do not parse.
    Torn,
    /// An entry with neither field.
    NoField,
    /// An entry with both fields.
    BothFields,
    /// A number where a map should be.
    NoMap,
    /// A required key left out.
    MissingKey,
    /// A key of the wrong type.
    WrongType,
    /// U+0000 in a text.
    NullCharacter,
    /// A clock that stands in 1900.
    BrokenClock,
    /// A vector that does not fit its collection.
    OddDimension,
    /// An entry above the allowed size.
    Large,
}

impl Kind {
    /// All kinds, in the order in which they take turns.
    pub const ALL: [Self; 10] = [
        Self::MissingKey,
        Self::Torn,
        Self::WrongType,
        Self::BrokenClock,
        Self::NoMap,
        Self::NullCharacter,
        Self::NoField,
        Self::OddDimension,
        Self::BothFields,
        Self::Large,
    ];

    /// The code that its dead letter has.
    pub const fn code(self) -> Code {
        match self {
            Self::Torn | Self::NoField | Self::BothFields | Self::NoMap => Code::Malformed,
            Self::MissingKey => Code::MissingField,
            Self::WrongType | Self::NullCharacter => Code::InvalidField,
            Self::BrokenClock => Code::TimeOutOfRange,
            Self::OddDimension => Code::DimensionMismatch,
            Self::Large => Code::TooLarge,
        }
    }

    /// The entry that it spoils as a whole; none when it can stand in an array beside good events.
    pub(super) const fn entry_of_its_own(self, format: Format) -> Option<Content> {
        match self {
            Self::Torn | Self::Large => Some(Content::Payload(format)),
            Self::NoField => Some(Content::Neither),
            Self::BothFields => Some(Content::Both),
            Self::NoMap | Self::MissingKey | Self::WrongType | Self::NullCharacter | Self::BrokenClock | Self::OddDimension => {
                None
            }
        }
    }
}

/// Vectors that must have gone before one of another dimension follows: the first one sets a new collection's dimension.
const VECTORS_BEFORE: u32 = 1_000;
/// Too large an entry is rare, since it takes as long as thousands of others.
const LARGE_EVERY: usize = 50;

/// Lets mistakes come between good events.
pub struct Mixer<I> {
    events: I,
    share: f64,
    lanes: Vec<Lane>,
    format: Format,
    entry_bytes_max: usize,
    dimensions: Option<usize>,
    rng: SmallRng,
    turn: usize,
    vectors: u32,
    held: Option<Event>,
}

impl<I: Iterator<Item = Event>> Mixer<I> {
    /// Mistakes of the given `lanes`, `share` (0 to 1) of them a good event, out of a seed. With `dimensions`, the length of the
    /// good vectors, some are of another length; leave it out when entries are not written in this order.
    pub fn new(
        events: I,
        share: f64,
        seed: u64,
        lanes: Vec<Lane>,
        format: Format,
        entry_bytes_max: usize,
        dimensions: Option<usize>,
    ) -> Self {
        // Another stream of randomness than the traffic's own, so that good events do not depend on the share.
        let rng = SmallRng::seed_from_u64(!seed);
        Self { events, share, lanes, format, entry_bytes_max, dimensions, rng, turn: 0, vectors: 0, held: None }
    }

    fn kind(&mut self) -> Kind {
        loop {
            let (round, place) = (self.turn / Kind::ALL.len(), self.turn % Kind::ALL.len());
            self.turn += 1;
            let kind = Kind::ALL[place];
            let usable = match kind {
                Kind::OddDimension => self.dimensions.is_some() && self.vectors >= VECTORS_BEFORE,
                Kind::Large => round.is_multiple_of(LARGE_EVERY),
                _ => true,
            };
            if usable {
                return kind;
            }
        }
    }

    fn spoil(&mut self, good: &Event) -> Event {
        let kind = self.kind();
        let lane = match kind {
            Kind::OddDimension => Lane::Embeddings,
            _ => self.lanes.get(self.rng.random_range(0..self.lanes.len().max(1))).copied().unwrap_or(good.lane),
        };
        let id = Id(Uuid::from_u128(self.rng.random()));
        let at_us = match kind {
            Kind::BrokenClock => -2_208_988_800_000_000,
            _ => good.at_us,
        };
        let mut keys = self.sound(lane, &good.session_id);
        let first = if lane == Lane::Embeddings { "embedding" } else { "user_id" };
        match kind {
            Kind::MissingKey => drop(keys.remove(first)),
            Kind::WrongType => drop(keys.insert(first.to_owned(), json!(true))),
            Kind::NullCharacter => drop(keys.insert("session_id".to_owned(), json!("a\u{0}b"))),
            Kind::OddDimension => {
                let dimension = self.dimensions.unwrap_or(1) + 1;
                keys.insert("embedding".to_owned(), vec![0.5; dimension].into());
            }
            Kind::Large => drop(keys.insert("transcript".to_owned(), "la ".repeat(self.entry_bytes_max / 3 + 1).into())),
            Kind::Torn | Kind::NoField | Kind::BothFields | Kind::NoMap | Kind::BrokenClock => {}
        }
        let mut body = Vec::new();
        encode(self.format, &Keyed { event_id: id, occurred_at: Time(at_us), keys: &keys }, &mut body);
        match kind {
            Kind::Torn => body.truncate(body.len() / 2),
            Kind::NoMap => {
                body.clear();
                encode(self.format, &42, &mut body);
            }
            _ => {}
        }
        Event { lane, session_id: good.session_id.clone(), at_us: good.at_us, body, poison: Some(kind) }
    }

    /// The keys of an event that has nothing wrong yet.
    fn sound(&self, lane: Lane, session_id: &str) -> Map<String, Value> {
        let mut keys = Map::new();
        keys.insert("session_id".to_owned(), session_id.into());
        keys.insert("user_id".to_owned(), "u-poison".into());
        match lane {
            Lane::Interactions => drop(keys.insert("transcript".to_owned(), "this must become a dead letter".into())),
            Lane::Sessions => drop(keys.insert("status".to_owned(), "updated".into())),
            Lane::Embeddings | Lane::Archive => {
                drop(keys.insert("embedding".to_owned(), vec![0.5; self.dimensions.unwrap_or(1)].into()));
            }
        }
        keys
    }
}

impl<I: Iterator<Item = Event>> Iterator for Mixer<I> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if let Some(held) = self.held.take() {
            return Some(held);
        }
        let event = self.events.next()?;
        self.vectors += u32::from(event.lane == Lane::Embeddings);
        if self.share > 0.0 && self.rng.random_bool(self.share.min(1.0)) {
            let spoilt = self.spoil(&event);
            self.held = Some(event);
            return Some(spoilt);
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Generator, Options};
    use super::*;
    use crate::event::{Decode, Embedding, Interaction, Judge, Origin, Payload, SessionUpdate, Window, each_event};

    fn verdict(format: Format, event: &Event) -> Option<Code> {
        let payload = if format == Format::Data { Payload::MessagePack(&event.body) } else { Payload::Json(&event.body) };
        let year = Duration::from_secs(365 * 86_400);
        let mut judge = Judge::new(Window::around(1_790_000_000_000_000, year, year));
        let origin = Origin { stream: "s", ms: 1, seq: 0, index: 0 };
        let events = each_event(payload, &mut Vec::new(), |_, map| match event.lane {
            Lane::Interactions => Interaction::decode(&mut judge, map, &origin).map(drop),
            Lane::Sessions => SessionUpdate::decode(&mut judge, map, &origin).map(drop),
            Lane::Embeddings | Lane::Archive => Embedding::decode(&mut judge, map, &origin).map(drop),
        });
        events.map_or_else(|fault| Some(fault.code), |events| events.faulty.first().map(|(_, _, fault)| fault.code))
    }

    #[test]
    fn every_kind_comes_up_and_has_its_code_and_good_events_stay_as_they_were() {
        for format in [Format::Data, Format::Json] {
            let good = || Generator::new(Options { format, start_us: 1_790_000_000_000_000, ..Options::default() }).take(20_000);
            let mixed: Vec<_> = Mixer::new(good(), 0.01, 1, Lane::PRODUCED.to_vec(), format, 10_000, Some(384)).collect();
            assert!(mixed.iter().filter(|event| event.poison.is_none()).cloned().eq(good()));
            for kind in Kind::ALL {
                let of_kind: Vec<_> = mixed.iter().filter(|event| event.poison == Some(kind)).collect();
                assert!(!of_kind.is_empty(), "{kind:?}");
                for event in of_kind {
                    match kind {
                        // Wrong as an entry, or only beside others; the event itself is sound.
                        Kind::NoField | Kind::BothFields | Kind::OddDimension => assert_eq!(verdict(format, event), None),
                        Kind::Large => assert!(event.body.len() > 10_000),
                        _ => assert_eq!(verdict(format, event), Some(kind.code()), "{kind:?} in {}", event.lane),
                    }
                }
            }
        }
    }
}

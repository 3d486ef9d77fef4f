//! Events into stream entries: one event or an array of them, of one lane and one partition.

use std::collections::VecDeque;

use super::{Event, Format, Poison};
use crate::config::Lane;
use crate::event::ARRAY_MAX;

/// What fields an entry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// One field, `data` or `json`.
    Payload(Format),
    /// The payload in both, which is an error.
    Both,
    /// Another field, which is an error.
    Neither,
}

/// A stream entry to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its lane.
    pub lane: Lane,
    /// Its partition, below the number of partitions.
    pub partition: u16,
    /// `occurred_at` of its latest event, Unix microseconds.
    pub at_us: i64,
    /// Its fields.
    pub content: Content,
    /// The field's value.
    pub payload: Vec<u8>,
    /// Events inside, without those that must become dead letters.
    pub events: u32,
    /// Those that must.
    pub poison: Vec<Poison>,
}

/// Groups events. Without groups (one event an entry) nothing waits inside.
#[derive(Debug)]
pub struct Packer {
    format: Format,
    events_max: usize,
    bytes_max: usize,
    partitions: u16,
    /// By lane, then by partition.
    open: Vec<Option<Entry>>,
}

impl Packer {
    /// Entries of up to `events_max` events (1 to 10,000) and of less than `bytes_max` bytes unless one event is larger.
    pub fn new(format: Format, events_max: usize, bytes_max: usize, partitions: u16) -> Self {
        let partitions = partitions.max(1);
        Self {
            format,
            events_max: events_max.clamp(1, ARRAY_MAX),
            bytes_max,
            partitions,
            open: vec![None; Lane::PRODUCED.len() * usize::from(partitions)],
        }
    }

    /// Takes an event; what became complete goes to `out`.
    pub fn push(&mut self, event: Event, out: &mut VecDeque<Entry>) {
        // Producers and workers agree on CRC-32, so that a session's updates stay in one stream.
        let partition = match self.partitions {
            1 => 0,
            n => (crc32fast::hash(event.session_id.as_bytes()) % u32::from(n)) as u16,
        };
        let alone = event.poison.and_then(|poison| poison.entry_of_its_own(self.format));
        if self.events_max == 1 || alone.is_some() {
            out.push_back(Entry {
                lane: event.lane,
                partition,
                at_us: event.at_us,
                content: alone.unwrap_or(Content::Payload(self.format)),
                payload: event.body,
                events: u32::from(event.poison.is_none()),
                poison: event.poison.into_iter().collect(),
            });
            return;
        }
        let slot = &mut self.open[event.lane as usize * usize::from(self.partitions) + usize::from(partition)];
        if let Some(entry) = slot.take_if(|entry| entry.payload.len() + event.body.len() + 2 > self.bytes_max) {
            out.push_back(closed(entry));
        }
        let entry = slot.get_or_insert_with(|| Entry {
            lane: event.lane,
            partition,
            at_us: event.at_us,
            content: Content::Payload(self.format),
            payload: match self.format {
                // An array of 16-bit length, filled in when the entry is closed.
                Format::Data => vec![0xdc, 0, 0],
                Format::Json => vec![b'['],
            },
            events: 0,
            poison: Vec::new(),
        });
        if self.format == Format::Json && entry.count() > 0 {
            entry.payload.push(b',');
        }
        entry.payload.extend_from_slice(&event.body);
        entry.at_us = entry.at_us.max(event.at_us);
        match event.poison {
            None => entry.events += 1,
            Some(poison) => entry.poison.push(poison),
        }
        if let Some(entry) = slot.take_if(|entry| entry.count() >= self.events_max) {
            out.push_back(closed(entry));
        }
    }

    /// Gives up what waits for more events.
    pub fn flush(&mut self, out: &mut VecDeque<Entry>) {
        out.extend(self.open.iter_mut().filter_map(Option::take).map(closed));
    }
}

/// The entries of a stream of events, one after another.
pub struct Entries<I> {
    events: I,
    packer: Packer,
    ready: VecDeque<Entry>,
}

impl<I: Iterator<Item = Event>> Entries<I> {
    /// Packs `events` by `packer`.
    pub fn new(events: I, packer: Packer) -> Self {
        Self { events, packer, ready: VecDeque::new() }
    }
}

impl<I: Iterator<Item = Event>> Iterator for Entries<I> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Some(entry);
            }
            let Some(event) = self.events.next() else {
                self.packer.flush(&mut self.ready);
                return self.ready.pop_front();
            };
            self.packer.push(event, &mut self.ready);
        }
    }
}

impl Entry {
    /// All events inside.
    pub fn count(&self) -> usize {
        self.events as usize + self.poison.len()
    }
}

fn closed(mut entry: Entry) -> Entry {
    if entry.content == Content::Payload(Format::Json) {
        entry.payload.push(b']');
    } else {
        // `ARRAY_MAX` fits.
        let count = entry.count() as u16;
        entry.payload[1..3].copy_from_slice(&count.to_be_bytes());
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::super::{Generator, Options};
    use super::*;
    use crate::event::{Events, Payload, each_event};

    fn pack(format: Format, events_max: usize, bytes_max: usize, partitions: u16) -> Vec<Entry> {
        let events = Generator::new(Options { format, ..Options::default() }).take(1_000);
        Entries::new(events, Packer::new(format, events_max, bytes_max, partitions)).collect()
    }

    #[test]
    fn arrays_hold_every_event_once_within_the_bounds() {
        for format in [Format::Data, Format::Json] {
            let entries = pack(format, 7, 4_000, 3);
            assert_eq!(entries.iter().map(|entry| entry.events).sum::<u32>(), 1_000);
            for entry in entries {
                let payload =
                    if format == Format::Data { Payload::MessagePack(&entry.payload) } else { Payload::Json(&entry.payload) };
                let read =
                    each_event(payload, &mut Vec::new(), |_, event| event.whole().map(drop).map_err(|torn| panic!("{torn}")));
                assert_eq!(read, Ok(Events { count: entry.events, faulty: Vec::new() }));
                assert!(entry.events <= 7 && entry.partition < 3);
                assert!(entry.payload.len() <= 4_000 || entry.events == 1);
            }
        }
    }

    #[test]
    fn a_session_keeps_to_its_partition() {
        let mut packer = Packer::new(Format::Data, 1, 1 << 20, 4);
        let mut entries = VecDeque::new();
        let event = Event { lane: Lane::Sessions, session_id: "123456789".into(), at_us: 0, body: vec![0x80], poison: None };
        packer.push(event, &mut entries);
        // CRC-32 (IEEE) of "123456789" is the check value 0xCBF43926.
        assert_eq!(entries[0].partition, (0xcbf4_3926_u32 % 4) as u16);
        assert_eq!(entries[0].payload, [0x80]);
    }
}

//! What was written, in figures.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use crate::config::Lane;
use crate::event::Code;
use crate::traffic::Entry;

/// Figures of one lane.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LaneTally {
    events: u64,
    entries: u64,
    bytes: u64,
}

/// What Redis has taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    lanes: [LaneTally; Lane::PRODUCED.len()],
    /// Events that must become dead letters, by the code they must have.
    poison: BTreeMap<Code, u64>,
    /// Entries that were sent again since their reply was lost: they may stand in the stream twice.
    pub(super) uncertain: u64,
}

impl Tally {
    /// The figures of some entries.
    pub(super) fn of(entries: &[Entry]) -> Self {
        let mut tally = Self::default();
        for entry in entries {
            let lane = &mut tally.lanes[entry.lane as usize];
            lane.events += u64::from(entry.events);
            lane.entries += 1;
            lane.bytes += entry.payload.len() as u64;
            for poison in &entry.poison {
                *tally.poison.entry(poison.code()).or_default() += 1;
            }
        }
        tally
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (lane, more) in self.lanes.iter_mut().zip(other.lanes) {
            lane.events += more.events;
            lane.entries += more.entries;
            lane.bytes += more.bytes;
        }
        for (&code, more) in &other.poison {
            *self.poison.entry(code).or_default() += more;
        }
        self.uncertain += other.uncertain;
    }

    /// All entries.
    pub(super) fn entries(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.entries).sum()
    }

    /// Good events.
    pub(super) fn events(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.events).sum()
    }
}

/// All there is to say at the end.
pub(super) struct Summary {
    pub(super) tally: Tally,
    /// Entries whose outcome was not waited for.
    pub(super) unconfirmed: u64,
    pub(super) took: Duration,
    /// `occurred_at` of the first event, Unix microseconds.
    pub(super) start_us: i64,
    /// Whether a signal ended it.
    pub(super) interrupted: bool,
}

impl Summary {
    fn total(&self) -> LaneTally {
        self.tally.lanes.iter().fold(LaneTally::default(), |sum, lane| LaneTally {
            events: sum.events + lane.events,
            entries: sum.entries + lane.entries,
            bytes: sum.bytes + lane.bytes,
        })
    }

    fn rate(&self, count: u64) -> f64 {
        count as f64 / self.took.as_secs_f64().max(1e-9)
    }

    fn start(&self) -> String {
        jiff::Timestamp::from_microsecond(self.start_us).map_or_else(|_| self.start_us.to_string(), |time| time.to_string())
    }

    /// For scripts: one JSON object.
    pub(super) fn json(&self) -> Value {
        let figures = |tally: LaneTally| {
            json!({
                "events": tally.events, "entries": tally.entries, "bytes": tally.bytes,
                "events_per_second": (self.rate(tally.events) * 10.0).round() / 10.0,
            })
        };
        let mut json = figures(self.total());
        json["seconds"] = ((self.took.as_secs_f64() * 1e3).round() / 1e3).into();
        json["accepted"] = self.total().entries.into();
        json["uncertain"] = self.tally.uncertain.into();
        json["unconfirmed"] = self.unconfirmed.into();
        json["start"] = self.start().into();
        json["interrupted"] = self.interrupted.into();
        for lane in Lane::PRODUCED {
            json["lanes"][lane.name()] = figures(self.tally.lanes[lane as usize]);
        }
        json["poison"] = self.tally.poison.iter().map(|(code, count)| (code.name().to_owned(), Value::from(*count))).collect();
        json
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        let mut out = String::new();
        let row = |out: &mut String, name: &str, tally: LaneTally| {
            let (events, entries) = (HumanCount(tally.events).to_string(), HumanCount(tally.entries).to_string());
            let (bytes, rate) = (HumanBytes(tally.bytes).to_string(), HumanCount(self.rate(tally.events) as u64).to_string());
            let _ = writeln!(out, "{name:<12} {events:>14} {entries:>14} {bytes:>12} {rate:>12}");
        };
        let _ = writeln!(out, "{:<12} {:>14} {:>14} {:>12} {:>12}", "", "events", "entries", "payload", "events/s");
        for lane in Lane::PRODUCED {
            let tally = self.tally.lanes[lane as usize];
            if tally.entries > 0 {
                row(&mut out, lane.name(), tally);
            }
        }
        row(&mut out, "all", self.total());
        let _ = write!(out, "\nTook {:.1} s; events carry times from {} on.", self.took.as_secs_f64(), self.start());
        if !self.tally.poison.is_empty() {
            let kinds: Vec<_> = self.tally.poison.iter().map(|(code, count)| format!("{count} {}", code.name())).collect();
            let _ = write!(out, "\nBesides, events that must become dead letters: {}.", kinds.join(", "));
        }
        if self.tally.uncertain > 0 {
            let _ = write!(
                out,
                "\nSent again since a reply was lost: {} entries, which may stand in the streams twice.",
                HumanCount(self.tally.uncertain)
            );
        }
        if self.unconfirmed > 0 {
            let _ = write!(out, "\nNot confirmed when it was stopped: {} entries.", HumanCount(self.unconfirmed));
        }
        out
    }
}

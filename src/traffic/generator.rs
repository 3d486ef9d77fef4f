//! Made-up traffic: people who talk to a voice assistant in sessions that begin, go on and end.

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::encode::{Attributes, Id, IntentMetadata, Interaction, Numbers, SessionUpdate, Slots, State, Time, Vector, encode};
use super::speech::{INTENTS, Ranks, utter};
use super::vectors::Vectors;
use super::{Event, Format};
use crate::config::Lane;

/// How often each lane comes up, as weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Weight of interactions.
    pub interactions: u16,
    /// Weight of session updates.
    pub sessions: u16,
    /// Weight of vectors.
    pub embeddings: u16,
}

impl Default for Mix {
    fn default() -> Self {
        Self { interactions: 70, sessions: 20, embeddings: 10 }
    }
}

impl std::str::FromStr for Mix {
    type Err = String;

    /// Reads `interactions=70,sessions=20`; a lane that is left out has the weight 0.
    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "weights such as interactions=70,sessions=20,embeddings=10, each 0 to 65535, not all 0".to_owned();
        let mut mix = Self { interactions: 0, sessions: 0, embeddings: 0 };
        for part in text.split(',') {
            let (lane, weight) = part.split_once('=').ok_or_else(wanted)?;
            let weight = weight.trim().parse().map_err(|_| wanted())?;
            match lane.trim().parse().map_err(|_| wanted())? {
                Lane::Interactions => mix.interactions = weight,
                Lane::Sessions => mix.sessions = weight,
                Lane::Embeddings => mix.embeddings = weight,
                // It has no stream to write to.
                Lane::Archive => return Err(wanted()),
            }
        }
        if mix.total() == 0 { Err(wanted()) } else { Ok(mix) }
    }
}

impl Mix {
    /// The weight of a lane.
    pub const fn weight(self, lane: Lane) -> u16 {
        match lane {
            Lane::Interactions => self.interactions,
            Lane::Sessions => self.sessions,
            Lane::Embeddings => self.embeddings,
            Lane::Archive => 0,
        }
    }

    fn total(self) -> u32 {
        Lane::PRODUCED.into_iter().map(|lane| u32::from(self.weight(lane))).sum()
    }

    fn draw(self, rng: &mut SmallRng) -> Lane {
        let drawn = rng.random_range(0..self.total().max(1));
        if drawn < u32::from(self.interactions) {
            Lane::Interactions
        } else if drawn < u32::from(self.interactions) + u32::from(self.sessions) {
            Lane::Sessions
        } else {
            Lane::Embeddings
        }
    }
}

/// What to make up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything random follows from it.
    pub seed: u64,
    /// `occurred_at` of the first event, Unix microseconds.
    pub start_us: i64,
    /// Microseconds from one event's `occurred_at` to the next one's, at least 1.
    pub gap_us: i64,
    /// How often each lane comes up.
    pub mix: Mix,
    /// Sessions open at the same time, at least 1.
    pub sessions: u32,
    /// Users that sessions belong to, at least 1.
    pub users: u32,
    /// Numbers a vector, at least 1.
    pub dimensions: usize,
    /// Share of interactions that carry their vector, 0 to 1.
    pub inline_embeddings: f64,
    /// How events are encoded.
    pub format: Format,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            start_us: 0,
            gap_us: 1_000,
            mix: Mix::default(),
            sessions: 500,
            users: 2_000,
            dimensions: 384,
            inline_embeddings: 0.0,
            format: Format::Data,
        }
    }
}

/// Median of the recognition latency, milliseconds, and the spread of its logarithm.
const LATENCY_MEDIAN_MS: f64 = 181.0;
const LATENCY_SIGMA: f64 = 0.45;
/// After `started`, each update of a session is its last with a chance of one in this.
const UPDATES_A_SESSION: u32 = 9;

/// Room for most events without a vector.
const BODY_BYTES: usize = 448;

const CHANNELS: &[&str] = &["speaker", "phone", "car", "watch", "tv"];
const DEVICES: &[&str] = &["kitchen-1", "living-room-2", "handset", "dashboard", "wrist", "remote"];

struct Session {
    id: Arc<str>,
    user_id: String,
    channel: &'static str,
    turns: u32,
    updates: u32,
    intent: Option<&'static str>,
    slots: Vec<(&'static str, &'static str)>,
}

impl Session {
    fn new(users: u32, rng: &mut SmallRng) -> Self {
        // The square makes some users far busier than others.
        let user = (rng.random::<f64>().powi(2) * f64::from(users)) as u32;
        Self {
            id: format!("s{:016x}", rng.random::<u64>()).into(),
            user_id: format!("u{user:06}"),
            channel: CHANNELS[rng.random_range(0..CHANNELS.len()).min(rng.random_range(0..CHANNELS.len()))],
            turns: 0,
            updates: 0,
            intent: None,
            slots: Vec::new(),
        }
    }
}

/// An endless, reproducible stream of events: the same options give the same bytes, on machines of the same word size.
pub struct Generator {
    options: Options,
    rng: SmallRng,
    ranks: Ranks,
    vectors: Vectors,
    sessions: Vec<Session>,
    /// Sessions from here on have not begun.
    begun: usize,
    /// A place whose session ended; its successor begins with the next session update.
    ended: Option<usize>,
    made: i64,
    text: String,
    vector: Vec<u8>,
}

impl Generator {
    /// Prepares the sessions.
    pub fn new(options: Options) -> Self {
        let mut rng = SmallRng::seed_from_u64(options.seed);
        let sessions: Vec<_> = (0..options.sessions.max(1)).map(|_| Session::new(options.users, &mut rng)).collect();
        Self {
            ranks: Ranks::new(INTENTS.len()),
            vectors: Vectors::new(options.dimensions.max(1)),
            // Without session updates there is nothing to wait for.
            begun: if options.mix.sessions == 0 { sessions.len() } else { 0 },
            sessions,
            ended: None,
            made: 0,
            text: String::new(),
            vector: Vec::new(),
            rng,
            options,
        }
    }

    /// The next event.
    pub fn make(&mut self) -> Event {
        let at_us = self.options.start_us.saturating_add(self.made.saturating_mul(self.options.gap_us));
        self.made += 1;
        let lane = match self.options.mix.draw(&mut self.rng) {
            // Nobody can talk before a session has begun.
            _ if self.begun == 0 => Lane::Sessions,
            lane => lane,
        };
        let event_id = event_id(at_us, &mut self.rng);
        let mut body = Vec::with_capacity(BODY_BYTES);
        let session_id = match lane {
            Lane::Interactions => self.interaction(event_id, at_us, &mut body),
            Lane::Sessions => self.session_update(event_id, at_us, &mut body),
            Lane::Embeddings | Lane::Archive => self.embedding(event_id, at_us, &mut body),
        };
        Event { lane, session_id, at_us, body, poison: None }
    }

    /// A session that somebody is talking in.
    fn talking(&mut self) -> usize {
        let open = self.begun;
        let place = self.rng.random_range(0..open);
        if self.ended == Some(place) { (place + 1) % open } else { place }
    }

    /// Lets somebody say something: the intent's index, with the words in `text`.
    fn speak(&mut self, place: usize) -> usize {
        let intent = self.ranks.draw(&mut self.rng);
        let session = &mut self.sessions[place];
        utter(&INTENTS[intent], &mut self.rng, &mut self.text, &mut session.slots);
        session.intent = Some(INTENTS[intent].name);
        session.turns += 1;
        intent
    }

    fn interaction(&mut self, event_id: Id, at_us: i64, body: &mut Vec<u8>) -> Arc<str> {
        let place = self.talking();
        let intent = self.speak(place);
        let inline = self.options.inline_embeddings > 0.0 && self.rng.random_bool(self.options.inline_embeddings.min(1.0));
        if inline {
            self.vectors.embed(intent, &self.text, &mut self.vector);
        }
        let (rng, session) = (&mut self.rng, &self.sessions[place]);
        let attributes = (rng.random_ratio(1, 4)).then(|| Attributes {
            device: DEVICES[rng.random_range(0..DEVICES.len())],
            turn: session.turns,
            snr_db: f64::from(rng.random_range(40..350_u32)) / 10.0,
            barge_in: rng.random_ratio(1, 12),
        });
        let confidence = 1.0 - rng.random::<f64>().powi(3) * 0.6;
        let event = Interaction {
            event_id,
            occurred_at: Time(at_us),
            session_id: &session.id,
            user_id: &session.user_id,
            intent: INTENTS[intent].name,
            latency_ms: latency_ms(rng),
            confidence: (confidence * 1_000.0).round() / 1_000.0,
            channel: session.channel,
            locale: INTENTS[intent].locale,
            transcript: &self.text,
            attributes,
            embedding: inline.then_some(Numbers(&self.vector)),
        };
        encode(self.options.format, &event, body);
        Arc::clone(&session.id)
    }

    fn session_update(&mut self, event_id: Id, at_us: i64, body: &mut Vec<u8>) -> Arc<str> {
        let place = if let Some(place) = self.ended.take() {
            self.sessions[place] = Session::new(self.options.users, &mut self.rng);
            place
        } else if self.begun < self.sessions.len() {
            self.begun += 1;
            self.begun - 1
        } else {
            self.talking()
        };
        let status = if self.sessions[place].updates == 0 {
            "started"
        } else {
            self.speak(place);
            if self.rng.random_ratio(1, UPDATES_A_SESSION) {
                self.ended = Some(place);
                "ended"
            } else {
                "updated"
            }
        };
        let session = &mut self.sessions[place];
        let event = SessionUpdate {
            event_id,
            occurred_at: Time(at_us),
            session_id: &session.id,
            user_id: &session.user_id,
            status,
            seq: session.updates,
            state: State {
                active_intent: session.intent,
                channel: session.channel,
                turns: session.turns,
                slots: Slots(&session.slots),
            },
        };
        encode(self.options.format, &event, body);
        session.updates += 1;
        Arc::clone(&session.id)
    }

    fn embedding(&mut self, event_id: Id, at_us: i64, body: &mut Vec<u8>) -> Arc<str> {
        let place = self.talking();
        let intent = self.speak(place);
        self.vectors.embed(intent, &self.text, &mut self.vector);
        body.reserve(self.vector.len());
        let session = &self.sessions[place];
        let mut id = Uuid::encode_buffer();
        let event = Vector {
            id: event_id.0.as_hyphenated().encode_lower(&mut id),
            event_id,
            occurred_at: Time(at_us),
            embedding: Numbers(&self.vector),
            document: &self.text,
            metadata: IntentMetadata { intent: INTENTS[intent].name, locale: INTENTS[intent].locale, turn: session.turns },
            session_id: &session.id,
            user_id: Some(&session.user_id),
        };
        encode(self.options.format, &event, body);
        Arc::clone(&session.id)
    }
}

impl Iterator for Generator {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        Some(self.make())
    }
}

/// A UUID of version 7 out of the event's own time and seeded bits.
fn event_id(at_us: i64, rng: &mut SmallRng) -> Id {
    let ms = at_us.div_euclid(1_000).max(0).cast_unsigned();
    let (high, low): (u16, u64) = (rng.random(), rng.random());
    let mut random = [0; 10];
    random[..2].copy_from_slice(&high.to_be_bytes());
    random[2..].copy_from_slice(&low.to_be_bytes());
    Id(uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid())
}

/// Lognormal, to a tenth.
fn latency_ms(rng: &mut SmallRng) -> f64 {
    // Box-Muller; 1 − u keeps the logarithm away from 0.
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    let normal = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    (LATENCY_MEDIAN_MS * (LATENCY_SIGMA * normal).exp() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests;

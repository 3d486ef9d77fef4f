//! Backlogs, written as fast as one connection takes them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use aegis_ingest::traffic::{Generator, Mix, Options};
use anyhow::{Context as _, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::stage::now_ms;

const WORDS: [&str; 18] = [
    "play", "the", "next", "song", "in", "kitchen", "turn", "off", "lights", "what", "is", "weather", "tomorrow", "set", "timer",
    "for", "ten", "minutes",
];
/// Bytes a write.
const PIECE: usize = 256 * 1024;

fn text(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        len @ 0..=31 => out.push(0xa0 | len as u8),
        len => out.extend_from_slice(&[0xd9, len.min(255) as u8]),
    }
    out.extend_from_slice(text.as_bytes());
}

fn number(out: &mut Vec<u8>, number: f64) {
    out.push(0xcb);
    out.extend_from_slice(&number.to_be_bytes());
}

/// An interaction's identity, for those who look for it.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `event_id`.
    pub id: [u8; 16],
    /// `occurred_at`, Unix ms.
    pub at_ms: u64,
}

/// Makes interactions of the shape that the Python filler writes: nine keys, ids of version 7, and everything but the times
/// out of a seed.
pub struct Interactions {
    rng: SmallRng,
    words: String,
}

impl Interactions {
    /// Everything follows from the seed.
    pub fn new(seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), words: String::new() }
    }

    /// Appends one event as `MessagePack`.
    pub fn make(&mut self, at_ms: u64, out: &mut Vec<u8>) -> Key {
        use std::fmt::Write as _;
        let rng = &mut self.rng;
        let mut id: [u8; 16] = rng.random();
        id[..6].copy_from_slice(&at_ms.to_be_bytes()[2..]);
        id[6] = id[6] & 0x0f | 0x70;
        id[8] = id[8] & 0x3f | 0x80;
        let mut short = String::with_capacity(16);
        let mut named = |out: &mut Vec<u8>, key: &str, value: std::fmt::Arguments<'_>| {
            short.clear();
            let _ = short.write_fmt(value);
            text(out, key);
            text(out, &short);
        };
        out.push(0x89);
        text(out, "event_id");
        out.extend_from_slice(&[0xc4, 16]);
        out.extend_from_slice(&id);
        text(out, "occurred_at");
        out.push(0xcf);
        out.extend_from_slice(&at_ms.to_be_bytes());
        named(out, "session_id", format_args!("s-{:05}", rng.random_range(0..20_000)));
        named(out, "user_id", format_args!("user-{:05}", rng.random_range(0..50_000)));
        named(out, "intent", format_args!("intent_{}", rng.random_range(0..60)));
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        let normal = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        text(out, "latency_ms");
        number(out, ((5.2 + 0.45 * normal).exp() * 10.0).round() / 10.0);
        text(out, "confidence");
        number(out, (rng.random::<f64>() * 1_000.0).round() / 1_000.0);
        named(out, "channel", format_args!("{}", ["phone", "speaker", "car"][rng.random_range(0..3)]));
        self.words.clear();
        for i in 0..rng.random_range(3..14) {
            if i > 0 {
                self.words.push(' ');
            }
            self.words.push_str(WORDS[rng.random_range(0..WORDS.len())]);
        }
        text(out, "transcript");
        text(out, &self.words);
        Key { id, at_ms }
    }
}

/// Appends the command that writes one entry.
pub fn xadd(stream: &str, payload: &[u8], out: &mut Vec<u8>) {
    // Writing to memory cannot fail.
    let _ = write!(out, "*5\r\n$4\r\nXADD\r\n${}\r\n{stream}\r\n$1\r\n*\r\n$4\r\ndata\r\n${}\r\n", stream.len(), payload.len());
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Writes entries and waits until Redis has taken all.
pub fn send(port: u16, entries: u64, mut make: impl FnMut(&mut Vec<u8>)) -> Result<()> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    let mut answers = socket.try_clone()?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || -> Result<()> {
            // An answer is two lines: the length of the id, and the id.
            let (mut lines, mut bytes) = (0, vec![0; 64 * 1024]);
            while lines < entries * 2 {
                let read = answers.read(&mut bytes)?;
                ensure!(read > 0, "Redis closed the connection");
                if bytes[..read].iter().any(u8::is_ascii_alphabetic) {
                    bail!("Redis refuses: {}", String::from_utf8_lossy(&bytes[..read.min(200)]));
                }
                lines += memchr::memchr_iter(b'\n', &bytes[..read]).count() as u64;
            }
            Ok(())
        });
        let mut out = Vec::with_capacity(PIECE * 2);
        for _ in 0..entries {
            make(&mut out);
            if out.len() >= PIECE {
                socket.write_all(&out)?;
                out.clear();
            }
        }
        socket.write_all(&out)?;
        reader.join().ok().context("the reader of answers")?
    })
}

/// A backlog of interactions whose times rise by 1 ms an event and end now.
pub fn interactions(port: u16, stream: &str, events: u64, events_per_entry: u64, seed: u64) -> Result<()> {
    let (mut source, mut payload) = (Interactions::new(seed), Vec::new());
    let (mut at_ms, mut left) = (now_ms() - events, events);
    send(port, events.div_ceil(events_per_entry), |out| {
        payload.clear();
        let here = left.min(events_per_entry);
        if events_per_entry > 1 {
            payload.push(0xdc);
            payload.extend_from_slice(&(here as u16).to_be_bytes());
        }
        for _ in 0..here {
            source.make(at_ms, &mut payload);
            at_ms += 1;
        }
        left -= here;
        xadd(stream, &payload, out);
    })
}

/// Events of the traffic library, one an entry; `each` sees every one.
pub fn traffic(port: u16, stream: &str, events: u64, mix: Mix, seed: u64, mut each: impl FnMut(&[u8])) -> Result<()> {
    let start_us = (now_ms() - events).cast_signed() * 1_000;
    let mut generator = Generator::new(Options { seed, start_us, mix, ..Options::default() });
    send(port, events, |out| {
        let event = generator.make();
        each(&event.body);
        xadd(stream, &event.body, out);
    })
}

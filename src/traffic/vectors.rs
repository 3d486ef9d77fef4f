//! Stand-ins for sentence vectors: a sentence always has the same one, sentences of one intent lie close together, and intents
//! of one domain closer than others. The seed of the traffic plays no part, as it plays none in a real model.

use super::speech::{INTENTS, Intent};

/// Length of the part that tells sentences of one intent apart, beside a centre of length 1: cosine 0.8 within an intent, 0.3
/// within a domain and 0 elsewhere, about what sentence models give.
const SPREAD: f32 = 0.5;
const DOMAIN_SHARE: f32 = 0.6;

/// The centres of all intents.
pub(super) struct Vectors {
    centres: Vec<Vec<f32>>,
    scratch: Vec<f32>,
}

impl Vectors {
    pub(super) fn new(dimensions: usize) -> Self {
        let centre = |intent: &Intent| {
            let domain = direction(hash(intent.domain()), dimensions);
            let own = direction(hash(intent.name), dimensions);
            let own_share = (1.0 - DOMAIN_SHARE * DOMAIN_SHARE).sqrt();
            domain.iter().zip(&own).map(|(domain, own)| DOMAIN_SHARE * domain + own_share * own).collect()
        };
        Self { centres: INTENTS.iter().map(centre).collect(), scratch: vec![0.0; dimensions] }
    }

    /// Replaces `out` by the unit vector of a sentence, little-endian float32.
    pub(super) fn embed(&mut self, intent: usize, sentence: &str, out: &mut Vec<u8>) {
        noise(hash(sentence), SPREAD, &mut self.scratch);
        for (value, centre) in self.scratch.iter_mut().zip(&self.centres[intent]) {
            *value += centre;
        }
        normalize(&mut self.scratch);
        out.clear();
        out.extend(self.scratch.iter().flat_map(|value| value.to_le_bytes()));
    }
}

fn direction(seed: u64, dimensions: usize) -> Vec<f32> {
    let mut values = vec![0.0; dimensions];
    noise(seed, 1.0, &mut values);
    normalize(&mut values);
    values
}

/// Uniform noise of about the given length.
fn noise(seed: u64, length: f32, values: &mut [f32]) {
    // A uniform value between -a and a has variance a²/3.
    let scale = length * (3.0 / values.len() as f32).sqrt() / 32_768.0;
    let mut state = seed;
    for four in values.chunks_mut(4) {
        let mut bits = split_mix(&mut state);
        for value in four {
            *value = f32::from((bits as u16).cast_signed()) * scale;
            bits >>= 16;
        }
    }
}

fn normalize(values: &mut [f32]) {
    // Eight sums side by side: one sum in sequence would cost more than all the rest of an event.
    let mut sums = [0.0_f32; 8];
    let (eights, rest) = values.as_chunks::<8>();
    for eight in eights {
        for (sum, value) in sums.iter_mut().zip(eight) {
            *sum += value * value;
        }
    }
    let total: f32 = sums.iter().chain(&rest.iter().map(|value| value * value).collect::<Vec<_>>()).sum();
    if total > 0.0 {
        let factor = total.sqrt().recip();
        for value in values {
            *value *= factor;
        }
    } else if let Some(first) = values.first_mut() {
        *first = 1.0;
    }
}

/// FNV-1a, finished by one round of `SplitMix64` since it mixes short texts poorly.
fn hash(text: &str) -> u64 {
    let mut state =
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    split_mix(&mut state)
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bits = *state;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_of_the_same_intent_and_vectors_have_length_one() {
        let mut vectors = Vectors::new(384);
        let mut embed = |intent: usize, sentence: &str| {
            let mut bytes = Vec::new();
            vectors.embed(intent, sentence, &mut bytes);
            bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect::<Vec<_>>()
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (play, play_too, light) = (embed(0, "play queen"), embed(0, "play abba"), embed(1, "lights on"));
        assert!((dot(&play, &play) - 1.0).abs() < 1e-5);
        assert!(dot(&play, &play_too) > 0.6, "{}", dot(&play, &play_too));
        assert!(dot(&play, &light) < 0.3, "{}", dot(&play, &light));
        assert_eq!(play, embed(0, "play queen"));
    }
}

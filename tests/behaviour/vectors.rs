//! The vectors of `embeddings-dev` arrive in Chroma, and their neighbours are found.

use aegis_ingest::config::Space as Distance;
use serde_json::json;

use crate::support::msgpack::Mp;
use crate::support::timeline::{data_folder, lines};
use crate::support::{LONG, Space, Worker, send, stores};

const COUNT: usize = 5_000;
const DIMENSION: usize = 384;
/// Vectors an entry: 16 of them are some 27 kB.
const PACK: usize = 16;

struct Sentence {
    id: String,
    session_id: String,
    user_id: String,
    turn: i64,
    line: usize,
    text: String,
    vector: Vec<f32>,
    at_ms: i64,
}

fn sentences(test: &str) -> Option<Vec<Sentence>> {
    let folder = data_folder(test)?;
    let spoken: Vec<_> = lines(&folder.join("dialogues-dev.jsonl.gz")).collect();
    let bytes = std::fs::read(folder.join("embeddings-dev.f32")).unwrap();
    let numbers: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
    let start_ms = send::now_ms() - 3_600_000;
    let all: Vec<_> = lines(&folder.join("embeddings-dev.ids.jsonl"))
        .zip(numbers.chunks(DIMENSION))
        .map(|(line, vector)| {
            let number = line["seq"].as_u64().unwrap() as usize;
            Sentence {
                id: line["id"].as_str().unwrap().to_owned(),
                session_id: line["session_id"].as_str().unwrap().to_owned(),
                user_id: spoken[number]["user_id"].as_str().unwrap().to_owned(),
                turn: line["turn"].as_i64().unwrap(),
                line: number,
                text: spoken[number]["transcript"].as_str().unwrap().to_owned(),
                vector: vector.to_vec(),
                at_ms: start_ms + number as i64,
            }
        })
        .collect();
    assert_eq!(all.len(), COUNT);
    Some(all)
}

fn event(sentence: &Sentence) -> Mp {
    Mp::map([
        ("id", Mp::str(&sentence.id)),
        ("session_id", Mp::str(&sentence.session_id)),
        ("user_id", Mp::str(&sentence.user_id)),
        ("occurred_at", Mp::Int(sentence.at_ms)),
        ("document", Mp::str(&sentence.text)),
        ("embedding", Mp::vector(&sentence.vector)),
        ("metadata", Mp::map([("turn", Mp::Int(sentence.turn))])),
        ("line", Mp::Int(sentence.line as i64)),
    ])
}

async fn arrive(test: &str, distance: Distance, equal: impl Fn(f32, f32) -> bool) {
    let Some(sentences) = sentences(test) else { return };
    let mut space = Space::new(test).await;
    space.distance = distance;
    let worker = Worker::start(&space, &[("AEGIS_LANES", "embeddings")]);
    let mut redis = space.redis().await;
    let entries: Vec<_> =
        sentences.chunks(PACK).map(|pack| send::data_entry(Mp::Array(pack.iter().map(event).collect()).bytes())).collect();
    send::many(&mut redis, &space.stream("embeddings"), &entries).await;
    worker.ready().await;
    worker.settled(&space, &["embeddings"], LONG).await;
    assert_eq!(stores::dead_letters(&mut redis, &space.dead("embeddings")).await, []);

    let chroma = space.chroma();
    let collection = chroma.collection(&space.collection).await.unwrap().expect("the collection");
    assert_eq!((collection.dimension, collection.space), (Some(DIMENSION), Some(distance)));
    assert_eq!(chroma.count(collection.id).await.unwrap(), COUNT as u64);
    let ids: Vec<_> = sentences.iter().map(|sentence| sentence.id.as_str()).collect();
    let records = stores::records(&chroma, &space.collection, &ids).await;
    for sentence in &sentences {
        let record = &records[&sentence.id];
        assert_eq!(record.document.as_deref(), Some(sentence.text.as_str()));
        let wanted = json!({
            "turn": sentence.turn, "line": sentence.line, "session_id": sentence.session_id, "user_id": sentence.user_id,
            "occurred_at": sentence.at_ms,
        });
        assert_eq!(record.metadata.as_ref(), wanted.as_object());
        assert_eq!(record.embedding.len(), DIMENSION);
        for (found, sent) in record.embedding.iter().zip(&sentence.vector) {
            assert!(equal(*found, *sent), "{}: {found} for {sent}", sentence.id);
        }
    }
    for sentence in sentences.iter().step_by(COUNT / 100) {
        let nearest = chroma.query(collection.id, &sentence.vector, 1).await.unwrap();
        let nearest = nearest.first().expect("a neighbour");
        // The model is uncased: texts that differ in case alone have equal vectors.
        let text = nearest.document.as_deref().unwrap_or_default();
        assert!(nearest.id == sentence.id || text.to_lowercase() == sentence.text.to_lowercase(), "{}: {nearest:?}", sentence.id);
    }
}

#[tokio::test]
async fn arrive_within_a_millionth_in_cosine_space() {
    arrive("vectors_cosine", Distance::Cosine, |found, sent| (found - sent).abs() <= 1e-6).await;
}

#[tokio::test]
async fn arrive_to_the_last_bit_in_l2_space() {
    arrive("vectors_l2", Distance::L2, |found, sent| found.to_bits() == sent.to_bits()).await;
}

//! Dead letters: looked at, sent back to their stream, dropped.
//!
//! **Architecture invariant:** a dead letter leaves its stream in the same step in which its event is back where the workers
//! read, or because a person said so. It is never on its way between the two.

use ::redis::Pipeline;

use super::reply::ORIGIN_FIELD;
use super::{Redis, RedisError, query};
use crate::config::Streams;
use crate::seam::{EntryId, ReplayOrigin};

/// Letters a page at most.
const PAGE_MAX: usize = 500;
/// A page ends with the letter that takes it past this many bytes: a letter may be as large as the largest entry.
const PAGE_BYTES: usize = 4 << 20;
/// Ids of one XDEL, letters of one pipeline.
const CHUNK_MAX: usize = 100;
/// Names of the fields that the worker adds, in their order.
const OURS: [&[u8]; 6] = [b"src", b"src_id", b"index", b"code", b"reason", b"failed_at"];

/// Reads a page one letter at a time, so that neither server nor client holds more than the bound; on request without what the
/// letters carry.
const PAGE: &str = "#!lua flags=no-writes
local from, page, bytes = ARGV[1], {}, 0
while #page < tonumber(ARGV[4]) and bytes < tonumber(ARGV[5]) do
  local found = redis.call(ARGV[3], KEYS[1], from, ARGV[2], 'COUNT', 1)[1]
  if not found then break end
  local fields, size = found[2], 0
  for i = 1, #fields do size = size + #fields[i] end
  if ARGV[6] == '0' then
    if #fields == 14 and fields[1] == 'src' and fields[3] == 'src_id' then
      fields[14] = ''
    elseif #fields > 12 then
      local ours = {}
      for i = #fields - 11, #fields do ours[#ours+1] = fields[i] end
      fields = ours
    end
    bytes = bytes + 256
  else
    bytes = bytes + size
  end
  page[#page+1] = {found[1], size, fields}
  from = '(' .. found[1]
end
return page
";

/// Puts an event back and removes its dead letter. Only who still finds the letter does either: two replays at once, or one
/// whose answer was lost, put it back once. The letter goes last, so that an XADD that is refused leaves it where it is.
const REPLAY: &str = "#!lua
if not redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])[1] then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
redis.call('XDEL', KEYS[2], ARGV[1])
return 1
";

/// What a dead letter keeps of its event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Field `data`.
    MessagePack(Vec<u8>),
    /// Field `json`.
    Json(Vec<u8>),
    /// The fields of the entry as they were; none when the entry was deleted before it was set aside.
    Entry(Vec<(Vec<u8>, Vec<u8>)>),
}

/// One dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Its own id; the milliseconds are the time at which it was set aside, by Redis's clock.
    pub id: EntryId,
    /// Bytes of all its field names and values.
    pub bytes: u64,
    /// Where the event first stood; `None`: somebody else wrote this entry.
    pub origin: Option<ReplayOrigin>,
    /// Why, for machines; empty when somebody else wrote it.
    pub code: String,
    /// Why, in a sentence.
    pub reason: String,
    /// RFC 3339, by the worker's clock.
    pub failed_at: String,
    /// The event as it came; without its content on pages that were asked for without.
    pub kept: Kept,
}

impl Letter {
    /// From the fields of an entry of a dead-letter stream. Those that the worker adds come first when an event follows, and
    /// last when an entry's own fields precede them.
    fn parse(id: EntryId, bytes: u64, mut fields: Vec<Vec<u8>>) -> Self {
        let is_ours = |at: usize, fields: &[Vec<u8>]| {
            fields.get(at..at + 12).is_some_and(|ours| OURS.iter().zip(ours.chunks(2)).all(|(name, pair)| pair[0] == *name))
        };
        let texts = |at: usize, fields: &[Vec<u8>]| -> [String; 6] {
            std::array::from_fn(|i| String::from_utf8_lossy(&fields[at + 2 * i + 1]).into_owned())
        };
        let last = fields.len().saturating_sub(12);
        let (ours, kept) = if fields.len() == 14 && is_ours(0, &fields) && matches!(fields[12].as_slice(), b"data" | b"json") {
            let ours = texts(0, &fields);
            let payload = std::mem::take(&mut fields[13]);
            (Some(ours), if fields[12] == b"data" { Kept::MessagePack(payload) } else { Kept::Json(payload) })
        } else if is_ours(last, &fields) {
            let ours = texts(last, &fields);
            fields.truncate(last);
            (Some(ours), Kept::Entry(pairs(fields)))
        } else {
            (None, Kept::Entry(pairs(fields)))
        };
        let [stream, entry, index, code, reason, failed_at] = ours.unwrap_or_default();
        let origin = entry.parse().ok().zip(index.parse().ok()).map(|(id, index)| ReplayOrigin { stream, id, index });
        Self { id, bytes, origin, code, reason, failed_at, kept }
    }

    /// The fields of the entry with which the event goes back; `None` when there is nothing to put back.
    fn replayed(&self) -> Option<Vec<(&[u8], Vec<u8>)>> {
        let origin = self.origin.as_ref()?.to_string();
        let mut fields: Vec<(&[u8], Vec<u8>)> = match &self.kept {
            Kept::MessagePack(payload) => vec![(b"data", payload.clone())],
            Kept::Json(payload) => vec![(b"json", payload.clone())],
            // An entry that was a replay itself brought the field along; the letter names the same place.
            Kept::Entry(own) => (own.iter())
                .filter(|(name, _)| name != ORIGIN_FIELD.as_bytes())
                .map(|(name, value)| (name.as_slice(), value.clone()))
                .collect(),
        };
        if fields.is_empty() {
            return None;
        }
        fields.push((ORIGIN_FIELD.as_bytes(), origin.into_bytes()));
        Some(fields)
    }
}

fn pairs(fields: Vec<Vec<u8>>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut fields = fields.into_iter();
    std::iter::from_fn(|| Some((fields.next()?, fields.next().unwrap_or_default()))).collect()
}

/// Ids from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First.
    pub from: EntryId,
    /// Last.
    pub until: EntryId,
}

/// Which way, and how much of each letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Whole letters, oldest first.
    Whole,
    /// Oldest first, without what they carry.
    HeadsOldestFirst,
    /// Newest first, without what they carry.
    HeadsNewestFirst,
}

/// The dead letters of one stream, a page of at most 500 letters and some 4 MiB at a time.
pub struct Pages {
    redis: Redis,
    dead_key: String,
    order: Order,
    from: String,
    to: String,
}

impl Pages {
    /// Those of `stream` within `range`.
    pub fn new(redis: &Redis, stream: &str, range: Range, order: Order) -> Self {
        let (from, to) = match order {
            Order::Whole | Order::HeadsOldestFirst => (range.from, range.until),
            Order::HeadsNewestFirst => (range.until, range.from),
        };
        let (from, to) = (from.to_string(), to.to_string());
        Self { redis: redis.clone(), dead_key: Streams::dead(stream), order, from, to }
    }

    /// The next page; empty: that was all.
    ///
    /// # Errors
    /// Redis is away or refuses.
    pub async fn next(&mut self) -> Result<Vec<Letter>, RedisError> {
        let (command, whole) = match self.order {
            Order::Whole => ("XRANGE", 1),
            Order::HeadsOldestFirst => ("XRANGE", 0),
            Order::HeadsNewestFirst => ("XREVRANGE", 0),
        };
        let mut eval = ::redis::cmd("EVAL");
        eval.arg(PAGE).arg(1).arg(&self.dead_key).arg(&self.from).arg(&self.to).arg(command);
        eval.arg(PAGE_MAX).arg(PAGE_BYTES).arg(whole);
        let page: Vec<(String, u64, Vec<Vec<u8>>)> = query(&self.redis, &self.dead_key, &eval).await?;
        if let Some((last, ..)) = page.last() {
            self.from = format!("({last}");
        }
        let letters = page.into_iter().filter_map(|(id, bytes, fields)| Some(Letter::parse(id.parse().ok()?, bytes, fields)));
        Ok(letters.collect())
    }
}

/// Id of the newest dead letter of a stream; `None`: there is none.
///
/// # Errors
/// Redis is away or refuses.
pub async fn newest(redis: &Redis, stream: &str) -> Result<Option<EntryId>, RedisError> {
    let everything = Range { from: EntryId::default(), until: EntryId { ms: u64::MAX, seq: u64::MAX } };
    let mut eval = ::redis::cmd("EVAL");
    eval.arg(PAGE).arg(1).arg(Streams::dead(stream)).arg(everything.until.to_string()).arg(everything.from.to_string());
    eval.arg("XREVRANGE").arg(1).arg(PAGE_BYTES).arg(0);
    let page: Vec<(String, ::redis::Value, ::redis::Value)> = query(redis, stream, &eval).await?;
    Ok(page.first().and_then(|(id, ..)| id.parse().ok()))
}

/// One dead letter of a stream, whole.
///
/// # Errors
/// Redis is away or refuses.
pub async fn get(redis: &Redis, stream: &str, id: EntryId) -> Result<Option<Letter>, RedisError> {
    let page = Pages::new(redis, stream, Range { from: id, until: id }, Order::Whole).next().await?;
    Ok(page.into_iter().next())
}

/// What became of letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Put back, or dropped.
    pub done: u64,
    /// Gone before their turn came: somebody else was faster.
    pub gone: u64,
    /// Left where they are: they hold nothing that could be put back.
    pub empty: u64,
}

/// Puts events back into `stream` with the field that keeps their identity, and removes their dead letters, each in one step.
///
/// They go to the stream whose dead letters they are and not to the one that a letter names: that name may stem from a
/// producer's `aegis-origin`, and nobody chooses a key of ours to write to.
///
/// # Errors
/// Redis is away or refuses; what was done until then is in `outcome`, except where the answer was lost.
pub async fn replay(redis: &Redis, stream: &str, letters: &[Letter], outcome: &mut Outcome) -> Result<(), RedisError> {
    let dead_key = Streams::dead(stream);
    for letters in letters.chunks(CHUNK_MAX) {
        let mut pipeline = Pipeline::new();
        pipeline.ignore_errors();
        for letter in letters {
            let Some(fields) = letter.replayed() else {
                outcome.empty += 1;
                continue;
            };
            let command = pipeline.cmd("EVAL").arg(REPLAY).arg(2).arg(stream).arg(&dead_key).arg(letter.id.to_string());
            for (name, value) in fields {
                command.arg(name).arg(value);
            }
        }
        if pipeline.is_empty() {
            continue;
        }
        let answers: Vec<::redis::RedisResult<u64>> = super::pipeline(redis, stream, &pipeline).await?;
        let mut refused = None;
        for answer in answers {
            match answer {
                Ok(0) => outcome.gone += 1,
                Ok(_) => outcome.done += 1,
                Err(error) => refused = Some(RedisError::from(&error)),
            }
        }
        if let Some(error) = refused {
            return Err(error);
        }
    }
    Ok(())
}

/// Removes dead letters for good.
///
/// # Errors
/// Redis is away or refuses; what was done until then is in `outcome`, except where the answer was lost.
pub async fn drop_letters(redis: &Redis, stream: &str, ids: &[EntryId], outcome: &mut Outcome) -> Result<(), RedisError> {
    for ids in ids.chunks(CHUNK_MAX) {
        let mut command = ::redis::cmd("XDEL");
        command.arg(Streams::dead(stream));
        for id in ids {
            command.arg(id.to_string());
        }
        let dropped: u64 = query(redis, stream, &command).await?;
        outcome.done += dropped;
        outcome.gone += (ids.len() as u64).saturating_sub(dropped);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: EntryId = EntryId { ms: 7, seq: 1 };

    fn fields(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    fn ours() -> Vec<&'static str> {
        vec![
            "src",
            "aegis:sessions",
            "src_id",
            "5-2",
            "index",
            "3",
            "code",
            "invalid_field",
            "reason",
            "no",
            "failed_at",
            "2026-11-22T00:00:00Z",
        ]
    }

    fn origin() -> ReplayOrigin {
        ReplayOrigin { stream: "aegis:sessions".to_owned(), id: EntryId { ms: 5, seq: 2 }, index: 3 }
    }

    #[test]
    fn an_event_follows_our_fields() {
        let letter = Letter::parse(ID, 9, fields(&[ours(), vec!["json", "{}"]].concat()));
        assert_eq!(letter.kept, Kept::Json(b"{}".to_vec()));
        assert_eq!((letter.origin.clone(), letter.code.as_str()), (Some(origin()), "invalid_field"));
        let replayed = letter.replayed().unwrap();
        assert_eq!(replayed[0], (b"json".as_slice(), b"{}".to_vec()));
        assert_eq!(replayed[1], (b"aegis-origin".as_slice(), b"aegis:sessions 5-2 3".to_vec()));
    }

    #[test]
    fn an_entry_precedes_our_fields_even_when_it_imitates_them() {
        for own in
            [vec!["a", "b"], vec!["src", "x"], ours(), vec!["data", "1", "json", "2"], [ours(), vec!["data", "x"]].concat()]
        {
            let letter = Letter::parse(ID, 9, fields(&[own.clone(), ours()].concat()));
            assert_eq!(letter.kept, Kept::Entry(pairs(fields(&own))), "{own:?}");
            assert_eq!(letter.origin, Some(origin()));
            assert_eq!(letter.replayed().unwrap().len(), own.len() / 2 + 1);
        }
    }

    #[test]
    fn a_replayed_entry_that_fails_again_has_one_origin() {
        let letter = Letter::parse(ID, 9, fields(&[vec!["x", "y", "aegis-origin", "aegis:sessions 5-2 3"], ours()].concat()));
        let replayed = letter.replayed().unwrap();
        assert_eq!(replayed.iter().filter(|(name, _)| *name == b"aegis-origin").count(), 1);
    }

    #[test]
    fn nothing_and_strangers_are_not_put_back() {
        assert_eq!(Letter::parse(ID, 9, fields(&ours())).replayed(), None);
        let stranger = Letter::parse(ID, 9, fields(&["hello", "world"]));
        assert_eq!((stranger.origin.as_ref(), stranger.replayed()), (None, None));
        assert_eq!(Letter::parse(ID, 0, Vec::new()).kept, Kept::Entry(Vec::new()));
    }
}

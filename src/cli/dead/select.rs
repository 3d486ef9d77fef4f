//! Which dead letters are meant.

use anyhow::bail;

use super::super::check::explained;
use super::super::when::{When, when};
use crate::config::{Config, Lane};
use crate::event::Code;
use crate::redis::Redis;
use crate::redis::dead::{self, Letter, Range};
use crate::seam::EntryId;

/// Where to look.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct Place {
    /// Only dead letters of these lanes [default: all that are configured]
    #[arg(long = "lane", value_name = "LANE", value_delimiter = ',')]
    lanes: Vec<Lane>,
    /// Only those of this partition, from 0 on
    #[arg(long, value_name = "N")]
    partition: Option<u16>,
}

impl Place {
    /// The streams whose dead letters are meant, with their lanes.
    pub(super) fn streams(&self, config: &Config) -> anyhow::Result<Vec<(Lane, String)>> {
        let partitions = config.streams.partitions;
        if let Some(partition) = self.partition
            && partition >= partitions
        {
            bail!("--partition {partition}: AEGIS_PARTITIONS is {partitions}, so 0 to {} is what there is", partitions - 1);
        }
        let lanes = if self.lanes.is_empty() { &config.lanes } else { &self.lanes };
        let lanes: Vec<_> = lanes.iter().map(|lane| lane.source()).collect();
        let mut streams = Vec::new();
        for lane in Lane::PRODUCED.into_iter().filter(|lane| lanes.contains(lane)) {
            let partitions = self.partition.map_or(0..partitions, |partition| partition..partition + 1);
            streams.extend(partitions.map(|partition| (lane, config.streams.key(lane, partition))));
        }
        Ok(streams)
    }
}

/// Which of them.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct Filter {
    /// Only dead letters with one of these codes, separated by commas
    #[arg(long = "code", value_name = "CODE", value_delimiter = ',', value_parser = code)]
    codes: Vec<Code>,
    /// Only those set aside at this time or later: RFC 3339, or a duration such as 2h, which is that long ago
    #[arg(long, value_name = "TIME", value_parser = when)]
    since: Option<When>,
    /// Only those set aside at this time or earlier
    #[arg(long, value_name = "TIME", value_parser = when)]
    until: Option<When>,
}

impl Filter {
    /// The ids within which they stand, given the newest that is there.
    pub(super) fn range(&self, newest: EntryId, now_ms: u64) -> Range {
        let from = EntryId { ms: self.since.map_or(0, |since| since.ms(now_ms)), seq: 0 };
        let until = EntryId { ms: self.until.map_or(u64::MAX, |until| until.ms(now_ms)), seq: u64::MAX };
        Range { from, until: until.min(newest) }
    }

    /// Whether a letter within the range is meant.
    pub(super) fn takes(&self, letter: &Letter) -> bool {
        self.codes.is_empty() || self.codes.iter().any(|code| code.name() == letter.code)
    }

    /// Whether it leaves anything out.
    pub(super) fn is_narrow(&self) -> bool {
        !self.codes.is_empty() || self.since.is_some() || self.until.is_some()
    }
}

fn code(text: &str) -> Result<Code, String> {
    Code::ALL.into_iter().find(|code| code.name() == text).ok_or_else(|| {
        let names: Vec<_> = Code::ALL.into_iter().map(Code::name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Reads the id of a dead letter.
pub(super) fn id(text: &str) -> Result<EntryId, String> {
    text.parse().map_err(|()| "expected an id such as 1763820000000-0, as `dead list` shows them".to_owned())
}

/// The streams that hold a dead letter of that id.
pub(super) async fn holders(
    redis: &Redis,
    streams: &[(Lane, String)],
    id: EntryId,
) -> anyhow::Result<Vec<(Lane, String, Letter)>> {
    let mut holders = Vec::new();
    for (lane, stream) in streams {
        if let Some(letter) = dead::get(redis, stream, id).await.map_err(|error| explained(&error))? {
            holders.push((*lane, stream.clone(), letter));
        }
    }
    Ok(holders)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Given;

    fn config() -> Config {
        Config::load(&Given::from_pairs([("AEGIS_LANES", "sessions"), ("AEGIS_PARTITIONS", "2")])).unwrap()
    }

    #[test]
    fn a_range_ends_with_the_newest_letter() {
        let newest = EntryId { ms: 5_000, seq: 3 };
        let filter = Filter { since: Some(When::Ago(1_000)), until: None, codes: Vec::new() };
        assert_eq!(filter.range(newest, 4_000), Range { from: EntryId { ms: 3_000, seq: 0 }, until: newest });
        let filter = Filter { since: None, until: Some(When::At(4_500)), codes: Vec::new() };
        assert_eq!(filter.range(newest, 0).until, EntryId { ms: 4_500, seq: u64::MAX });
    }

    #[test]
    fn codes_are_known_words() {
        assert_eq!(code("too_large"), Ok(Code::TooLarge));
        assert!(code("huge").unwrap_err().contains("too_large"));
    }

    #[test]
    fn streams_are_those_of_the_lanes_unless_said() {
        let keys =
            |place: Place| place.streams(&config()).map(|streams| streams.into_iter().map(|(_, key)| key).collect::<Vec<_>>());
        assert_eq!(keys(Place::default()).unwrap(), ["aegis:sessions:{0}", "aegis:sessions:{1}"]);
        let place = Place { lanes: vec![Lane::Embeddings], partition: Some(1) };
        assert_eq!(keys(place).unwrap(), ["aegis:embeddings:{1}"]);
        assert!(keys(Place { lanes: Vec::new(), partition: Some(2) }).unwrap_err().to_string().contains("0 to 1"));
    }
}

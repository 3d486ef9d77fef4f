//! The embedding event that an interaction with an inline vector gives rise to.

use serde::{Serialize, Serializer};

use super::{Interaction, Text};

struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

#[derive(Serialize)]
struct Forwarded<'a> {
    id: String,
    event_id: Raw<'a>,
    occurred_at: i64,
    session_id: &'a str,
    user_id: &'a str,
    embedding: Raw<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<&'a str>,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    intent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locale: Option<&'a str>,
}

impl Interaction<'_> {
    /// `MessagePack` of the embedding event, when there is a vector.
    pub fn forwarded(&self) -> Option<Vec<u8>> {
        let vector = self.embedding.as_ref()?;
        let event = Forwarded {
            id: self.head.event_id.to_string(),
            event_id: Raw(self.head.event_id.as_bytes()),
            occurred_at: self.head.occurred_at_us.div_euclid(1000),
            session_id: self.session_id.as_str(),
            user_id: self.user_id.as_str(),
            embedding: Raw(&vector.0),
            document: self.transcript.map(Text::as_str),
            metadata: Metadata {
                intent: self.intent.map(Text::as_str),
                channel: self.channel.map(Text::as_str),
                locale: self.locale.map(Text::as_str),
            },
        };
        // Texts, integers and bytes written to memory: there is no way to fail.
        rmp_serde::to_vec_named(&event).ok()
    }
}

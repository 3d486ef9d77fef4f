//! What can go wrong at this edge, and what to do about each.

use std::time::Duration;

use serde::Deserialize;

use crate::seam::Answer;

/// Characters of a foreign message that are kept.
const MESSAGE_CHARS_MAX: usize = 200;

/// Beginnings of the messages of Chroma 1.5.9 that hold numbers, collection names and database errors, never a document, an id
/// or a metadata value. The messages of its JSON reader are not among them: they quote the value.
const SPEAKABLE: [&str; 14] = [
    "Collection [",
    "Collection expecting embedding with dimension of ",
    "Database error: error returned from database: (code: ",
    "Empty ID",
    "Error executing plan: Error sending backfill request to compactor: ",
    "Error in compaction: ",
    "Inconsistent number of IDs",
    "Non-finite float value at embedding index ",
    "Query error: Database error: error returned from database: (code: ",
    "Tenant [",
    "Database [",
    "Validation error: embeddings: ",
    "Validation error: metadatas: Invalid metadata at index ",
    "Validation error: name: Expected a name containing ",
];

/// An error of Chroma, of the way to it, or of the proxy in front of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChromaError {
    /// No connection: refused, no route, unknown host.
    #[error("Chroma cannot be reached: {0}")]
    Unreachable(String),
    /// One side does not accept the other's certificate or TLS.
    #[error("no TLS with Chroma: {0}")]
    Untrusted(String),
    /// The connection broke before the whole answer was there; the request may have taken effect.
    #[error("the connection to Chroma broke: {0}")]
    Interrupted(String),
    /// No whole answer in time; the request may have taken effect.
    #[error("Chroma did not answer within {0:?}")]
    Timeout(Duration),
    /// 429.
    #[error("Chroma, or the proxy in front of it, asks for a pause (429)")]
    Overloaded,
    /// A fault of the server: 5xx but 501, or a message that says so whatever its status. It may have written all the same.
    #[error("Chroma failed ({status}): {message}")]
    Failed {
        /// HTTP status.
        status: u16,
        /// Its words, as far as they can be shown.
        message: String,
    },
    /// 401 or 403: Chroma itself asks for no token, so it is a proxy that wants another one.
    #[error("the proxy in front of Chroma does not accept AEGIS_CHROMA_TOKEN ({0})")]
    Unauthorized(u16),
    /// 404: the collection was deleted, or the address does not lead to Chroma.
    #[error("Chroma does not know what was asked for (404): {0}")]
    NotFound(String),
    /// 413.
    #[error("the request is too large for Chroma, or for the proxy in front of it (413)")]
    TooLarge,
    /// The collection holds vectors of another dimension.
    #[error("the collection holds vectors of {held} numbers")]
    Dimension {
        /// Its dimension.
        held: usize,
    },
    /// 400, 422 or 501: something in the request is not to Chroma's liking.
    #[error("Chroma refuses the request ({status}): {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words, as far as they can be shown.
        message: String,
    },
    /// Any other status; redirects are not followed.
    #[error("the address of Chroma answers with the unexpected status {status}: {message}")]
    Unexpected {
        /// HTTP status.
        status: u16,
        /// Its words, as far as they can be shown.
        message: String,
    },
    /// An answer with a good status that is not what Chroma answers.
    #[error("the answer is not one of Chroma: {0}")]
    Garbled(&'static str),
    /// The client cannot be made from this configuration.
    #[error("{0}")]
    Unusable(String),
}

#[derive(Deserialize)]
struct Complaint {
    error: String,
    message: String,
}

impl ChromaError {
    /// What to do about it. `SetAside` means: halve the request until the refused event is found.
    pub const fn answer(&self) -> Answer {
        match self {
            Self::Unreachable(_)
            | Self::Untrusted(_)
            | Self::Interrupted(_)
            | Self::Timeout(_)
            | Self::Overloaded
            | Self::Failed { .. }
            | Self::Unauthorized(_)
            | Self::NotFound(_)
            | Self::Unexpected { .. }
            | Self::Garbled(_) => Answer::Wait,
            Self::TooLarge | Self::Dimension { .. } | Self::Refused { .. } => Answer::SetAside,
            Self::Unusable(_) => Answer::Stop,
        }
    }

    /// The error behind a status other than 2xx and the body that came with it, whole or cut off.
    pub(super) fn from_response(status: u16, body: &[u8]) -> Self {
        let complaint = serde_json::from_slice::<Complaint>(body).ok();
        let raw = complaint.as_ref().map_or("", |complaint| complaint.message.as_str());
        let message = complaint.as_ref().map_or_else(|| "no message of Chroma's".to_owned(), speakable);
        // Said of a collection that was deleted while the compactor was at it; it is asked for by name again.
        if status == 404 && raw.contains("Collection [") && raw.ends_with("does not exist.") {
            return Self::NotFound(message);
        }
        if raw.contains("Error in compaction") || raw.contains("backfill request to compactor") {
            return Self::Failed { status, message };
        }
        match status {
            400 if let Some(held) = dimension_held(raw) => Self::Dimension { held },
            400 | 422 | 501 => Self::Refused { status, message },
            401 | 403 => Self::Unauthorized(status),
            404 => Self::NotFound(message),
            413 => Self::TooLarge,
            429 => Self::Overloaded,
            500.. => Self::Failed { status, message },
            _ => Self::Unexpected { status, message },
        }
    }

    /// The error behind a request that brought no whole answer.
    pub(super) fn from_transport(error: &reqwest::Error, timeout: Duration) -> Self {
        if let Some(reason) = crate::tls::mistrust(error) {
            return Self::Untrusted(reason);
        }
        // The innermost cause is the one that tells ("Connection refused"); the outer ones repeat the address.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let cause = shortened(&cause.to_string());
        if error.is_connect() {
            Self::Unreachable(cause)
        } else if error.is_timeout() {
            Self::Timeout(timeout)
        } else if error.is_builder() {
            Self::Unusable(format!("AEGIS_CHROMA_URL or AEGIS_CHROMA_TOKEN cannot be used in a request: {cause}"))
        } else {
            Self::Interrupted(cause)
        }
    }
}

fn speakable(complaint: &Complaint) -> String {
    if SPEAKABLE.iter().any(|beginning| complaint.message.starts_with(beginning)) {
        let shown = complaint.message.split(" Got: ").next().unwrap_or_default();
        return shortened(shown);
    }
    let is_name = (1..=40).contains(&complaint.error.len()) && complaint.error.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_name { complaint.error.clone() } else { "a message that is not shown".to_owned() }
}

fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect()
}

fn dimension_held(message: &str) -> Option<usize> {
    message.strip_prefix("Collection expecting embedding with dimension of ")?.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(error: &str, message: &str) -> Vec<u8> {
        serde_json::json!({ "error": error, "message": message }).to_string().into_bytes()
    }

    #[test]
    fn each_status_has_its_answer() {
        let body = complaint("InvalidArgumentError", "Validation error: metadatas: Invalid metadata at index 0");
        for (status, answer) in [
            (302, Answer::Wait),
            (400, Answer::SetAside),
            (401, Answer::Wait),
            (403, Answer::Wait),
            (404, Answer::Wait),
            (405, Answer::Wait),
            (409, Answer::Wait),
            (413, Answer::SetAside),
            (422, Answer::SetAside),
            (429, Answer::Wait),
            (500, Answer::Wait),
            (501, Answer::SetAside),
            (503, Answer::Wait),
        ] {
            assert_eq!(ChromaError::from_response(status, &body).answer(), answer, "{status}");
            assert_eq!(ChromaError::from_response(status, b"<html>").answer(), answer, "{status} of a proxy");
        }
    }

    #[test]
    fn a_fault_of_the_compactor_is_waited_out_whatever_its_status() {
        for message in [
            "Error in compaction: Failed to apply logs to the hnsw segment writer",
            "Error executing plan: Error sending backfill request to compactor: Failed to apply logs",
        ] {
            for status in [400, 422, 500, 501] {
                assert_eq!(ChromaError::from_response(status, &complaint("InternalError", message)).answer(), Answer::Wait);
            }
        }
    }

    #[test]
    fn a_collection_that_is_gone_is_no_fault_of_the_compactor() {
        let message = "Error in compaction: Error getting collection with segments: Collection [x] does not exist.";
        let error = ChromaError::from_response(404, &complaint("NotFoundError", message));
        assert!(matches!(error, ChromaError::NotFound(_)), "{error}");
    }

    #[test]
    fn the_dimension_is_read_from_the_message() {
        let body = complaint("InvalidArgumentError", "Collection expecting embedding with dimension of 384, got 2");
        assert_eq!(ChromaError::from_response(400, &body), ChromaError::Dimension { held: 384 });
    }

    #[test]
    fn what_a_producer_wrote_is_not_repeated() {
        for message in [
            "Failed to deserialize the JSON body into the target type: documents[0]: invalid type: integer `77123`",
            "Validation error: name: Expected a name containing 3-512 characters. Got: 77123",
            "Something new about 77123",
        ] {
            for (status, error) in [(422, "ChromaError"), (400, "odd 77123"), (500, "InternalError"), (404, "NotFoundError")] {
                let text = ChromaError::from_response(status, &complaint(error, message)).to_string();
                assert!(!text.contains("77123"), "{text}");
            }
        }
        let long = complaint("InternalError", &format!("Error in compaction: {}", "x".repeat(5_000)));
        assert!(ChromaError::from_response(500, &long).to_string().len() < 300);
    }
}

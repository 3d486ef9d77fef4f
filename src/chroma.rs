//! Chroma: vectors with their documents and metadata, over its HTTP interface.
//!
//! [`Vectors`] is the destination of the `embeddings` lane; [`Client`] is what it speaks through, and what `check` and the demo
//! ask. Every way in which Chroma can fail is a [`ChromaError`] with one answer.
//!
//! **Architecture invariant:** nothing that a producer wrote gets into an error text or a log line; Chroma's own messages are
//! let through by the sentence they begin with, since some of them repeat the value that they complain about.

mod client;
mod collections;
mod erase;
mod error;
mod rows;
mod vectors;

pub use client::{Client, Collection, Limits, Neighbour, Record};
pub use erase::{Find, Owned};
pub use error::ChromaError;
pub use rows::Rows;
pub use vectors::Vectors;

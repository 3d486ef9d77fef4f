-- The archive of vectors: every embedding as it went to Chroma, in the order in which it was written to its stream. Filled by
-- workers that serve the lane `archive`; `aegis-ingest embeddings rebuild` reads it back.
--
-- The key begins with the place where the event first stood (entry id and position): the order in which a rebuild upserts, by the
-- same index that makes a redelivered or replayed event one row. The event id alone would not do: an update that a producer sends
-- under the id and time of an earlier event is a second upsert for Chroma, and the later one counts. Vectors come by the thousand
-- a second, not by the hundred thousand, and nearly in this order: the index costs nothing that could be measured beside them.
--
-- metadata is json and not jsonb, which would write 1e16 as 10000000000000000: a rebuilt record has what was sent, to the byte.

CREATE TABLE embedding_log (
    occurred_at  timestamptz NOT NULL,
    event_id     uuid        NOT NULL,
    entry_ms     bigint      NOT NULL,
    entry_seq    bigint      NOT NULL,
    entry_index  integer     NOT NULL,
    collection   text        NOT NULL,
    id           text        NOT NULL,
    embedding    bytea       NOT NULL, -- little-endian float32
    document     text,
    metadata     json,
    session_id   text,
    user_id      text,
    ingested_at  timestamptz NOT NULL DEFAULT now()
);
-- Vectors do not compress: trying costs more than the COPY.
ALTER TABLE embedding_log ALTER COLUMN embedding SET STORAGE EXTERNAL;
SELECT create_hypertable('embedding_log', by_range('occurred_at', interval '1 day'), create_default_indexes => false);
CREATE UNIQUE INDEX embedding_log_key ON embedding_log (entry_ms, entry_seq, entry_index, occurred_at, event_id);

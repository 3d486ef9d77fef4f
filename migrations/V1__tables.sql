-- The three tables of the contract. Two are hypertables with one chunk a day: at 100 million events a day the newest chunk's
-- only index (about 5 GB) stays in the memory of an ordinary server, and retention drops whole days.
--
-- Indexes. Each costs ingestion (measured: one million rows by binary COPY, one backend, rows in time order):
--   none                                   0.8 s
--   unique (occurred_at, event_id)         1.3 s   kept: makes every event one row; also serves every query by time
--   unique (event_id, occurred_at)         3.1 s   not: random order touches every page of the index
--   further (user_id, occurred_at)         +3.2 s  not: no query of this program needs it
-- A team that reads by user or session adds an index of its own and pays for it knowingly.

CREATE EXTENSION IF NOT EXISTS timescaledb;

CREATE TABLE interaction_logs (
    occurred_at  timestamptz      NOT NULL,
    event_id     uuid             NOT NULL,
    session_id   text             NOT NULL,
    user_id      text             NOT NULL,
    intent       text,
    latency_ms   double precision,
    confidence   real,
    channel      text,
    locale       text,
    transcript   text,
    attributes   jsonb,
    ingested_at  timestamptz      NOT NULL DEFAULT now()
);
SELECT create_hypertable('interaction_logs', by_range('occurred_at', interval '1 day'), create_default_indexes => false);
CREATE UNIQUE INDEX interaction_logs_key ON interaction_logs (occurred_at, event_id);

CREATE TABLE session_events (
    occurred_at  timestamptz NOT NULL,
    event_id     uuid        NOT NULL,
    session_id   text        NOT NULL,
    user_id      text        NOT NULL,
    status       text        NOT NULL,
    seq          bigint      NOT NULL,
    state        jsonb,
    ingested_at  timestamptz NOT NULL DEFAULT now()
);
SELECT create_hypertable('session_events', by_range('occurred_at', interval '1 day'), create_default_indexes => false);
CREATE UNIQUE INDEX session_events_key ON session_events (occurred_at, event_id);

-- The columns behind the contract's eight are what decides the two registers: the id of the winning update, and the version of
-- the state map. Space is left on each page so that an update stays on it (HOT) and touches no index.
CREATE TABLE sessions (
    session_id   text        PRIMARY KEY,
    user_id      text        NOT NULL,
    status       text        NOT NULL,
    seq          bigint      NOT NULL,
    started_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    ended_at     timestamptz,
    state        jsonb,
    status_event uuid        NOT NULL,
    state_seq    bigint,
    state_at     timestamptz,
    state_event  uuid
) WITH (fillfactor = 70);

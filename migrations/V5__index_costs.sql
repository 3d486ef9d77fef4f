-- What each index of the schema costs ingestion, where whoever looks at the table (`\d+`, `\di+`) finds it.
--
-- Measured: `make bench FILTER=indexes`, one backend's COPY from a file, rows in the order of their times, an empty table, PostgreSQL
-- 17.12 with TimescaleDB 2.19.3 on two cores, medians of five, as a multiple of the time without any index:
--
--   interaction_logs   unique (occurred_at, event_id)             1.5 ×   the schema's: every event one row; every query by time
--                      unique (event_id, occurred_at)             1.4 ×   instead: only where ids follow time, as these did; random
--                                                                         ones touch every page of the index (see V1)
--                      (session_id) beside the schema's           3.2 ×   not made: no query of this program needs it
--                      (user_id, occurred_at) beside it           3.8 ×   not made
--   session_events     unique (occurred_at, event_id)             2.4 ×   the schema's: narrower rows, the same index
--   sessions           primary key (session_id)                   1.8 ×   the schema's: the merge of updates finds its row by it
--   embedding_log      unique (entry_ms, entry_seq, …)            1.2 ×   the schema's: rows of 384 dimensions
COMMENT ON INDEX interaction_logs_key IS 'Every event one row; serves every query by time. COPY takes 1.5 times as long as without an index.';
COMMENT ON INDEX session_events_key IS 'Every update one row; serves every query by time. COPY takes 2.4 times as long as without an index.';
COMMENT ON INDEX sessions_pkey IS 'By which updates are merged. COPY takes 1.8 times as long as without an index.';
COMMENT ON INDEX embedding_log_key IS 'Every vector one row, in the order of a rebuild. COPY takes 1.2 times as long as without an index.';

-- The archive of vectors is kept for as long as the rows are that its vectors belong to. In the columnstore its order begins with
-- its own unique key.
INSERT INTO aegis_hypertables VALUES ('embedding_log', 'entry_ms, entry_seq, entry_index, occurred_at');

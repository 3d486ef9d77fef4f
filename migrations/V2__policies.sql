-- What is done with rows over the years. `aegis-ingest migrate` writes its settings here and brings TimescaleDB to them
-- (src/timescale/policies.rs); the worker reads them here, since the role that migrates need not be the one that writes.

-- One row.
CREATE TABLE aegis_policies (
    one_row           boolean     PRIMARY KEY DEFAULT true CHECK (one_row),
    chunk_interval    interval    NOT NULL,
    columnstore_after interval,   -- NULL: never
    retention         interval    CHECK (retention >= interval '1 day'), -- NULL: for ever
    aggregates        boolean     NOT NULL,
    -- Before this instant rows may be gone, by this retention or an earlier, shorter one: aggregates are not computed again
    -- from what is left there.
    incomplete_before timestamptz
);
INSERT INTO aegis_policies (chunk_interval, aggregates) VALUES (interval '1 day', false);

-- Which hypertables the policies are for. A migration that makes another one declares it here, and that is all: its chunk
-- interval, columnstore and retention follow. The order within the columnstore begins with the unique key, so that the
-- question whether a late row is there already opens the few batches whose times surround it and no other.
CREATE TABLE aegis_hypertables (
    hypertable          regclass PRIMARY KEY,
    columnstore_orderby text     NOT NULL
);
INSERT INTO aegis_hypertables VALUES
    ('interaction_logs', 'occurred_at, event_id'),
    ('session_events', 'occurred_at, event_id');

-- Retention where TimescaleDB has no policy for it (Apache edition): drop_chunks is for the owner alone, and the worker must
-- not be the owner. So this function does it with the owner's rights. It takes no argument: whoever may call it can drop what
-- the stored retention says and nothing else. Whole chunks, up to 100 of each hypertable a call (each holds locks until the
-- end); it says what it dropped, so that the caller asks again until there is nothing. One at a time, and never while
-- somebody migrates: 418313103731 is the key of the migrations' own lock. A reader of an old chunk is waited for briefly;
-- the next call tries again.
--
-- The search path is fixed and holds nobody's schema, hence the spelt-out ones: those of these tables and of TimescaleDB.
DO $migration$
BEGIN
    EXECUTE format($statement$
        CREATE FUNCTION %1$I.aegis_drop_expired() RETURNS TABLE (hypertable text, chunks bigint, dropped_before timestamptz)
        LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '2s'
        AS $body$
        DECLARE
            kept_since timestamptz;
            declared record;
        BEGIN
            IF current_setting('timescaledb.license', true) IS DISTINCT FROM 'apache' OR NOT pg_try_advisory_xact_lock(418313103731) THEN
                RETURN;
            END IF;
            SELECT now() - p.retention INTO kept_since FROM %1$I.aegis_policies p WHERE p.retention IS NOT NULL;
            IF NOT FOUND THEN
                RETURN;
            END IF;
            FOR declared IN
                SELECT h.hypertable AS name, n.nspname, c.relname
                FROM %1$I.aegis_hypertables h JOIN pg_class c ON c.oid = h.hypertable JOIN pg_namespace n ON n.oid = c.relnamespace
                ORDER BY c.relname
            LOOP
                SELECT max(old.range_end), declared.name::text INTO dropped_before, hypertable
                FROM (SELECT k.range_end FROM timescaledb_information.chunks k
                      WHERE k.hypertable_schema = declared.nspname AND k.hypertable_name = declared.relname
                          AND k.range_end <= kept_since
                      ORDER BY k.range_end LIMIT 100) old;
                CONTINUE WHEN dropped_before IS NULL;
                SELECT count(*) INTO chunks FROM %2$I.drop_chunks(declared.name, older_than => dropped_before);
                RETURN NEXT;
            END LOOP;
        END
        $body$
        $statement$,
        current_schema(),
        (SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'timescaledb'));
END
$migration$;
REVOKE ALL ON FUNCTION aegis_drop_expired() FROM PUBLIC;

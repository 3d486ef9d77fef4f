-- Roles of the database and what each may do. Idempotent: run it as an administrator before the first migration, and after
-- every migration that makes a table (it grants on what exists); running it again also changes the passwords.
--
--   SECRETS_DIR=/etc/aegis/secrets psql "$ADMINISTRATOR_URL" -f infra/timescale/roles.sql
--
--   aegis_owner     owns tables and background jobs; nobody logs in as it
--   aegis_migrator  `aegis-ingest migrate`: becomes aegis_owner when it connects
--   aegis_worker    `aegis-ingest run` with AEGIS_MIGRATE_ON_START=false: writes, and reads back nothing but session states
--   aegis_reader    people and dashboards: reads, and writes nothing
--   aegis_eraser    `aegis-ingest erase`: finds and removes rows of a person; folds anew sessions that others shared
\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;
-- Passwords below must not stand in the server's log. Managed servers reserve these two settings.
SELECT set_config(name, value, false) FROM (VALUES ('log_statement', 'none'), ('log_min_error_statement', 'panic')) AS quiet (name, value)
WHERE (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) \g /dev/null

\set migrator_password `cat "$SECRETS_DIR/postgres_migrator"`
\set worker_password `cat "$SECRETS_DIR/postgres_worker"`
\set reader_password `cat "$SECRETS_DIR/postgres_reader"`
\set eraser_password `cat "$SECRETS_DIR/postgres_eraser"`
SELECT :'migrator_password' <> '' AND :'worker_password' <> '' AND :'reader_password' <> '' AND :'eraser_password' <> '' AS complete \gset
\if :complete
\else
  \warn 'roles.sql: SECRETS_DIR must name a folder with postgres_migrator, postgres_worker, postgres_reader and postgres_eraser'
  SELECT passwords_missing;
\endif

SELECT format('CREATE ROLE %I', role) FROM unnest('{aegis_owner,aegis_migrator,aegis_worker,aegis_reader,aegis_eraser}'::text[]) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \gexec

-- LOGIN, since TimescaleDB runs a hypertable's background jobs as its owner and refuses owners without; no password, so no login.
ALTER ROLE aegis_owner LOGIN PASSWORD NULL;
ALTER ROLE aegis_migrator LOGIN PASSWORD :'migrator_password' CONNECTION LIMIT 10;
ALTER ROLE aegis_worker LOGIN PASSWORD :'worker_password';
ALTER ROLE aegis_reader LOGIN PASSWORD :'reader_password' CONNECTION LIMIT 20;
ALTER ROLE aegis_eraser LOGIN PASSWORD :'eraser_password' CONNECTION LIMIT 5;

-- What the migrator makes belongs to the owner: whoever runs the next migration may alter it.
GRANT aegis_owner TO aegis_migrator WITH INHERIT FALSE, SET TRUE;
ALTER ROLE aegis_migrator SET role = 'aegis_owner';

-- An entry is acknowledged once its commit is durable, whatever the server's own default is.
ALTER ROLE aegis_worker SET synchronous_commit = 'on';
ALTER ROLE aegis_worker SET idle_in_transaction_session_timeout = '2min';
ALTER ROLE aegis_reader SET default_transaction_read_only = 'on';
ALTER ROLE aegis_reader SET statement_timeout = '60s';

SELECT format(statement, current_database()) FROM unnest(ARRAY[
    'REVOKE ALL ON DATABASE %I FROM PUBLIC',
    'GRANT CONNECT ON DATABASE %I TO aegis_owner, aegis_migrator, aegis_reader, aegis_eraser',
    -- The temporary table is where a batch with known rows goes first.
    'GRANT CONNECT, TEMPORARY ON DATABASE %I TO aegis_worker']) AS statement \gexec
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO aegis_owner;
GRANT USAGE ON SCHEMA public TO aegis_worker, aegis_reader, aegis_eraser;

-- Copying into a hypertable and INSERT … ON CONFLICT DO NOTHING need INSERT alone; merging a session needs to see it.
SELECT format(statement, name) FROM unnest('{interaction_logs,session_events,sessions,embedding_log}'::text[]) AS name,
    unnest(ARRAY['REVOKE ALL ON %I FROM aegis_worker', 'GRANT SELECT ON %I TO aegis_reader',
        CASE name WHEN 'sessions' THEN 'GRANT SELECT, INSERT, UPDATE ON %I TO aegis_worker'
                  ELSE 'GRANT INSERT ON %I TO aegis_worker' END,
        CASE name WHEN 'sessions' THEN 'GRANT SELECT, INSERT, DELETE ON %I TO aegis_eraser'
                  ELSE 'GRANT SELECT, DELETE ON %I TO aegis_eraser' END]) WITH ORDINALITY AS step (statement, turn)
WHERE to_regclass(name) IS NOT NULL ORDER BY name, turn \gexec

-- What is done with old rows: anybody may see it, the migrator alone sets it. The function drops what the stored retention says
-- and takes no argument, so that the worker needs no right on the chunks themselves. Aggregates get their readers from the
-- tables that they are computed from, each time `migrate` runs.
SELECT format('GRANT SELECT ON %I TO aegis_worker, aegis_reader', name) FROM unnest('{aegis_policies,aegis_hypertables}'::text[]) AS name
WHERE to_regclass(name) IS NOT NULL \gexec
SELECT 'GRANT EXECUTE ON FUNCTION aegis_drop_expired() TO aegis_worker' WHERE to_regprocedure('aegis_drop_expired()') IS NOT NULL \gexec

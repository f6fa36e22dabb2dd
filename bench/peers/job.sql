-- The tables of the job. Nothing forbids a second readiness: it would be counted.
DROP SCHEMA IF EXISTS peers CASCADE;
CREATE SCHEMA peers;
CREATE TABLE peers.batches (
    batch_id text PRIMARY KEY,
    open_slots integer NOT NULL
);
CREATE TABLE peers.slots (
    batch_id text NOT NULL REFERENCES peers.batches,
    essay_id text NOT NULL,
    text_storage_id text,
    file_name text,
    assigned_at timestamptz,
    PRIMARY KEY (batch_id, essay_id)
);
CREATE UNIQUE INDEX slots_content ON peers.slots (batch_id, text_storage_id);
CREATE TABLE peers.seen (
    event_id uuid PRIMARY KEY,
    batch_id text NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE peers.ready (
    batch_id text NOT NULL,
    ready_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Decides who announces a batch: the one call with an update that takes effect. No row: the batch is
-- announced already, not full, or amended since its events were written. It finds and locks rows as `place.sql` does.
WITH due AS MATERIALIZED (
    SELECT b.*, jsonb_array_length(b.events) AS count
    FROM jsonb_to_recordset(%(batches)s) AS b (
        batch_id text, status text, provisioned_count int, manifest_sha256 text, amendments int,
        events jsonb
    )
    WHERE b.batch_id = b.batch_id || ''
    ORDER BY b.batch_id COLLATE "C"
), numbered AS (
    UPDATE batch_essay_trackers t
    SET completed_at = now(),
        status = d.status,
        provisioned_count = d.provisioned_count,
        manifest_sha256 = d.manifest_sha256,
        ready_at = CASE WHEN d.status = 'ready_for_pipeline_execution' THEN now() END,
        -- A teacher gets as much time for the students as the contents had. Where somebody has set
        -- one of these moments by hand to infinity, or far away, it is the usual time, a day.
        deadline_at = CASE
            WHEN d.status <> 'awaiting_student_validation' THEN t.deadline_at
            WHEN t.registered_at BETWEEN '2000-01-01Z' AND now()
                 AND t.deadline_at BETWEEN t.registered_at AND now() + interval '3660 days'
            THEN now() + (t.deadline_at - t.registered_at)
            ELSE now() + interval '1 day' END,
        event_sequence = t.event_sequence + d.count
    FROM due d
    WHERE t.batch_id = d.batch_id
      AND t.available_slots = 0
      AND t.completed_at IS NULL
      AND t.amendments = d.amendments
      AND t.status = 'awaiting_content_validation'
    RETURNING t.batch_id, t.correlation_id, t.event_sequence - d.count AS sequence, d.events,
              extract(epoch FROM t.ready_at - least(greatest(t.registered_at, '0001-01-01Z'),
                                                    t.ready_at))::float8 AS seconds
)

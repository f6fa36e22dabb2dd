-- Tells what some batches must be: by their events, which are written with each change of status;
-- else by their seal; else by what the row itself says. What only a hand can have written is undone.
--
-- An event of these types is looked up by its unique index, whatever the number of a batch's events.
WITH told AS (
    SELECT t.*,
           (SELECT min(created_at) FROM event_outbox o
            WHERE o.batch_id = t.batch_id AND o.type = 'BatchEssaysReady') AS told_ready,
           (SELECT min(created_at) FROM event_outbox o
            WHERE o.batch_id = t.batch_id AND o.type = 'BatchCancelled') AS told_cancelled,
           (SELECT min(created_at) FROM event_outbox o
            WHERE o.batch_id = t.batch_id AND o.type = 'BatchReadinessTimeout'
              AND o.data ->> 'on_deadline' = 'fail') AS told_timed_out,
           c.created_at AS told_complete, c.data AS completion
    FROM batch_essay_trackers t
    LEFT JOIN event_outbox c
      ON c.batch_id = t.batch_id AND c.type = 'BatchContentProvisioningCompleted'
    WHERE t.batch_id = ANY(%(batches)s)
), sealed AS (
    SELECT *, coalesce(manifest_sha256, completion ->> 'manifest_sha256') AS seal,
           coalesce(provisioned_count, (completion ->> 'provisioned_count')::int) AS essays
    FROM told
), judged AS (
    SELECT *, CASE
        WHEN told_ready IS NOT NULL THEN 'ready_for_pipeline_execution'
        WHEN told_cancelled IS NOT NULL THEN 'cancelled'
        WHEN told_timed_out IS NOT NULL THEN 'timed_out'
        WHEN closed_at IS NOT NULL AND status IN ('timed_out', 'cancelled') THEN status
        WHEN seal IS NULL THEN 'awaiting_content_validation'
        WHEN essays = 0 THEN 'content_ingestion_failed'
        WHEN class_id IS NULL THEN 'ready_for_pipeline_execution'
        -- Ready without its event: the students are known, or the deadline has passed.
        WHEN status = 'ready_for_pipeline_execution' AND (
            EXISTS (SELECT FROM idempotency_keys k WHERE k.batch_id = sealed.batch_id
                    AND k.outcome ->> 'outcome' = 'confirmed')
            OR EXISTS (SELECT FROM event_outbox o WHERE o.batch_id = sealed.batch_id
                       AND o.type = 'BatchReadinessTimeout')
        ) THEN status
        ELSE 'awaiting_student_validation' END AS true_status
    FROM sealed
), mended AS (
    SELECT batch_id, status, registered_at, true_status, available_slots, full_at AS was_full_at,
           CASE true_status WHEN 'awaiting_content_validation' THEN NULL
                WHEN 'cancelled' THEN completed_at WHEN 'timed_out' THEN completed_at
                ELSE coalesce(completed_at, told_complete, told_ready, now()) END AS completed_at,
           CASE true_status WHEN 'ready_for_pipeline_execution'
                THEN coalesce(ready_at, told_ready, completed_at, told_complete, now())
                END AS ready_at,
           CASE WHEN true_status IN ('cancelled', 'timed_out')
                THEN coalesce(closed_at, told_cancelled, told_timed_out, now()) END AS closed_at,
           CASE true_status WHEN 'cancelled' THEN coalesce(closed_reason, 'cancelled')
                WHEN 'timed_out' THEN coalesce(closed_reason, 'deadline') END AS closed_reason,
           CASE WHEN true_status = 'awaiting_content_validation' THEN NULL ELSE seal END
               AS manifest_sha256,
           CASE WHEN true_status = 'awaiting_content_validation' THEN NULL ELSE essays END
               AS provisioned_count,
           completed_at AS was_completed_at, ready_at AS was_ready_at, closed_at AS was_closed_at,
           manifest_sha256 AS was_sealed
    FROM judged
), wrong AS (
    SELECT * FROM mended
    WHERE (status, was_completed_at IS NULL, was_ready_at IS NULL, was_closed_at IS NULL,
           was_sealed IS NULL)
          IS DISTINCT FROM
          (true_status, completed_at IS NULL, ready_at IS NULL, closed_at IS NULL,
           manifest_sha256 IS NULL)
       OR true_status IN ('cancelled', 'timed_out') AND available_slots > 0
)

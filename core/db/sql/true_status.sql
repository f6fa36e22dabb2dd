-- Finds the true status of some batches: from their events, which the service writes with each change
-- of status; else from their seal; else from the row itself. `wrong` has the batches that differ.
--
-- The unique index finds an event of these types, however many events the batch has.
WITH posted AS (
    SELECT t.*,
           (SELECT min(created_at) FROM event_outbox o
            WHERE o.batch_id = t.batch_id AND o.type = 'BatchEssaysReady') AS ready_posted,
           (SELECT min(created_at) FROM event_outbox o
            WHERE o.batch_id = t.batch_id AND o.type = 'BatchCancelled') AS cancelled_posted,
           (SELECT min(created_at) FROM event_outbox o
            WHERE o.batch_id = t.batch_id AND o.type = 'BatchReadinessTimeout'
              AND o.data ->> 'on_deadline' = 'fail') AS timed_out_posted,
           c.created_at AS complete_posted, c.data AS completion
    FROM batch_essay_trackers t
    LEFT JOIN event_outbox c
      ON c.batch_id = t.batch_id AND c.type = 'BatchContentProvisioningCompleted'
    WHERE t.batch_id = ANY(%(batches)s)
), sealed AS (
    SELECT *,
           -- Open slots are never sealed, so somebody wrote that by hand.
           CASE WHEN complete_posted IS NOT NULL OR (
                    SELECT true FROM essay_states e WHERE e.batch_id = posted.batch_id
                    AND e.current_status = 'awaiting_content' LIMIT 1) IS NULL
                THEN coalesce(manifest_sha256, completion ->> 'manifest_sha256') END AS seal,
           coalesce(provisioned_count, (completion ->> 'provisioned_count')::int) AS essays
    FROM posted
), judged AS (
    SELECT *, CASE
        WHEN ready_posted IS NOT NULL THEN 'ready_for_pipeline_execution'
        WHEN cancelled_posted IS NOT NULL THEN 'cancelled'
        WHEN timed_out_posted IS NOT NULL THEN 'timed_out'
        WHEN closed_at IS NOT NULL AND status IN ('timed_out', 'cancelled') THEN status
        WHEN seal IS NULL THEN 'awaiting_content_validation'
        WHEN essays = 0 THEN 'content_ingestion_failed'
        WHEN class_id IS NULL THEN 'ready_for_pipeline_execution'
        -- Ready, but its event is gone: the students are known, or the deadline has passed.
        WHEN status = 'ready_for_pipeline_execution' AND (
            EXISTS (SELECT FROM idempotency_keys k WHERE k.batch_id = sealed.batch_id
                    AND k.outcome ->> 'outcome' = 'confirmed')
            OR EXISTS (SELECT FROM event_outbox o WHERE o.batch_id = sealed.batch_id
                       AND o.type = 'BatchReadinessTimeout')
        ) THEN status
        ELSE 'awaiting_student_validation' END AS true_status
    FROM sealed
), mended AS (
    SELECT batch_id, status, true_status, available_slots,
           CASE true_status WHEN 'awaiting_content_validation' THEN NULL
                WHEN 'cancelled' THEN completed_at WHEN 'timed_out' THEN completed_at
                ELSE coalesce(completed_at, complete_posted, ready_posted, now()) END AS completed_at,
           CASE true_status WHEN 'ready_for_pipeline_execution'
                THEN coalesce(ready_at, ready_posted, completed_at, complete_posted, now())
                END AS ready_at,
           CASE WHEN true_status IN ('cancelled', 'timed_out')
                THEN coalesce(closed_at, cancelled_posted, timed_out_posted, now()) END AS closed_at,
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

-- Follows `true_status.sql`: restores the status of these batches. No row: nothing was wrong.
UPDATE batch_essay_trackers t
SET status = w.true_status,
    completed_at = w.completed_at,
    ready_at = w.ready_at,
    closed_at = w.closed_at,
    closed_reason = w.closed_reason,
    manifest_sha256 = w.manifest_sha256,
    provisioned_count = w.provisioned_count,
    available_slots = CASE WHEN w.true_status = 'awaiting_content_validation'
                           THEN t.available_slots ELSE 0 END,
    full_at = CASE WHEN w.true_status IN ('cancelled', 'timed_out') THEN t.full_at
                   WHEN w.true_status = 'awaiting_content_validation' AND t.available_slots > 0
                   THEN NULL
                   ELSE coalesce(t.full_at, w.completed_at, now()) END
FROM wrong w
WHERE t.batch_id = w.batch_id
RETURNING t.status

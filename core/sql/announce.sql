-- Decides who announces: the one call whose update takes effect. No row: announced, or not full.
UPDATE batch_essay_trackers
SET completed_at = now(),
    status = %(status)s,
    provisioned_count = %(provisioned_count)s,
    manifest_sha256 = %(manifest_sha256)s,
    ready_at = CASE WHEN %(status)s = 'ready_for_pipeline_execution' THEN now() END,
    -- A teacher gets as long for the students as the contents had.
    deadline_at = CASE WHEN %(status)s = 'awaiting_student_validation'
                       THEN now() + (deadline_at - registered_at) ELSE deadline_at END,
    event_sequence = event_sequence + %(count)s
WHERE batch_id = %(batch_id)s
  AND available_slots = 0
  AND completed_at IS NULL
  AND status = 'awaiting_content_validation'
RETURNING batch_id, correlation_id, event_sequence,
          extract(epoch FROM ready_at - registered_at)::float8 AS seconds

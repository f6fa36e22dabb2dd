-- Decides who announces: the one call whose update takes effect. No row: announced, or not full.
UPDATE batch_essay_trackers
SET completed_at = now()
WHERE batch_id = %(batch_id)s
  AND available_slots = 0
  AND completed_at IS NULL
  AND status = 'awaiting_content_validation'
RETURNING batch_id, status, class_id, user_id, course_code, correlation_id, expected_count,
          available_slots, essay_ids_sha256, completed_at, manifest_sha256, student_prompt_ref

-- Sets the counter of a batch to the number of its open slots. No row: it was right, or the slots are
-- wrong (missing, extra or cancelled): such a batch would count as full, but never be sealed.
WITH counted AS (
    SELECT count(*) FILTER (WHERE current_status = 'awaiting_content') AS open, count(*) AS slots,
           count(*) FILTER (WHERE current_status = 'cancelled') AS cancelled
    FROM essay_states WHERE batch_id = %(batch_id)s
)
UPDATE batch_essay_trackers
SET available_slots = open,
    full_at = CASE WHEN open = 0 THEN coalesce(full_at, now()) END
FROM counted
WHERE batch_id = %(batch_id)s AND available_slots <> open AND completed_at IS NULL
  AND closed_at IS NULL AND slots = expected_count AND cancelled = 0
RETURNING open

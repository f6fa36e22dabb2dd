-- What must hold of every batch once the service is quiet. Each query returns the batches that
-- break it.

-- invariant: A content holds at most one slot
SELECT batch_id FROM essay_states WHERE text_storage_id IS NOT NULL
GROUP BY batch_id, text_storage_id HAVING count(*) > 1

-- invariant: A batch has exactly the slots that were registered
SELECT batch_id FROM batch_essay_trackers t
WHERE expected_count <> (SELECT count(*) FROM essay_states e WHERE e.batch_id = t.batch_id)

-- invariant: The counter equals the open slots
SELECT batch_id FROM batch_essay_trackers t
WHERE available_slots <> (SELECT count(*) FROM essay_states e WHERE e.batch_id = t.batch_id
                          AND e.current_status = 'awaiting_content')

-- invariant: Every submission is in exactly one place
SELECT batch_id FROM (
    SELECT batch_id, coalesce(text_storage_id, 'rejected ' || file_upload_id) AS claimant
    FROM essay_states WHERE file_upload_id IS NOT NULL
    UNION ALL
    SELECT batch_id, coalesce(text_storage_id, 'rejected ' || file_upload_id) FROM excess_content
    UNION ALL
    SELECT batch_id, coalesce(text_storage_id, 'rejected ' || essay_file_id)
    FROM batch_pending_content
) place
GROUP BY batch_id, claimant HAVING count(*) > 1

-- invariant: What a sender got as the outcome still holds
SELECT batch_id FROM idempotency_keys k
WHERE k.outcome ->> 'essay_id' IS NOT NULL
  AND NOT EXISTS (SELECT FROM essay_states e WHERE e.batch_id = k.batch_id
                  AND e.essay_id = k.outcome ->> 'essay_id'
                  AND e.current_status <> 'awaiting_content')

-- invariant: Nothing waits for a batch that is registered
SELECT batch_id FROM batch_pending_content JOIN batch_essay_trackers USING (batch_id)

-- invariant: A full batch is announced
SELECT batch_id FROM batch_essay_trackers
WHERE available_slots = 0 AND completed_at IS NULL AND closed_at IS NULL

-- invariant: One completion event a complete batch, and none else
SELECT batch_id FROM batch_essay_trackers t
WHERE (completed_at IS NOT NULL)::int <> (
    SELECT count(*) FROM event_outbox o
    WHERE o.batch_id = t.batch_id AND o.type = 'BatchContentProvisioningCompleted')

-- invariant: One readiness event a ready batch, and none else
SELECT batch_id FROM batch_essay_trackers t
WHERE (ready_at IS NOT NULL)::int <> (
    SELECT count(*) FROM event_outbox o
    WHERE o.batch_id = t.batch_id AND o.type = 'BatchEssaysReady')

-- invariant: A complete guest batch with an essay is ready
SELECT batch_id FROM batch_essay_trackers
WHERE completed_at IS NOT NULL AND closed_at IS NULL AND class_id IS NULL
  AND provisioned_count > 0 AND ready_at IS NULL

-- invariant: A content is excess only where no slot is open
SELECT batch_id FROM excess_content JOIN batch_essay_trackers USING (batch_id)
WHERE available_slots > 0

-- invariant: One event an excess content
SELECT batch_id FROM excess_content x
WHERE kind = 'content' AND reason = 'NO_AVAILABLE_SLOT'
  AND NOT EXISTS (SELECT FROM event_outbox o WHERE o.batch_id = x.batch_id
                  AND o.type = 'ExcessContentProvisioned' AND o.generation = x.text_storage_id)

-- invariant: The events of a batch are numbered without a gap
SELECT batch_id FROM batch_essay_trackers t
WHERE event_sequence <> (SELECT count(*) FROM event_outbox o WHERE o.batch_id = t.batch_id)

-- invariant: Every event was delivered
SELECT batch_id FROM event_outbox WHERE published_at IS NULL

-- What must hold of every batch once the service is quiet. Each query returns the ids of batches
-- that break it; %(batches)s limits the look to some batches, NULL takes all.

-- invariant: A content holds at most one slot
SELECT batch_id FROM essay_states
WHERE text_storage_id IS NOT NULL AND (%(batches)s::text[] IS NULL OR batch_id = ANY(%(batches)s))
GROUP BY batch_id, text_storage_id HAVING count(*) > 1;

-- invariant: A batch has exactly the slots that were registered
SELECT t.batch_id FROM batch_essay_trackers t
WHERE (%(batches)s::text[] IS NULL OR t.batch_id = ANY(%(batches)s))
  AND t.expected_count <> (SELECT count(*) FROM essay_states e WHERE e.batch_id = t.batch_id);

-- invariant: The counter equals the open slots
SELECT t.batch_id FROM batch_essay_trackers t
WHERE (%(batches)s::text[] IS NULL OR t.batch_id = ANY(%(batches)s))
  AND t.available_slots <> (SELECT count(*) FROM essay_states e WHERE e.batch_id = t.batch_id
                            AND e.current_status = 'awaiting_content');

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
WHERE %(batches)s::text[] IS NULL OR batch_id = ANY(%(batches)s)
GROUP BY batch_id, claimant HAVING count(*) > 1;

-- invariant: What a sender was told still holds
SELECT k.batch_id FROM idempotency_keys k
WHERE (%(batches)s::text[] IS NULL OR k.batch_id = ANY(%(batches)s))
  AND k.outcome ->> 'essay_id' IS NOT NULL
  AND NOT EXISTS (SELECT FROM essay_states e WHERE e.batch_id = k.batch_id
                  AND e.essay_id = k.outcome ->> 'essay_id'
                  AND e.current_status <> 'awaiting_content');

-- invariant: Nothing waits for a batch that is registered
SELECT p.batch_id FROM batch_pending_content p
WHERE (%(batches)s::text[] IS NULL OR p.batch_id = ANY(%(batches)s))
  AND EXISTS (SELECT FROM batch_essay_trackers t WHERE t.batch_id = p.batch_id);

-- invariant: A full batch is announced
SELECT t.batch_id FROM batch_essay_trackers t
WHERE (%(batches)s::text[] IS NULL OR t.batch_id = ANY(%(batches)s))
  AND t.available_slots = 0 AND t.completed_at IS NULL AND t.closed_at IS NULL;

-- invariant: One completion event a complete batch, and none else
SELECT t.batch_id FROM batch_essay_trackers t
WHERE (%(batches)s::text[] IS NULL OR t.batch_id = ANY(%(batches)s))
  AND (t.completed_at IS NOT NULL)::int <> (
      SELECT count(*) FROM event_outbox o
      WHERE o.batch_id = t.batch_id AND o.type = 'BatchContentProvisioningCompleted');

-- invariant: One readiness event a ready batch, and none else
SELECT t.batch_id FROM batch_essay_trackers t
WHERE (%(batches)s::text[] IS NULL OR t.batch_id = ANY(%(batches)s))
  AND (t.ready_at IS NOT NULL)::int <> (
      SELECT count(*) FROM event_outbox o
      WHERE o.batch_id = t.batch_id AND o.type = 'BatchEssaysReady');

-- invariant: A complete guest batch with an essay is ready
SELECT t.batch_id FROM batch_essay_trackers t
WHERE (%(batches)s::text[] IS NULL OR t.batch_id = ANY(%(batches)s))
  AND t.completed_at IS NOT NULL AND t.closed_at IS NULL AND t.class_id IS NULL
  AND t.provisioned_count > 0 AND t.ready_at IS NULL;

-- invariant: A content is excess only where no slot is open
SELECT x.batch_id FROM excess_content x JOIN batch_essay_trackers t USING (batch_id)
WHERE (%(batches)s::text[] IS NULL OR x.batch_id = ANY(%(batches)s)) AND t.available_slots > 0;

-- invariant: One event an excess content
SELECT x.batch_id FROM excess_content x
WHERE (%(batches)s::text[] IS NULL OR x.batch_id = ANY(%(batches)s))
  AND x.kind = 'content' AND x.reason = 'NO_AVAILABLE_SLOT'
  AND NOT EXISTS (SELECT FROM event_outbox o WHERE o.batch_id = x.batch_id
                  AND o.type = 'ExcessContentProvisioned' AND o.generation = x.text_storage_id);

-- invariant: The events of a batch are numbered without a gap
SELECT t.batch_id FROM batch_essay_trackers t
WHERE (%(batches)s::text[] IS NULL OR t.batch_id = ANY(%(batches)s))
  AND t.event_sequence <> (SELECT count(*) FROM event_outbox o WHERE o.batch_id = t.batch_id);

-- invariant: Every event was delivered
SELECT batch_id FROM event_outbox
WHERE (%(batches)s::text[] IS NULL OR batch_id = ANY(%(batches)s)) AND published_at IS NULL;

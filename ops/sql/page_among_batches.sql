-- Reads these batches, newest first, and tells which are wanted. Nobody may have registered them: such
-- ones come first, and fit no filter.
SELECT batch_id, registered_at::text AS since,
       (%(state)s::text IS NULL OR coalesce(status = %(state)s, false))
       AND (%(user_id)s::text IS NULL OR coalesce(user_id = %(user_id)s, false))
       AND (%(org_id)s::text IS NULL OR coalesce(org_id = %(org_id)s, false))
       AND (%(regular)s::boolean IS NULL
            OR status IS NOT NULL AND (class_id IS NOT NULL) = %(regular)s) AS wanted
FROM (
    SELECT w.batch_id, coalesce(t.registered_at, 'infinity') AS registered_at, t.status, t.user_id,
           t.org_id, t.class_id
    FROM unnest(%(among)s::text[]) AS w (batch_id)
    LEFT JOIN batch_essay_trackers t USING (batch_id)
) batch
WHERE (registered_at, batch_id COLLATE "C") < (%(since)s::timestamptz, %(batch_id)s)
ORDER BY registered_at DESC, batch_id COLLATE "C" DESC

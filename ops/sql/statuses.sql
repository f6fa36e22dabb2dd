-- Chooses the newest batches that fit, which the program asks for in the place of `true`; without
-- another filter also those that contents only wait for.
SELECT batch_id FROM (
    (SELECT batch_id, registered_at AS since FROM batch_essay_trackers
     WHERE true
     ORDER BY since DESC LIMIT %(limit)s)
    UNION ALL
    (SELECT p.batch_id, min(p.received_at) AS since FROM batch_pending_content p
     WHERE (%(batch_id)s::text IS NULL OR p.batch_id = %(batch_id)s)
       AND %(state)s::text IS NULL AND %(user)s::text IS NULL
       AND (%(among)s::text[] IS NULL OR p.batch_id = ANY(%(among)s))
       AND NOT EXISTS (SELECT FROM batch_essay_trackers t WHERE t.batch_id = p.batch_id)
     GROUP BY p.batch_id ORDER BY since DESC LIMIT %(limit)s)
) found
ORDER BY since DESC LIMIT %(limit)s

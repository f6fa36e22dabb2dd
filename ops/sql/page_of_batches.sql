-- Reads the next batches, newest first, and tells which of them are wanted. An index finds those of one
-- filter, which the program puts here in the place of `true`.
SELECT batch_id, registered_at::text AS since,
       (%(state)s::text IS NULL OR status = %(state)s)
       AND (%(user_id)s::text IS NULL OR user_id = %(user_id)s)
       AND (%(org_id)s::text IS NULL OR org_id = %(org_id)s)
       AND (%(regular)s::boolean IS NULL OR (class_id IS NOT NULL) = %(regular)s)
       AND batch_id <> ALL(%(but)s) AS wanted
FROM batch_essay_trackers
WHERE true AND (registered_at, batch_id) < (%(since)s::timestamptz, %(batch_id)s)
ORDER BY registered_at DESC, batch_id DESC LIMIT %(looked)s

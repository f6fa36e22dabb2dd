-- Finds registered batches: those among some ids, those that begin with an id, and of the newest those
-- that are the same without what people mix up (as `ops.explain.lookalikes.fold` does) or without zeros, with
-- the end of the id before its beginning, or that end with it.
(SELECT batch_id FROM batch_essay_trackers WHERE batch_id = ANY(%(ids)s) LIMIT %(few)s)
UNION
(SELECT batch_id FROM batch_essay_trackers
 WHERE %(is_part)s AND batch_id >= %(bare)s AND batch_id < %(beyond)s LIMIT %(few)s)
UNION
(SELECT batch_id FROM (
    SELECT batch_id FROM batch_essay_trackers
    ORDER BY registered_at DESC, batch_id DESC LIMIT %(newest)s
 ) newest
 CROSS JOIN LATERAL translate(lower(batch_id), 'oil-_', '011') AS said
 WHERE said = %(folded)s
    OR %(is_long)s AND replace(said, '0', '') = replace(%(folded)s, '0', '')
    OR %(is_long)s AND length(said) = length(%(folded)s)
       AND strpos(%(folded)s || %(folded)s, said) > 0
    OR %(is_part)s AND right(batch_id, %(length)s) = %(bare)s
 LIMIT %(few)s)

-- Counts what waits, and measures for how many seconds the oldest has waited; 0: nothing waits.
SELECT (SELECT count(*) FROM batch_pending_content)::float8 AS els_pending_contents,
       (SELECT count(*) FROM event_outbox WHERE published_at IS NULL)::float8
           AS els_outbox_unpublished,
       (SELECT count(*) FROM dead_letters
        WHERE replayed_at IS NULL AND discarded_at IS NULL)::float8 AS els_dead_letters,
       coalesce(extract(epoch FROM now() - greatest(least((
           SELECT min(created_at) FROM event_outbox WHERE published_at IS NULL
       ), now()), '0001-01-01Z')), 0)::float8 AS els_outbox_oldest_seconds,
       -- One index scan a status: one minimum over both would read all open batches.
       coalesce(extract(epoch FROM now() - greatest(least(
           (SELECT min(registered_at) FROM batch_essay_trackers
            WHERE status = 'awaiting_content_validation'),
           (SELECT min(registered_at) FROM batch_essay_trackers
            WHERE status = 'awaiting_student_validation'),
           now()
       ), '0001-01-01Z')), 0)::float8 AS els_oldest_open_batch_seconds

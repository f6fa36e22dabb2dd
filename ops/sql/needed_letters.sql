-- Lists the dead letters that wait and that their batch still needs: id, batch_id, task, code, message,
-- parked_at. The batch does not need a letter any more
--   * once it is ready
--   * once it is registered, if the letter is an earlier registration and contradicts nothing
--   * once the message was executed after all, under the same event_id
--   * once each file that the letter names has a slot, or each text
-- A body may be any JSON, also such as no operator of Postgres takes, so it is searched as text; a large
-- one is not searched.
SELECT d.id, d.batch_id, d.task, d.code, d.message, d.parked_at
FROM dead_letters d
WHERE d.replayed_at IS NULL AND d.discarded_at IS NULL AND d.batch_id IS NOT NULL
  AND (%(batch)s::text IS NULL OR d.batch_id = %(batch)s)
  AND CASE
      WHEN NOT coalesce((
          SELECT t.status <> 'ready_for_pipeline_execution'
                 AND NOT (d.task = 'els.register_batch' AND d.code <> 'REGISTRATION_CONFLICT'
                          AND t.registered_at > d.parked_at)
          FROM batch_essay_trackers t WHERE t.batch_id = d.batch_id
      ), true) THEN false
      WHEN pg_column_size(d.body) > 65536 THEN true
      ELSE NOT coalesce((
          SELECT bool_and(EXISTS (SELECT FROM essay_states e
                                  WHERE e.batch_id = d.batch_id AND e.text_storage_id = found[1]))
          FROM regexp_matches(d.body::text, '(?i)text_?storage_?id\\*"\s*:\s*\\*"([^"\\]+)', 'g') found
      ), false)
      AND NOT coalesce((
          SELECT bool_and(EXISTS (SELECT FROM essay_states e
                                  WHERE e.batch_id = d.batch_id AND e.file_upload_id = found[1]))
          FROM regexp_matches(d.body::text, '(?i)file_?upload_?id\\*"\s*:\s*\\*"([^"\\]+)', 'g') found
      ), false)
      AND NOT (d.code <> 'IDEMPOTENCY_CONFLICT' AND EXISTS (
          SELECT FROM idempotency_keys k
          WHERE k.batch_id = d.batch_id
            AND k.key = substring(d.body::text FROM '(?i)event_?id\\*"\s*:\s*\\*"'
                '([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})')::uuid
      ))
      END

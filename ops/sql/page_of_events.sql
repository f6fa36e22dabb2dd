-- Reads the next events in the order of the transactions that wrote them, up to a transaction.
SELECT id, batch_id, type, sequence, correlation_id, traceparent, data, created_at,
       xact_id, created_at::text AS since, octet_length(data::text) AS bytes
FROM event_outbox
WHERE (xact_id, created_at, sequence, id)
      > (%(xact_id)s::bigint, %(created_at)s::timestamptz, %(sequence)s::int, %(id)s::uuid)
  AND xact_id < %(until)s::bigint
ORDER BY xact_id, created_at, sequence, id LIMIT %(limit)s

-- Counts what happened in each part of a span that ends now: batches registered and ready, the contents
-- of the ready ones, how long these waited, and dead letters that still wait for a person. An index on
-- each moment finds the rows.
WITH span AS (
    SELECT now() - make_interval(secs => %(part_s)s::int * %(parts)s::int) AS start
), part AS (
    SELECT n, start + make_interval(secs => %(part_s)s::int * n) AS at
    FROM span, generate_series(0, %(parts)s::int - 1) AS n
), registered AS (
    SELECT floor(extract(epoch FROM registered_at - start) / %(part_s)s)::int AS n, count(*) AS count
    FROM span, batch_essay_trackers WHERE registered_at > start AND registered_at <= now() GROUP BY 1
), ready AS (
    SELECT floor(extract(epoch FROM ready_at - start) / %(part_s)s)::int AS n, count(*) AS count,
           sum(provisioned_count) AS contents,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM ready_at - registered_at))
               AS median_s
    FROM span, batch_essay_trackers
    WHERE ready_at > start AND ready_at <= now() AND isfinite(registered_at) GROUP BY 1
), letters AS (
    SELECT floor(extract(epoch FROM parked_at - start) / %(part_s)s)::int AS n, count(*) AS count
    FROM span, dead_letters
    WHERE parked_at > start AND parked_at <= now()
      AND replayed_at IS NULL AND discarded_at IS NULL GROUP BY 1
)
SELECT part.at, coalesce(registered.count, 0)::int AS registered, coalesce(ready.count, 0)::int AS ready,
       coalesce(ready.contents, 0)::int AS contents, coalesce(ready.median_s, 0)::float8 AS median_s,
       coalesce(letters.count, 0)::int AS letters
FROM part LEFT JOIN registered USING (n) LEFT JOIN ready USING (n) LEFT JOIN letters USING (n)
ORDER BY n

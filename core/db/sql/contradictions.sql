-- Names the fields in which a second registration of a batch differs from the first one, among those
-- that it gives.
--
-- What was amended, or a deadline that has led to something or runs for the students, is not that of
-- the registration any more.
SELECT f.name
FROM batch_essay_trackers t, LATERAL (VALUES
    (1, 'essay_ids', t.essay_ids_sha256 = %(essay_ids_sha256)s),
    (2, 'user_id', t.user_id = %(user_id)s),
    (3, 'org_id', t.org_id IS NOT DISTINCT FROM %(org_id)s::text),
    (4, 'class_id', t.class_id IS NOT DISTINCT FROM %(class_id)s::text),
    (5, 'course_code', t.course_code = %(course_code)s),
    (6, 'course_language', t.course_language IS NOT DISTINCT FROM %(course_language)s::text),
    (7, 'student_prompt_ref', t.amendments > 0 OR
        t.student_prompt_ref IS NOT DISTINCT FROM %(student_prompt_ref)s::jsonb),
    (8, 'metadata', t.metadata IS NOT DISTINCT FROM %(metadata)s::jsonb),
    (9, 'on_deadline', t.amendments > 0 OR t.on_deadline = %(on_deadline)s),
    (10, 'deadline_s', t.amendments > 0 OR t.closed_at IS NOT NULL OR t.completed_at IS NOT NULL
        OR t.deadline_at = t.registered_at + make_interval(secs => %(deadline_s)s))
) AS f (number, name, same)
WHERE t.batch_id = %(batch_id)s AND f.name = ANY(%(given)s) AND NOT f.same
ORDER BY f.number

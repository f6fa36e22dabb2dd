-- Tells where these claimants are already: in a slot, in excess, or waiting. No row: nowhere.
WITH claimant AS (
    SELECT * FROM jsonb_to_recordset(%(submissions)s) AS a (
        claimant text, text_storage_id text, file_upload_id text, validation_error_code text
    )
)
SELECT c.claimant, e.essay_id, NULL AS excess_reason
FROM claimant c JOIN essay_states e
  ON e.batch_id = %(batch_id)s AND e.text_storage_id = c.text_storage_id
WHERE c.validation_error_code IS NULL
UNION ALL
SELECT c.claimant, e.essay_id, NULL
FROM claimant c JOIN essay_states e
  ON e.batch_id = %(batch_id)s AND e.file_upload_id = c.file_upload_id
 AND e.validation_error_code IS NOT NULL
WHERE c.validation_error_code IS NOT NULL
UNION ALL
SELECT c.claimant, NULL, x.reason
FROM claimant c JOIN excess_content x
  ON x.batch_id = %(batch_id)s AND x.kind = 'content' AND x.text_storage_id = c.text_storage_id
WHERE c.validation_error_code IS NULL
UNION ALL
SELECT c.claimant, NULL, x.reason
FROM claimant c JOIN excess_content x
  ON x.batch_id = %(batch_id)s AND x.kind = 'failure' AND x.file_upload_id = c.file_upload_id
WHERE c.validation_error_code IS NOT NULL

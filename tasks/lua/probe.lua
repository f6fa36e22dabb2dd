-- Write nothing, as a write: an error says why Redis refuses scripts that write.
-- KEYS  1 unacked_index
redis.call('ZREMRANGEBYRANK', KEYS[1], 1, 0)

-- Forget a note: its message is done with.
-- KEYS  1 unacked  2 unacked_index
-- ARGV  1 tag
-- Returns 1, or 0 if there is no such note.
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('HDEL', KEYS[1], ARGV[1])

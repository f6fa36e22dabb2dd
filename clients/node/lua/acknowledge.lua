-- Delete unacked entries: their messages are acknowledged.
-- KEYS  1 unacked  2 unacked_index
-- ARGV  the tags
-- Returns how many entries there were.
redis.call('ZREM', KEYS[2], unpack(ARGV))
return redis.call('HDEL', KEYS[1], unpack(ARGV))

-- Renew unacked entries: their worker lives, so they are not overdue. Deleted ones stay deleted.
-- KEYS  1 unacked_index
-- ARGV  the tags
-- This removes nothing. But a Redis whose memory is full lets a script go on after its first write.
redis.call('ZREMRANGEBYRANK', KEYS[1], 1, 0)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for _, tag in ipairs(ARGV) do
  redis.call('ZADD', KEYS[1], 'XX', now, tag)
end

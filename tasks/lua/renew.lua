-- Renew notes: their worker lives, so they are not overdue. Those that are gone stay gone.
-- KEYS  1 unacked_index
-- ARGV  the tags
-- It removes nothing; but after a write, a Redis whose memory is full lets a script go on.
redis.call('ZREMRANGEBYRANK', KEYS[1], 1, 0)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for _, tag in ipairs(ARGV) do
  redis.call('ZADD', KEYS[1], 'XX', now, tag)
end

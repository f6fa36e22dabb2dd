-- Renew unacked entries, so that they do not become overdue.
-- KEYS  1 unacked  2 unacked_index
-- ARGV  the tags
-- Returns those that are no longer here: somebody gave these messages back.
-- This removes nothing. But a Redis whose memory is full lets a script go on after its first write.
redis.call('ZREM', KEYS[2], '')
local time = redis.call('TIME')
local lost = {}
for _, tag in ipairs(ARGV) do
  if redis.call('HGET', KEYS[1], tag) then
    redis.call('ZADD', KEYS[2], time[1] + time[2] / 1000000, tag)
  else
    lost[#lost + 1] = tag
  end
end
return lost

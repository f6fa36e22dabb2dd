-- Read the unacked entries that are older than the visibility timeout, newest first. One that has no
-- time gets the present one.
-- KEYS  1 unacked  2 unacked_index
-- ARGV  1 visibility timeout in s  2 how many at most
-- Returns pairs: tag, entry.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
-- Somebody may have removed the index. A user with older rights may not count: then it stays so.
local entries, times = redis.pcall('HLEN', KEYS[1]), redis.pcall('ZCARD', KEYS[2])
if type(entries) == 'number' and type(times) == 'number' and entries > times then
  -- This removes nothing. But a Redis whose memory is full lets a script go on after its first write.
  redis.call('ZREMRANGEBYRANK', KEYS[2], 1, 0)
  for _, tag in ipairs(redis.call('HKEYS', KEYS[1])) do
    redis.call('ZADD', KEYS[2], 'NX', now, tag)
  end
end
local latest = now - ARGV[1]
local found = {}
local tags = redis.call('ZRANGE', KEYS[2], latest, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, ARGV[2])
for _, tag in ipairs(tags) do
  local entry = redis.call('HGET', KEYS[1], tag)
  if entry then
    found[#found + 1] = tag
    found[#found + 1] = entry
  else
    redis.call('ZREM', KEYS[2], tag)
  end
end
return found

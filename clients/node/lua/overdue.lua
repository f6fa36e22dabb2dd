-- Read the unacked entries that nobody has renewed for a while.
-- KEYS  1 unacked  2 unacked_index
-- ARGV  1 the age in s  2 how many at most
-- Returns pairs: tag, entry; newest first.
local time = redis.call('TIME')
local latest = time[1] + time[2] / 1000000 - ARGV[1]
local found = {}
local tags = redis.call('ZREVRANGEBYSCORE', KEYS[2], latest, '-inf', 'LIMIT', 0, ARGV[2])
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

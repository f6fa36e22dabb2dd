-- Put an unacked message back to that end of its list from which it is taken next.
-- KEYS  1 unacked  2 unacked_index  3 the list
-- ARGV  1 tag  2 the entry as the caller has read it, or nothing: any  3 the message
--       4 the age in s that the entry must have, 0 for any
-- Returns 1, or 0 if somebody else was first: the message is done, back, or in work again.
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry or (ARGV[2] ~= '' and ARGV[2] ~= entry) then
  return 0
end
local time = redis.call('TIME')
local since = redis.call('ZSCORE', KEYS[2], ARGV[1])
if since and time[1] + time[2] / 1000000 - since < tonumber(ARGV[4]) then
  return 0
end
-- This removes nothing. But a Redis whose memory is full lets a script go on after its first write.
redis.call('ZREM', KEYS[2], '')
redis.call('RPUSH', KEYS[3], ARGV[3]) -- pushed first: an error here leaves the entry
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
return 1

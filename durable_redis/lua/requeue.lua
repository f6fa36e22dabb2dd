-- Move an unacked message to lists, if its entry is still the one that the caller has read.
-- KEYS  1 unacked  2 unacked_index  then the lists
-- ARGV  1 tag  2 the entry as the caller read it  3 what to push
--       4 RPUSH (next in turn) or LPUSH (last)  5 the age in s that the entry must have, -1 for any
-- Returns 1, or 0 if somebody else was first: the message is done, back, or in work again.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
if tonumber(ARGV[5]) >= 0 then
  local time = redis.call('TIME')
  local since = redis.call('ZSCORE', KEYS[2], ARGV[1])
  if since and time[1] + time[2] / 1000000 - since < tonumber(ARGV[5]) then
    return 0
  end
end
-- This removes nothing. But a Redis whose memory is full lets a script go on after its first write.
redis.call('ZREMRANGEBYRANK', KEYS[2], 1, 0)
for i = 3, #KEYS do
  redis.call(ARGV[4], KEYS[i], ARGV[3]) -- pushed first: an error here leaves the entry
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
return 1

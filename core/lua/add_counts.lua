-- Add to the counters, once a push, however often it is sent; count its contents in this minute too.
-- KEYS  1 the counters (hash)  2 the mark of the process that pushes  3 contents by minute (hash)
-- ARGV  number of the push, seconds to remember it, contents assigned, minutes to keep, then field and
--       amount in turn
-- Returns 1, or 0 if this push was added before.
if redis.call('GET', KEYS[2]) == ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
for i = 5, #ARGV, 2 do
  redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], ARGV[i + 1])
end
if tonumber(ARGV[3]) > 0 then
  local minute = math.floor(tonumber(redis.call('TIME')[1]) / 60)
  if redis.call('HSETNX', KEYS[3], minute, 0) == 1 then -- the first of a minute forgets the oldest
    for _, old in ipairs(redis.call('HKEYS', KEYS[3])) do
      if tonumber(old) <= minute - tonumber(ARGV[4]) then
        redis.call('HDEL', KEYS[3], old)
      end
    end
    redis.call('EXPIRE', KEYS[3], tonumber(ARGV[4]) * 60)
  end
  redis.call('HINCRBYFLOAT', KEYS[3], minute, ARGV[3])
end
return 1

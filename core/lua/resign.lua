-- Let the next beat lead: this one ends.
-- KEYS  1 the lease (string: the beat that leads)  2 the beats (sorted set: beat -> time, s)
-- ARGV  beat
-- Returns nothing.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
redis.call('ZADD', KEYS[2], 0, ARGV[1]) -- it was here, and is gone

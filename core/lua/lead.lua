-- Let a beat lead, or go on leading, unless another does; note that it is alive.
-- KEYS  1 the lease (string: the beat that leads)  2 the beats (sorted set: beat -> time, s)
-- ARGV  beat, milliseconds of the lease, seconds after which a silent beat is forgotten
-- Returns the beat that leads.
local leader = redis.call('GET', KEYS[1])
if not leader or leader == ARGV[1] then
  leader = ARGV[1]
  redis.call('SET', KEYS[1], leader, 'PX', ARGV[2])
end
local now = redis.call('TIME')[1]
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])
return leader

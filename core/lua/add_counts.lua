-- Add to the counters, once a push, however often it is sent.
-- KEYS  1 the counters (hash)  2 the mark of the process that pushes
-- ARGV  number of the push, seconds to remember it, then field and amount in turn
-- Returns 1, or 0 if this push was added before.
if redis.call('GET', KEYS[2]) == ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
for i = 3, #ARGV, 2 do
  redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], ARGV[i + 1])
end
return 1

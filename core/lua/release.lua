-- Take claims back, each only while it is still this claimant's.
-- KEYS  1 free slots  2 assignments  3 claims
-- ARGV  1 "1" if the slots are open again, "0" if Postgres gave them to others
--       then pairs: claimant, essay id
-- Returns nothing.
for i = 2, #ARGV, 2 do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[2], ARGV[i])
    redis.call('ZREM', KEYS[3], ARGV[i + 1])
    if ARGV[1] == '1' then
      redis.call('SADD', KEYS[1], ARGV[i + 1])
    end
  end
end

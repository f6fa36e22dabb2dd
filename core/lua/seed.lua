-- Make slots claimable that are open in Postgres, but those that somebody claimed a moment ago.
-- KEYS  1 free slots  2 assignments  3 claims
-- ARGV  1 "1" to forget the free slots that Redis had, "0" to add to them
--       2 how long a claim may stay uncommitted, in ms  3 time to live of the keys, in s
--       4 the essay ids of open slots, a space between two: an argument each takes as long again;
--       under 8 000 of them, as many as Lua unpacks
-- Returns how many slots were made claimable.
if ARGV[1] == '1' then
  redis.call('DEL', KEYS[1])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local any_claimed = redis.call('EXISTS', KEYS[3]) == 1
local free = {}
for slot in string.gmatch(ARGV[4], '%S+') do
  local claimed = any_claimed and redis.call('ZSCORE', KEYS[3], slot)
  if not claimed then
    free[#free + 1] = slot
  elseif now - tonumber(claimed) > tonumber(ARGV[2]) then
    redis.call('ZREM', KEYS[3], slot)
    free[#free + 1] = slot
  end
end
local seeded = #free > 0 and redis.call('SADD', KEYS[1], unpack(free)) or 0
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ARGV[3])
end
return seeded

-- Give each claimant the slot that it already holds, or the next free one.
-- KEYS  1 free slots (set of essay ids)  2 assignments (hash, claimant -> essay id)
--       3 claims (sorted set, essay id -> time of the claim in ms)
-- ARGV  the claimants
-- Returns, for each claimant: {essay id, 1 if the claim is new else 0}, {"", 0} if no slot is free;
-- or the integer -1 for the whole call if Redis knows nothing of this batch.
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then
  return -1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {}
for i, claimant in ipairs(ARGV) do
  local held = redis.call('HGET', KEYS[2], claimant)
  if held then
    answer[i] = {held, 0}
  else
    local essay = redis.call('SPOP', KEYS[1])
    if essay then
      redis.call('HSET', KEYS[2], claimant, essay)
      redis.call('ZADD', KEYS[3], now, essay)
      answer[i] = {essay, 1}
    else
      answer[i] = {'', 0}
    end
  end
end
return answer

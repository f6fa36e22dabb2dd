-- Give each claimant the slot that it already holds, or the next free one.
-- KEYS  1 free slots (set of essay ids)  2 assignments (hash, claimant -> essay id)
--       3 claims (sorted set, essay id -> time of the claim in ms)
-- ARGV  the claimants; under 4 000 of them, as Lua unpacks under 8 000 values
-- Returns two lists: for each claimant its essay id, or "" if no slot is free; and for each 1 if the
-- claim is new, else 0. Or the integer -1 if Redis knows nothing of this batch.
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then
  return -1
end
local held = redis.call('HMGET', KEYS[2], unpack(ARGV))
local slot_of, first, slots, new = {}, {}, {}, {}
for i, claimant in ipairs(ARGV) do
  if held[i] then
    slot_of[claimant] = held[i]
  elseif slot_of[claimant] == nil then
    slot_of[claimant] = ''
    first[#first + 1] = i
  end
  new[i] = 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local assignments, claims = {}, {}
for n, essay in ipairs(redis.call('SPOP', KEYS[1], #first)) do
  local claimant = ARGV[first[n]]
  slot_of[claimant] = essay
  new[first[n]] = 1
  assignments[2 * n - 1], assignments[2 * n] = claimant, essay
  claims[2 * n - 1], claims[2 * n] = now, essay
end
if #claims > 0 then
  redis.call('HSET', KEYS[2], unpack(assignments))
  redis.call('ZADD', KEYS[3], unpack(claims))
end
for i, claimant in ipairs(ARGV) do
  slots[i] = slot_of[claimant]
end
return {slots, new}

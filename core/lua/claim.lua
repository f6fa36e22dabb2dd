-- Give each claimant the slot that it already holds, or the next free one.
-- KEYS  1 free slots (set of essay ids)  2 assignments (hash, claimant -> essay id)
--       3 claims (sorted set, essay id -> time of the claim in ms)
-- ARGV  the claimants; under 4 000 of them, as Lua unpacks under 8 000 values
-- An empty essay id is no slot: somebody else has put it there.
-- Returns two lists: for each claimant its essay id, or "" if no slot is free; and for each 1 if the
-- claim is new, else 0. Or the integer -1 if Redis knows nothing of this batch.
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then
  return -1
end
local held = redis.call('HMGET', KEYS[2], unpack(ARGV))
local slot_of, first, slots, new = {}, {}, {}, {}
for i, claimant in ipairs(ARGV) do
  if held[i] and held[i] ~= '' then
    slot_of[claimant] = held[i]
  elseif slot_of[claimant] == nil then
    slot_of[claimant] = ''
    first[#first + 1] = i
  end
  new[i] = 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local assignments, claims, taken = {}, {}, 0
for n, essay in ipairs(redis.call('SPOP', KEYS[1], #first)) do
  local claimant = ARGV[first[n]]
  if essay ~= '' then
    slot_of[claimant] = essay
    new[first[n]] = 1
    taken = taken + 1
    assignments[2 * taken - 1], assignments[2 * taken] = claimant, essay
    claims[2 * taken - 1], claims[2 * taken] = now, essay
  end
end
if taken > 0 then
  redis.call('HSET', KEYS[2], unpack(assignments))
  redis.call('ZADD', KEYS[3], unpack(claims))
end
for i, claimant in ipairs(ARGV) do
  slots[i] = slot_of[claimant]
end
return {slots, new}

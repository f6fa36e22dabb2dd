-- Read the oldest message of a list, or the beginning of one that is too large.
-- KEYS  1 the list
-- ARGV  1 bytes of a message at most, 0: any  2 bytes of a beginning
-- Returns {the message's bytes in all, the message or its beginning}; nil if the list is empty.
local payload = redis.call('LINDEX', KEYS[1], -1)
if not payload then
  return nil
end
local largest = tonumber(ARGV[1])
local cut = largest > 0 and #payload > largest
return {#payload, cut and string.sub(payload, 1, ARGV[2]) or payload}

-- Remove the oldest message of a list, if it is still this one.
-- KEYS  1 the list
-- ARGV  1 the message's bytes in all  2 the message or its beginning
local payload = redis.call('LINDEX', KEYS[1], -1)
if payload and #payload == tonumber(ARGV[1]) and string.sub(payload, 1, #ARGV[2]) == ARGV[2] then
  redis.call('RPOP', KEYS[1])
end

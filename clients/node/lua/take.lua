-- Take the next message: pop it from the first list that has one, and write its unacked entry.
-- KEYS  1 unacked (hash, tag -> entry)  2 unacked_index (sorted set, tag -> time in s)
--       then the lists, in the order in which they are tried
-- ARGV  1 the tag that this message gets  2 the name of its queue
-- Returns the message; nil if all lists are empty.
local time = redis.call('TIME')
for i = 3, #KEYS do
  local payload = redis.call('RPOP', KEYS[i])
  if payload then
    -- As Kombu writes it: [message, exchange, routing key].
    local entry = '[' .. payload .. ', "", ' .. cjson.encode(ARGV[2]) .. ']'
    local written = redis.pcall('HSET', KEYS[1], ARGV[1], entry)
    if type(written) ~= 'table' then
      written = redis.pcall('ZADD', KEYS[2], time[1] + time[2] / 1000000, ARGV[1])
    end
    if type(written) == 'table' then -- a full memory, or a missing right: nothing has happened
      redis.call('RPUSH', KEYS[i], payload)
      redis.call('HDEL', KEYS[1], ARGV[1])
      return written
    end
    return payload
  end
end
return nil

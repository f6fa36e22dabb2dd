-- Take one message: pop it from the first list that has one, and note it as unacknowledged.
-- KEYS  1 unacked (hash, tag -> note)  2 unacked_index (sorted set, tag -> time of the note in s)
--       then the lists, in the order in which they are tried
--       then, for each list, the list for its junk
-- ARGV  for each list, the name of its queue
-- Returns {number of the list, tag, the message's own bytes}; {number of the list} if what was
-- popped cannot be noted for want of a tag, and is junk now; or nil if all lists are empty, and
-- then a client that tracks keys is told when one of them changes.
local function tag_of(payload)
  local parsed, message = pcall(cjson.decode, payload)
  local properties = parsed and type(message) == 'table' and message.properties
  local tag = type(properties) == 'table' and properties.delivery_tag
  return (type(tag) == 'string' or type(tag) == 'number') and tostring(tag)
end

local function put_back(list, payload, failure)
  redis.call('RPUSH', list, payload)
  return failure
end

for i, queue in ipairs(ARGV) do
  local list = KEYS[2 + i]
  -- Popped first: after a write, a Redis whose memory is full lets the script go on.
  local payload = redis.call('RPOP', list)
  if payload then
    local tag = tag_of(payload)
    if not tag then
      local kept = redis.pcall('LPUSH', KEYS[2 + #ARGV + i], payload)
      return type(kept) == 'table' and put_back(list, payload, kept) or {i}
    end
    -- As the stock transport notes it: [message, exchange, routing key]. It is to come back to
    -- this list, and not to all that its exchange leads to.
    local note = '[' .. payload .. ', "", ' .. cjson.encode(queue) .. ']'
    local noted = redis.pcall('HSETNX', KEYS[1], tag, note)
    while noted == 0 do -- a copy of it is in work
      tag = tag .. '+'
      noted = redis.pcall('HSETNX', KEYS[1], tag, note)
    end
    if type(noted) == 'table' then
      return put_back(list, payload, noted)
    end
    local time = redis.call('TIME')
    local indexed = redis.pcall('ZADD', KEYS[2], time[1] + time[2] / 1000000, tag)
    if type(indexed) == 'table' then
      redis.call('HDEL', KEYS[1], tag)
      return put_back(list, payload, indexed)
    end
    return {i, tag, payload}
  end
end
redis.call('EXISTS', unpack(KEYS, 3, 2 + #ARGV)) -- only what is read is tracked
return nil

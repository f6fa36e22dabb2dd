-- Take the next message: pop it from the first list that has one, and note it as unacknowledged.
-- If it calls a task whose messages are taken together, take those of such tasks right behind it.
-- KEYS  1 unacked (hash, tag -> note)  2 unacked_index (sorted set, tag -> time of the note in s)
--       then the lists, in the order in which they are tried
--       then, for each list, the list for its junk
-- ARGV  1 the tasks whose messages are taken together, a space around each
--       2 how many at most  3 of how many bytes in all at most; one is taken whatever its size
--       then, for each list, the name of its queue
-- Returns {number of the list, tag, the message's own bytes, and so on for each message};
-- {number of the list} if what was popped cannot be noted for want of a tag, and is junk now; or
-- nil if all lists are empty, and then a client that tracks keys is told when one of them changes.
local lists = #ARGV - 3
local time = redis.call('TIME')

local function read(payload) -- Returns tag and task; no tag: it is junk.
  local parsed, message = pcall(cjson.decode, payload)
  local properties = parsed and type(message) == 'table' and message.properties
  local tag = type(properties) == 'table' and properties.delivery_tag
  local headers = tag and message.headers
  local task = type(headers) == 'table' and headers.task
  return (type(tag) == 'string' or type(tag) == 'number') and tostring(tag), task
end

local function note(tag, payload, queue) -- Returns the tag that it is noted by, or an error.
  -- As the stock transport notes it: [message, exchange, routing key]. It is to come back to
  -- this list, and not to all that its exchange leads to.
  local written = '[' .. payload .. ', "", ' .. cjson.encode(queue) .. ']'
  local noted = redis.pcall('HSETNX', KEYS[1], tag, written)
  while noted == 0 do -- a copy of it is in work
    tag = tag .. '+'
    noted = redis.pcall('HSETNX', KEYS[1], tag, written)
  end
  if type(noted) == 'table' then
    return noted
  end
  local indexed = redis.pcall('ZADD', KEYS[2], time[1] + time[2] / 1000000, tag)
  if type(indexed) == 'table' then
    redis.call('HDEL', KEYS[1], tag)
    return indexed
  end
  return tag
end

local function together(task)
  return type(task) == 'string' and string.find(ARGV[1], ' ' .. task .. ' ', 1, true)
end

local function put_back(list, payload, failure)
  redis.call('RPUSH', list, payload)
  return failure
end

for i = 1, lists do
  local list, queue = KEYS[2 + i], ARGV[3 + i]
  -- Popped first: after a write, a Redis whose memory is full lets the script go on.
  local payload = redis.call('RPOP', list)
  if payload then
    local tag, task = read(payload)
    if not tag then
      local kept = redis.pcall('LPUSH', KEYS[2 + lists + i], payload)
      return type(kept) == 'table' and put_back(list, payload, kept) or {i}
    end
    local noted = note(tag, payload, queue)
    if type(noted) == 'table' then
      return put_back(list, payload, noted)
    end
    local taken, bytes = {i, noted, payload}, #payload
    while together(task) and #taken < 1 + 2 * ARGV[2] do
      payload = redis.call('LINDEX', list, -1)
      bytes = bytes + #(payload or '')
      if not payload or bytes > tonumber(ARGV[3]) then
        break
      end
      tag, task = read(payload)
      if not tag or not together(task) then
        break
      end
      noted = note(tag, payload, queue)
      if type(noted) == 'table' then
        break -- it stays where it is
      end
      redis.call('RPOP', list)
      taken[#taken + 1] = noted
      taken[#taken + 1] = payload
    end
    return taken
  end
end
redis.call('EXISTS', unpack(KEYS, 3, 2 + lists)) -- only what is read is tracked
return nil

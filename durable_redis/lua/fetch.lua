-- Fetch the next message: pop it from the first list that has one, and write its unacked entry.
-- If it calls a task of the batching option, fetch those of such tasks right behind it too.
-- KEYS  1 unacked (hash, tag -> entry)  2 unacked_index (sorted set, tag -> time in s)
--       then the lists, in the order in which they are tried
--       then, for each list, the list for its malformed messages
-- ARGV  1 the tasks of the batching option, a space around each
--       2 messages at most  3 bytes at most in all; a single message may have any size
--       4 bytes of a message at most, 0: any; a larger one is malformed, and never parsed
--       then, for each list, the name of its queue
-- Returns {number of the list, tag, the message's own bytes, and so on for each message};
-- {number of the list} if a message without a tag was moved to the list for malformed ones; or nil
-- if all lists are empty. Redis then tells a client that tracks keys when one of the lists changes.
local lists, largest = #ARGV - 4, tonumber(ARGV[4])
local time = redis.call('TIME')

local function read(payload) -- Returns tag and task; no tag: the message is malformed.
  if largest > 0 and #payload > largest then
    return nil
  end
  local parsed, message = pcall(cjson.decode, payload)
  if not parsed then -- cjson takes no half of a surrogate pair, which Python writes and reads
    parsed, message = pcall(cjson.decode, (string.gsub(payload, '\\u[dD][89a-fA-F]%x%x', '\\u0020')))
  end
  local properties = parsed and type(message) == 'table' and message.properties
  local tag = type(properties) == 'table' and properties.delivery_tag
  local headers = tag and message.headers
  local task = type(headers) == 'table' and headers.task
  return (type(tag) == 'string' or type(tag) == 'number') and tostring(tag), task
end

local function write_entry(tag, payload, queue) -- Returns the tag of the entry, or an error.
  -- As the stock transport writes it: [message, exchange, routing key]. An empty exchange, so that
  -- the message comes back to this list alone, and not to all that its exchange leads to.
  local entry = '[' .. payload .. ', "", ' .. cjson.encode(queue) .. ']'
  local written = redis.pcall('HSETNX', KEYS[1], tag, entry)
  while written == 0 do -- a copy of the message is in work
    tag = tag .. '+'
    written = redis.pcall('HSETNX', KEYS[1], tag, entry)
  end
  if type(written) == 'table' then
    return written
  end
  local indexed = redis.pcall('ZADD', KEYS[2], time[1] + time[2] / 1000000, tag)
  if type(indexed) == 'table' then
    redis.call('HDEL', KEYS[1], tag)
    return indexed
  end
  return tag
end

local function in_batches(task)
  return type(task) == 'string' and string.find(ARGV[1], ' ' .. task .. ' ', 1, true)
end

local function put_back(list, payload, failure)
  redis.call('RPUSH', list, payload)
  return failure
end

for i = 1, lists do
  local list, queue = KEYS[2 + i], ARGV[4 + i]
  -- The pop comes first: a Redis whose memory is full lets a script go on after its first write.
  local payload = redis.call('RPOP', list)
  if payload then
    local tag, task = read(payload)
    if not tag then
      local kept = redis.pcall('LPUSH', KEYS[2 + lists + i], payload)
      return type(kept) == 'table' and put_back(list, payload, kept) or {i}
    end
    local written = write_entry(tag, payload, queue)
    if type(written) == 'table' then
      return put_back(list, payload, written)
    end
    local fetched, bytes = {i, written, payload}, #payload
    while in_batches(task) and #fetched < 1 + 2 * ARGV[2] do
      payload = redis.call('LINDEX', list, -1)
      bytes = bytes + #(payload or '')
      if not payload or bytes > tonumber(ARGV[3]) then
        break
      end
      tag, task = read(payload)
      if not tag or not in_batches(task) then
        break
      end
      written = write_entry(tag, payload, queue)
      if type(written) == 'table' then
        break -- it stays in its list
      end
      redis.call('RPOP', list)
      fetched[#fetched + 1] = written
      fetched[#fetched + 1] = payload
    end
    return fetched
  end
end
redis.call('EXISTS', unpack(KEYS, 3, 2 + lists)) -- Redis tracks only keys that were read
return nil

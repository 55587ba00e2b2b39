-- append: the writes that may fail, before any that may not: all of them or none. Needs nothing.

-- appends events to the stream, then runs one more command; on a failure takes the entries back and answers it
local function append(stream, events, last)
  local added = {}
  for i = 1, #events + 1 do
    local reply
    if i <= #events then reply = redis.pcall('XADD', stream, '*', 'e', events[i])
    elseif last then reply = redis.pcall(unpack(last)) end
    if type(reply) == 'table' and reply.err then
      for _, id in ipairs(added) do redis.call('XDEL', stream, id) end
      return reply
    end
    added[i] = reply
  end
  return nil
end

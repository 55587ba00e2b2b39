-- append: entries to the outbox, all of them or none. Needs state.

-- on a failure takes back what it appended and answers the error
local function append(stream, events)
  for i = 1, #events do
    local id = try('XADD', stream, '*', 'e', events[i])
    if kind_of(id) == 'table' then
      for j = 1, i - 1 do call('XDEL', stream, events[j]) end
      return id
    end
    events[i] = id
  end
  return nil
end

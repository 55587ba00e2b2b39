-- append: entries to streams, and what else may fail: all of it or nothing. Needs state, batch.

-- on a failure takes back what it appended and answers the error; the entries become their ids
local function append(stream, entries, count)
  for i = 1, count or #entries do
    if written_as ~= TODAY then entries[i] = ENTRY.earlier(entries[i]) end
    local id = try('XADD', stream, '*', 'e', entries[i])
    if kind_of(id) == 'table' then
      if i > 1 then call('XDEL', stream, values(entries, 1, i - 1)) end
      return id
    end
    entries[i] = id
  end
  return nil
end

-- whether a call of a function is past what may fail
local is_writing = false

-- the same, then a command with many members, which may fail too: what comes after these may not
local function append_and(stream, entries, count, verb, name, members, member_count)
  local err = count > 0 and append(stream, entries, count)
  if err then return err end
  local done = try(verb, name, values(members, 1, member_count))
  if kind_of(done) ~= 'table' then
    is_writing = true
    return nil
  end
  if count > 0 then call('XDEL', stream, values(entries, 1, count)) end
  return done
end

-- append: adds entries to streams, and other writes that may fail, all or none. Needs state, batch.

-- After a failure, deletes what it added and returns the error; otherwise the entries are replaced by their ids.
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

-- Whether the writes that may fail are done.
local is_writing = false

-- Like `append`, then a command with many members, which may fail too; no later command may.
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

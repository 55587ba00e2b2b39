-- write: what the calls of one call of a function moved, all at once. Needs state, batch, accounts, account, kept.

-- As `leave_part`, of a part whose only call has moved nothing but these (PART_ALONE): they stand in the order tenant, organization,
-- key, user, and each is written out here instead of found by a loop
local function leave_call(keys)
  local count, at, places, accounts = write_count, places_before + 2, packed_at, account_of
  local name, raw, account = keys[at + keys_before], packed_of(raw_of[at], accounts[at], SCOPE_TENANT), accounts[at]
  remember(name, account, raw, places[SCOPE_TENANT])
  write_of[count + 1], write_of[count + 2], accounts[at] = name, raw, nil
  count, at, account = count + 2, at + 1, accounts[at + 1]
  if account then
    name, raw = keys[at + keys_before], packed_of(raw_of[at], account, SCOPE_ORGANIZATION)
    remember(name, account, raw, places[SCOPE_ORGANIZATION])
    write_of[count + 1], write_of[count + 2] = name, raw
    count = count + 2
  end
  accounts[at] = nil
  at, account = at + 1, accounts[at + 1]
  if account then
    name, raw = keys[at + keys_before], packed_of(raw_of[at], account, SCOPE_KEY)
    remember(name, account, raw, places[SCOPE_KEY])
    write_of[count + 1], write_of[count + 2] = name, raw
    count = count + 2
  end
  accounts[at] = nil
  at, account = at + 1, accounts[at + 1]
  if account then
    name, raw = keys[at + keys_before], packed_of(raw_of[at], account, SCOPE_USER)
    remember(name, account, raw, places[SCOPE_USER])
    if keep_user(name, raw, account, shared_now) then
      write_of[count + 1], write_of[count + 2] = name, raw
      count = count + 2
    end
  end
  accounts[at] = nil
  write_count = count
end

-- notes what a part, which has so many places, moved: nothing here fails. An account asked in vain stays opened as it was
local function leave_part(keys, places)
  if part_is == PART_ALONE then leave_call(keys) end
  local count = write_count
  for at = places_before + 2, part_is == PART_OPEN and places_before + places or 0 do
    local account = account_of[at]
    if account ~= nil then account_of[at] = nil end
    if account then
      local name, scope, raw, is_moved, packed = keys[at + keys_before], scope_of[at], raw_of[at], moved_of[at], nil
      if scope < ACTIVATED then
        if is_moved then
          raw = packed_of(raw, account, scope)
          if scope ~= SCOPE_USER then packed = raw else packed = keep_user(name, raw, account, shared_now) end
        end
        if is_moved or not reset_of[at] then remember(name, account, raw, packed_at[scope]) end
      elseif not is_moved then
        if scope == BUDGETED and raw then remember(name, account, raw, PACKED) end
      elseif scope == ACTIVATED then packed = ACTIVATION.written(account)
      elseif account[IS_EACH] or not account[DEFINITION] then
        left_count = left_count + 1
        left_of[left_count], layout_of[left_count] = account, written_as
      else
        packed, account[IS_NEW] = packed_budget(account), false
        remember(name, account, packed, PACKED)
      end
      if packed then
        write_of[count + 1], write_of[count + 2] = name, packed
        count = count + 2
      end
    end
  end
  part_is = PART_CLOSED
  if written_as ~= TODAY then all_as_written(write_of, write_before + 1, count) end
  write_count = count
end

-- writes what all parts left: nothing here fails
local function write_all()
  if gone_count > 0 then call('DEL', values(gone_of, 1, gone_count)) end
  if write_count > 0 then call('MSET', values(write_of, 1, write_count)) end
  local last = written_as -- that of the last marker, which the next call may have too
  for i = 1, left_count do
    written_as = layout_of[i]
    write_budget(left_of[i], raw_of[left_of[i][PLACE]], shared_now)
  end
  written_as = last
end

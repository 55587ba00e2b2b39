-- write: writes what the calls of a function call moved, all at once. Needs state, batch, accounts, account_bytes, account, kept.

-- Like `leave_part`, for a part whose only call has moved nothing but these (PART_ALONE), in the order tenant, organization, key,
-- user, without a loop.
local function leave_call(keys)
  local accounts, raws, writes, count, at = account_of, raw_of, write_of, write_count, places_before + 2
  local place, tenant, organization, api_key, user = at + keys_before, accounts[at], accounts[at + 1], accounts[at + 2], accounts[at + 3]
  accounts[at], accounts[at + 1], accounts[at + 2], accounts[at + 3] = nil, nil, nil, nil
  writes[count + 1], writes[count + 2] = keys[place], packed_tenant(raws[at], tenant)
  count = count + 2
  if organization then
    writes[count + 1], writes[count + 2] = keys[place + 1], packed_organization(raws[at + 1], organization)
    count = count + 2
  end
  if api_key then
    writes[count + 1], writes[count + 2] = keys[place + 2], packed_head(raws[at + 2], api_key, KEY_SIZE + 1)
    count = count + 2
  end
  if user then
    local packed = packed_head(raws[at + 3], user, USER_SIZE + 1)
    if keep_user(keys[place + 3], packed, user, shared_now) then
      writes[count + 1], writes[count + 2] = keys[place + 3], packed
      count = count + 2
    end
  end
  if written_as ~= TODAY then all_as_written(writes, write_before + 1, count) end
  write_count, part_is = count, PART_CLOSED
end

-- Collects the writes of a part with this many places; nothing here fails. An unmoved account stays in the cache.
local function leave_part(keys, places)
  if part_is == PART_ALONE then return leave_call(keys) end
  local count = write_count
  for at = places_before + 2, places_before + places do
    local account = account_of[at]
    if account ~= nil then
      local name, scope, is_moved, packed = keys[at + keys_before], scope_of[at], moved_of[at], nil
      account_of[at], moved_of[at], reset_of[at] = nil, nil, nil
      if not (account and is_moved) then
        if account and scope == BUDGETED and raw_of[at] then remember(name, account, raw_of[at], PACKED) end
      elseif scope < ACTIVATED then
        packed = packed_of(raw_of[at], account, scope)
        remember(name, account, packed, packed_at[scope])
        if scope == SCOPE_USER then packed = keep_user(name, packed, account, shared_now) end
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

-- Writes the collected states of all parts; nothing here fails.
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

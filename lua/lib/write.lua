-- write: what the calls of one call of a function moved, all at once. Needs state, batch, accounts, account, kept.
-- notes what a part, which has so many places, moved: nothing here fails. An account asked in vain stays opened as it was
local function leave_part(keys, places)
  local count = write_count
  for at = places_before + 2, places_before + places do
    local account = account_of[at]
    if account then
      local name, scope, packed = keys[at + keys_before], scope_of[at], nil
      if scope < ACTIVATED and moved_of[at] then
        packed = packed_at(at, account, scope)
        remember(name, account, packed)
        if scope == SCOPE_USER then packed = keep_user(name, packed, account, shared_now) end
      elseif not moved_of[at] then
        if scope < ACTIVATED and not reset_of[at] or scope == BUDGETED and raw_of[at] then remember(name, account, raw_of[at]) end
      elseif scope == BUDGETED and (account[IS_EACH] or not account[DEFINITION]) then
        left_count = left_count + 1
        left_of[left_count], layout_of[left_count] = account, written_as
      elseif scope == ACTIVATED then packed = ACTIVATION.written(account)
      else
        packed, account[IS_NEW] = packed_budget(account), false
        remember(name, account, packed)
      end
      if packed then
        write_of[count + 1], write_of[count + 2] = name, packed
        count = count + 2
      end
    end
  end
  if written_as ~= TODAY then all_as_written(write_of, write_before + 1, count) end
  write_count = count
end

-- writes what all parts left: nothing here fails
local function write_all()
  if gone_count > 0 then call('DEL', values(gone_of, 1, gone_count)) end
  if write_count > 0 then call('MSET', values(write_of, 1, write_count)) end
  for i = 1, left_count do
    local account = left_of[i]
    written_as = layout_of[i]
    write_budget(account, raw_of[account[PLACE]], shared_now)
  end
end

-- budgeted: finds the budget accounts that a call takes from. Needs state, accounts, definition, account.

-- The opened budget account at a place.
local function open_budget(at, key)
  local raw = raw_of[at]
  local account = raw and remembered(key, raw, PACKED) or account_of_state(key, raw)
  account[PLACE], account_of[at], scope_of[at] = at, account, BUDGETED
  return account
end

local last_group, last_defined_at
-- The previous call's accounts, if this call names the same ones and brings the same definitions; else nil.
local function accounts_again(group, argv, defined_at)
  if group ~= last_group or not last_accounts or not defined_at ~= not last_defined_at then return nil end
  if defined_at then
    for i = 0, #last_accounts - 1 do
      if argv[defined_at + i] ~= argv[last_defined_at + i] then return nil end
    end
  end
  return last_accounts
end

-- The accounts of a call, whose places are in its `shape` from `at` to `last`, or are these numbers; each account of one owner is
-- followed by its index. Definitions are arguments from `defined_at` on, or absent. `apart` makes copies, for a call that gives
-- amounts back before the last check. Calls of one `group` name the same accounts.
local function accounts_at(keys, shape, group, at, last, argv, defined_at, now, apart)
  local accounts, count = group and not apart and accounts_again(group, argv, defined_at), 0
  if accounts then return accounts end
  accounts = {}
  while at <= last do
    if count == BUDGET_ACCOUNTS_MAX then error({err = 'ERR a call takes from up to ' .. BUDGET_ACCOUNTS_MAX .. ' budget accounts'}) end
    local place = shape and places_before + byte(shape, at) or at
    local account, defined = account_of[place] or open_budget(place, keys[place + keys_before]), defined_at and argv[defined_at + count]
    at = at + 1
    if account[IS_EACH] then
      if at > last then error({err = 'ERR a budget account for each comes with its index'}) end
      account[INDEX], at = keys[(shape and places_before + byte(shape, at) or at) + keys_before], at + 1
    end
    local definition = account[DEFINITION]
    if not definition or now >= definition[FIRST_END] or (defined and defined ~= definition[LIVE]) then account = as_of(account, defined, now) end
    if apart and account == account_of[place] then
      account = {values(account)}
      account[METERS] = {values(account[METERS])}
    end
    count = count + 1
    accounts[count] = account
  end
  last_accounts, last_group, last_defined_at = not apart and accounts, group, defined_at
  return accounts
end

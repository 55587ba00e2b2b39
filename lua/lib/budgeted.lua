-- budgeted: from which accounts of budgets a call takes. Needs state, accounts, definition, account.
local ACCOUNTS_MAX = 16

-- what is stored of budgets at a place, opened
local function open_budget(at, key)
  local raw = raw_of[at]
  local account = raw and take_remembered(key, raw) or account_of_state(key, raw)
  account[PLACE], account_of[at], scope_of[at] = at, account, BUDGETED
  return account
end

-- the accounts of a call, whose places are in its `shape`, from `at` to `last`, or these themselves; of accounts for each that of
-- their index is behind it. Definitions come from argument `defined_at` on, or not at all. They are apart from what is
-- kept where something is given back before the last check
local function accounts_at(keys, shape, at, last, argv, defined_at, now, apart)
  local accounts, count = {}, 0
  while at <= last do
    if count == ACCOUNTS_MAX then error({err = 'ERR a call takes from up to 16 budget accounts'}) end
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
  return accounts
end

-- what a call made of its accounts is what the next one finds
local function keep_accounts(accounts)
  for i = 1, #accounts do
    local account = accounts[i]
    local at, is_new = account[PLACE], account[IS_NEW]
    account_of[at], moved_of[at] = account, true
    if is_new == MADE then account[IS_NEW] = false
    elseif is_new and account[DEFINITION] then
      local index = account[INDEX]
      account[IS_NEW] = MADE
      if index then makes, made_of[index] = true, (made_of[index] or 0) + 1 end
    end
  end
end

local name_parts = {}
-- how a hold names accounts, each with all its windows
local function held_as(accounts)
  local count = #accounts
  for i = 1, count do
    local account = accounts[i]
    local named, definition = account[HELD_AS], account[DEFINITION]
    if not named then
      local name, ids = sub(account[KEY_NAME], NAME_AT), definition and definition[IDS] or ''
      named = HELD.pack{name = name, ids = ids}
      account[HELD_AS] = named
    end
    name_parts[i] = named
  end
  return table.concat(name_parts, '', 1, count)
end

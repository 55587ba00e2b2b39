-- budget_accounts: the budget accounts that a call took from: what is kept of them, and their names in its hold. Needs state,
-- accounts, account.

-- Keeps a call's changed accounts for the next call; for the same accounts, the second call clears `is_new`.
local kept_accounts, is_kept_again
local function keep_accounts(accounts)
  if accounts ~= kept_accounts then kept_accounts, is_kept_again = accounts, false
  elseif is_kept_again then return
  else is_kept_again = true end
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
-- The names of accounts in a hold, each with all its windows; the last result is cached.
local named_accounts, named_last
local function held_as(accounts)
  if accounts == named_accounts then return named_last end
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
  named_accounts, named_last = accounts, table.concat(name_parts, '', 1, count)
  return named_last
end

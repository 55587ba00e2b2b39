-- budget_accounts: an account of budgets as a list of windows, for any owner: opened, brought up to now, named in a hold, written.
-- needs: accounts carries state windows
-- sets: account_of last_accounts list_count lists made_of makes moved_of scope_of
-- Its state is a header, its present definition, then the used and held amount of each window, of each wide one the parts below a
-- whole unit, and of each that rolls its parts.
-- In a key: the colon before an owner, its index, and the index at which the account's name begins.
local COLON, COLON_AT, NAME_AT = 58, 28, 12
-- Fields of an account: its key, definition (false: it does not exist), used and held amounts in turn, its expiry, whether it is one
-- owner's, the key of these accounts' index, whether it was missing (MADE: a call of this batch has made it), its place among the
-- keys; packed, once needed: its name in a hold, and its windows in an entry; for one owner's account the number of calls in flight that
-- take from it. Behind are its packed state (PACKED), and what its rolling windows have free next (FREED).
local KEY_NAME, DEFINITION, METERS, EXPIRES, IS_EACH, INDEX, IS_NEW, PLACE, HELD_AS, TOLD_AS, CALLS, FREED = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13
local MADE = 1

local function account_of_state(key, raw)
  local is_each = byte(key, COLON_AT) == COLON
  if not raw then return {key, false, {}, 0, is_each, false, true, 0, false, false, 0, false} end
  if byte(raw) ~= TODAY then raw = today(raw, key) end
  local expires, calls, further = BUDGET.read(raw)
  local count = (#raw - BUDGET_BYTES - further * METER_BYTES) / (DEFINED_WINDOW_BYTES + METER_BYTES)
  local last = BUDGET_BYTES + count * DEFINED_WINDOW_BYTES
  count = count + further
  local meters = {parse(meter_form(count), raw, last + 1)}
  meters[count * 2 + 1] = nil
  return {key, definition_of(sub(raw, BUDGET_BYTES + 1, last)), meters, expires, is_each, false, false, 0, false, false, calls, false}
end

-- An account as of now, by its own definition or the one that a call brings; without either it does not exist. A changed account is a
-- new table, since a call that is refused must change nothing.
local function as_of(account, defined, now)
  local definition, meters = account[DEFINITION], account[METERS]
  if defined and not (definition and defined == definition[LIVE]) then
    definition, meters = rolled_windows(redefined_windows(roll_windows(opened_windows(definition, meters), now, true), definition_of(defined), now), now)
  elseif definition and now >= definition[FIRST_END] then
    definition, meters = rolled_windows(opened_windows(definition, meters), now)
  else return account end
  return {account[KEY_NAME], definition or false, meters, account[EXPIRES], account[IS_EACH], account[INDEX], account[IS_NEW], account[PLACE], false, false, account[CALLS], false}
end

local function account_at(key, raw, now, defined) return as_of(account_of_state(key, raw), raw and defined, now) end

-- The owner of a single owner's account, as an entry has it; nil for another account.
local function value_of(account)
  if not account[IS_EACH] then return nil end
  local value = sub(account[KEY_NAME], COLON_AT + 1)
  return value .. sub(NOBODY, #value + 1)
end

-- The packed state of an account.
local function packed_budget(account)
  local definition = account[DEFINITION]
  return BUDGET.before(definition[STATE_FORM], {flags = 0, expires = account[EXPIRES], calls = account[CALLS], further = definition[FURTHER]},
    definition[ALL], values(account[METERS]))
end

-- The opened budget account at a place.
local function open_budget(at, key)
  local raw = raw_of[at]
  local account = raw and remembered(key, raw, PACKED) or account_of_state(key, raw)
  account[PLACE], account_of[at], scope_of[at] = at, account, BUDGETED
  return account
end

local last_group, last_defined_at
-- The previous call's accounts, if this call names the same ones and brings the same definitions; else nil.
local function accounts_again(argv, defined_at)
  if group ~= last_group or not last_accounts or not defined_at ~= not last_defined_at then return nil end
  if defined_at then
    for i = 0, #last_accounts - 1 do
      if argv[defined_at + i] ~= argv[last_defined_at + i] then return nil end
    end
  end
  return last_accounts
end

-- The accounts that a part's calls keep (`keep_accounts`), and whether its second call has them, too.
local kept_accounts, is_kept_again

-- `lists` has them by the key of their last account (`list_name`); SEEN where one call that was alone in its part came. A list has the definitions
-- of its accounts (`known`), their number of keys, and the first end of a window: it holds while these are the same.
-- What follows from the accounts alone is kept with their list, too: `form`, `named` and `told`.
local LISTS_MAX, SEEN = 256, 0

-- The name of a call's list: the key of its last account. The index of an owner's account is no name, so owners that take turns have a list
-- each.
local function list_name(keys, last)
  local name = keys[last + keys_before - 1]
  return byte(name, COLON_AT) == COLON and name or keys[last + keys_before]
end

-- The list of this name, and whether it holds for the call; SEEN or nil without one.
local function list_again(name, keys, at, last, argv, defined_at, now)
  local list = lists[name]
  if not list or list == SEEN or list.key_count ~= last - at or now >= list.first_end then return list end
  local known, opened, raws, before = list.known, opened_of, raw_of, keys_before
  for i = 1, #known do
    local account, definition = list[i], known[i]
    if opened[keys[at + before]] ~= account or account[PACKED] ~= raws[at] or account[DEFINITION] ~= definition
      or (defined_at and argv[defined_at + i - 1] ~= definition[LIVE]) then return list end
    account[PLACE], at = at, at + (account[IS_EACH] and 2 or 1)
  end
  return list, true
end

-- Keeps a call's list for the next one, if its name `is_seen` before, and all its accounts were stored then.
local function keep_list(name, list, key_count, is_seen)
  if lists[name] == nil then
    if list_count == LISTS_MAX then lists, list_count = {}, 0 end
    list_count = list_count + 1
  end
  lists[name] = SEEN
  if not is_seen then return end
  local first_end, known = HUGE, {}
  for i, account in ipairs(list) do
    local definition = account[DEFINITION]
    if not definition or account[IS_NEW] then return end
    known[i], first_end = definition, min(first_end, definition[FIRST_END])
  end
  list.known, list.key_count, list.first_end, lists[name] = known, key_count, first_end, list
end

-- The accounts of budgets of a call: those it names behind `accounts_before` others, each account of one owner followed by its index. Definitions
-- are arguments from `defined_at` on, or absent. `apart` makes copies, for a call that gives amounts back before the last check.
local function accounts_at(keys, accounts_before, argv, defined_at, now, apart)
  local accounts, count = group and not apart and accounts_again(argv, defined_at), 0
  if accounts then return accounts end
  local at, last = places_before + accounts_before + 2, places_before + account_count + 1
  local first, is_seen, name = at, false, nil
  if shape then at, last = named_from + accounts_before, named_from + account_count - 1
  elseif not apart then
    name = list_name(keys, last)
    local list, is_same = list_again(name, keys, at, last, argv, defined_at, now)
    if is_same then
      kept_accounts = nil
      return list
    end
    is_seen = list ~= nil
  end
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
  if name then keep_list(name, accounts, last - first, is_seen) end
  last_accounts, last_group, last_defined_at = not apart and accounts, group, defined_at
  return accounts
end

-- Keeps a call's changed accounts for the next call; for the same accounts, the second call clears `is_new`.
local function keep_accounts(accounts)
  if accounts ~= kept_accounts then kept_accounts, is_kept_again = accounts, false
  elseif is_kept_again then return
  else is_kept_again = true end
  for i = 1, #accounts do
    local account = accounts[i]
    local at, is_new = account[PLACE], account[IS_NEW]
    account_of[at], moved_of[at], scope_of[at] = account, true, BUDGETED
    if is_new == MADE then account[IS_NEW] = false
    elseif is_new and account[DEFINITION] then
      local index = account[INDEX]
      account[IS_NEW] = MADE
      if index then makes, made_of[index] = true, (made_of[index] or 0) + 1 end
    end
  end
end

local name_parts = {}
-- The names of accounts in a hold, each with all its windows.
local function held_as(accounts)
  local names = accounts.named
  if names then return names end
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
  names = concat(name_parts, '', 1, count)
  accounts.named = names
  return names
end

-- How long such an account is stored after its last window; how many expired ones one write removes from the index.
local EACH_AFTER_MS, STALE_MOST = 86400000, 2

-- Sets the expiry of a single owner's account, in its index too, and removes some expired ones there. An account with an endless
-- window never expires (below 0): the index has the time until which it has a place.
local function keep_each(account, now)
  local index, definition = account[INDEX], account[DEFINITION]
  local last, unused = definition[LAST_END], (floor(now / DAY_MS) + EACH_UNUSED_DAYS + 1) * DAY_MS
  local expires = last == HUGE and -unused or max(last + EACH_AFTER_MS, definition[UNUSED_ENDS] and unused or 0)
  if expires == account[EXPIRES] then return end
  account[EXPIRES] = expires
  call('ZADD', index, abs(expires), sub(account[KEY_NAME], COLON_AT + 1))
  local stale = expires > 0 and call('ZRANGE', index, '-inf', now, 'BYSCORE', 'LIMIT', 0, STALE_MOST) or {}
  if #stale > 0 then call('ZREM', index, values(stale)) end
end

-- Whether a single owner's account is unused, with no call in flight that may use it: then it takes no place. A new account is about
-- to be used. One that carries has begun with its first use: from then on each interval leaves something, also an unused one.
local function is_unused(account)
  if not account[INDEX] or account[IS_NEW] or account[CALLS] > 0 then return false end
  for _, amount in ipairs(account[METERS]) do
    if amount ~= 0 then return false end
  end
  local definition = account[DEFINITION]
  for _, carrying in ipairs(definition[CARRIES] or carries.none) do
    local carry_flags = definition[FIELDS][(carrying[CARRIED_PLACE] - 1) * DEFINED_WINDOW_SIZE + WINDOW_FLAGS_AT]
    if has(carry_flags, CARRY_BEGUN) then return false end
  end
  return true
end

-- Writes an account in place if its length is unchanged, or deletes it; nothing here can fail.
local function write_budget(account, raw, now)
  local key, definition, ends = account[KEY_NAME], account[DEFINITION], account[EXPIRES]
  if definition and is_unused(account) then
    call('ZREM', account[INDEX], sub(key, COLON_AT + 1))
    definition = false
  end
  if not definition then
    account[PACKED] = UNKNOWN
    if not account[IS_NEW] then call('DEL', key) end
    return
  end
  if account[INDEX] then keep_each(account, now) end
  local packed, expires = packed_budget(account), account[EXPIRES]
  account[IS_NEW] = false
  remember(key, account, packed, PACKED)
  local state = as_written(key, packed)
  if expires <= 0 then call('MSET', key, state)
  elseif raw and expires == ends and #raw == #state then call('SETRANGE', key, 0, state) -- it ends when it did, for less
  else call('SET', key, state, 'PXAT', expires) end
end

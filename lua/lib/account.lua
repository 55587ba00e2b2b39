-- account: a budget account as a list of windows, for any owner. Needs state, accounts, definition, windows.
-- Its state is a header, its present definition, then the used and held amount of each window, of each wide one the parts below a
-- whole unit, and of each that rolls its parts.
-- In a key: the colon before an owner, its index, and the index at which the account's name begins.
local COLON, COLON_AT, NAME_AT = 58, 28, 12
-- Fields of an account: its key, definition (false: it does not exist), used and held amounts in turn, its expiry, whether it is one
-- owner's, the key of these accounts' index, whether it was missing (MADE: a call of this batch has made it), its place among the
-- keys; packed, once needed: its name in a hold, its windows in an entry, and its state without used and held amounts; for one
-- owner's account the number of calls in flight that take from it. Behind are its packed state (PACKED), and what its rolling windows have free next (FREED).
local KEY_NAME, DEFINITION, METERS, EXPIRES, IS_EACH, INDEX, IS_NEW, PLACE, HELD_AS, TOLD_AS, HEAD, CALLS = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
local FREED = 14
local MADE = 1

local function account_of_state(key, raw)
  local is_each = byte(key, COLON_AT) == COLON
  if not raw then return {key, false, {}, 0, is_each, false, true, 0, false, false, false, 0, false} end
  if byte(raw) ~= TODAY then raw = today(raw, key) end
  local expires, calls, further = BUDGET.read(raw)
  local count = (#raw - BUDGET_BYTES - further * METER_BYTES) / (DEFINED_WINDOW_BYTES + METER_BYTES)
  local last = BUDGET_BYTES + count * DEFINED_WINDOW_BYTES
  count = count + further
  local meters = {parse(kinds.meter_form(count), raw, last + 1)}
  meters[count * 2 + 1] = nil
  return {key, definition_of(sub(raw, BUDGET_BYTES + 1, last)), meters, expires, is_each, false, false, 0, false, false, sub(raw, FIRST_BYTE, last), calls, false}
end

-- An account as of now, by its own definition or the one that a call brings; without either it does not exist. A changed account is a
-- new table, since a call that is refused must change nothing.
local function as_of(account, defined, now)
  local definition, meters = account[DEFINITION], account[METERS]
  if defined and not (definition and defined == definition[LIVE]) then
    definition, meters = kinds.rolled(kinds.redefined(kinds.roll(kinds.listed(definition, meters), now, true), definition_of(defined), now), now)
  elseif definition and now >= definition[FIRST_END] then
    definition, meters = kinds.rolled(kinds.listed(definition, meters), now)
  else return account end
  return {account[KEY_NAME], definition or false, meters, account[EXPIRES], account[IS_EACH], account[INDEX], account[IS_NEW], account[PLACE], false, false, false, account[CALLS], false}
end

local function account_at(key, raw, now, defined) return as_of(account_of_state(key, raw), raw and defined, now) end

-- The owner of a single owner's account, as an entry has it; nil for another account.
local function value_of(account)
  if not account[IS_EACH] then return nil end
  local value = sub(account[KEY_NAME], COLON_AT + 1)
  return value .. string.rep('\0', #NOBODY - #value)
end

-- The packed state of an account.
local function packed_budget(account)
  local definition, head, meters = account[DEFINITION], account[HEAD], account[METERS]
  if not head then
    head = BUDGET.pack{flags = 0, expires = account[EXPIRES], calls = account[CALLS], further = definition[FURTHER]} .. definition[ALL]
    account[HEAD] = head
  end
  return head .. pack(definition[FORM], values(meters))
end

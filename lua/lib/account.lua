-- account: an account of budgets is a list of windows; whose it is is nothing to it. Needs state, accounts, definition, windows.
-- Its state is a header, the definition it has now, then the used and held amount of each window.
-- In a key: where the account's name begins, and the colon in it where it is one for each.
local COLON, COLON_AT, NAME_AT = 58, 28, 12
-- Places of an account: its key, definition (false: it is not there), what is used and held by turns, when it is forgotten, whether
-- it is one for each, the key of the index of these, whether there was none (MADE: a call of these has made it), its place among
-- the keys; packed, once they were asked for, how a hold and an entry name it, and its state but for what is used and held; and of
-- one for each how many calls in flight take from it. Last comes what it was packed as (PACKED).
local KEY_NAME, DEFINITION, METERS, EXPIRES, IS_EACH, INDEX, IS_NEW, PLACE, HELD_AS, TOLD_AS, HEAD, CALLS = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
local MADE = 1

local function account_of_state(key, raw)
  local is_each = byte(key, COLON_AT) == COLON
  if not raw then return {key, false, {}, 0, is_each, false, true, 0, false, false, false, 0, false} end
  if byte(raw) ~= TODAY then raw = today(raw, key) end
  local count = (#raw - BUDGET_BYTES) / (DEFINED_WINDOW_BYTES + METER_BYTES)
  local last = BUDGET_BYTES + count * DEFINED_WINDOW_BYTES
  local meters = {parse(meter_form(count), raw, last + 1)}
  meters[count * 2 + 1] = nil
  local expires, calls = BUDGET.read(raw)
  return {key, definition_of(sub(raw, BUDGET_BYTES + 1, last)), meters, expires, is_each, false, false, 0, false, false, sub(raw, FIRST_BYTE, last), calls, false}
end

-- an account as it is now, by its own definition or the one that a call brings; without either it is not there. Another one
-- where that changes it: a call that is refused changes nothing
local function as_of(account, defined, now)
  local definition, meters = account[DEFINITION], account[METERS]
  if defined and not (definition and defined == definition[LIVE]) then
    definition, meters = rolled(redefined(listed(definition, meters), definition_of(defined), now), now)
  elseif definition and now >= definition[FIRST_END] then
    definition, meters = rolled(listed(definition, meters), now)
  else return account end
  return {account[KEY_NAME], definition or false, meters, account[EXPIRES], account[IS_EACH], account[INDEX], account[IS_NEW], account[PLACE], false, false, false, account[CALLS], false}
end

local function account_at(key, raw, now) return as_of(account_of_state(key, raw), nil, now) end

-- whose an account for each is, as an entry has it; nil of one that is nobody's
local function value_of(account)
  if not account[IS_EACH] then return nil end
  local value = sub(account[KEY_NAME], COLON_AT + 1)
  return value .. string.rep('\0', #NOBODY - #value)
end

-- an account as it is stored
local function packed_budget(account)
  local definition, head, meters = account[DEFINITION], account[HEAD], account[METERS]
  if not head then
    head = BUDGET.pack{flags = 0, expires = account[EXPIRES], calls = account[CALLS]} .. definition[ALL]
    account[HEAD] = head
  end
  return head .. pack(meter_form(definition[COUNT]), values(meters))
end

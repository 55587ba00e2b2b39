-- held: the amounts that one call holds in the windows of budgets, by its hold: the windows of each account, and the amounts.
-- Needs state, wide, definition, account, budgeted.
-- The bytes of the lengths of a name and of ids.
local LENGTHS_BYTES = 2
local no_windows = {}

-- The packed ids of a hold's windows in each account; nil if it took from other accounts.
local function held_in(accounts, packed_hold, size)
  local found, at = {}, #packed_hold - size + 1
  for i, account in ipairs(accounts) do
    if at > #packed_hold then return nil end
    local name, ids = HELD.read(packed_hold, at)
    if name ~= sub(account[KEY_NAME], NAME_AT) then return nil end
    found[i], at = ids, at + LENGTHS_BYTES + #name + #ids
  end
  return at > #packed_hold and found or nil
end

local function is_among(ids, id)
  for at = 1, #ids, BUDGET_ID_BYTES do
    local budget_id = BUDGET_ID.read(ids, at)
    if budget_id == id then return true end
  end
end

-- Changes the held amounts in the windows of a hold.
local function move_held(accounts, held, amounts)
  for i, ids in ipairs(held) do
    local meters, definition = accounts[i][METERS], accounts[i][DEFINITION]
    local units, fields, all = definition and definition[UNITS], definition and definition[FIELDS], definition and ids == definition[IDS]
    for place = 1, definition and (all and definition[LIVE_COUNT] or definition[COUNT]) or 0 do
      if all or is_among(ids, fields[(place - 1) * DEFINED_WINDOW_SIZE + WINDOW_BUDGET_ID_AT]) then
        hold_more(meters, place * 2 - 1, amounts[units[place]])
      end
    end
    if definition and definition[WIDES] then wide.hold_some(definition, meters, amounts[FLAG_MONEY], not all and ids, is_among) end
  end
end

-- The amounts that a hold gives back, by unit: always one request.
local backs = {0, 0, 0, 1}
-- Gives back the amounts of a hold; returns the windows, or none if these were all that are not gone, unless `exactly`.
local function give_back(accounts, packed_hold, exactly)
  if not packed_hold then return no_windows end
  local money, budget_tokens, budgets = HOLD.read(packed_hold)
  if budgets == 0 then return no_windows end
  for i = 1, #accounts do
    local account = accounts[i]
    if account[IS_EACH] then account[CALLS], account[HEAD] = held_after(account[CALLS], 1), false end
  end
  if not exactly and sub(packed_hold, #packed_hold - budgets + 1) == held_as(accounts) then
    backs[FLAG_MONEY], backs[FLAG_TOKENS] = money, budget_tokens
    for i = 1, #accounts do
      local meters, definition = accounts[i][METERS], accounts[i][DEFINITION]
      if definition then
        local units = definition[UNITS]
        for place = 1, definition[LIVE_COUNT] do
          local held = meters[place * 2] - backs[units[place]]
          if held < 0 then held, unheld = 0, true end
          meters[place * 2] = held
        end
        if definition[WIDES] then wide.hold_some(definition, meters, -money) end
      end
    end
    return no_windows
  end
  local held = held_in(accounts, packed_hold, budgets)
  if not held then error({err = 'ERR a hold ends with the budget accounts it took from'}) end
  move_held(accounts, held, {-money, -budget_tokens, 0, -1})
  return held
end

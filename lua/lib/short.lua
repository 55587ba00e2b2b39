-- short: whether the budgets of a call have enough free for it. Amounts go by unit, as flags of windows have it.
-- Needs state, take, definition, windows, account.
local OTHERS = 'other'

-- Which accounts are one too many for each, a bit an account: they are not there yet, and as many have a place as may, or are kept
-- as may be. Where somebody's is, others' go on
local function too_many(accounts, now)
  local found = 0
  for place, account in ipairs(accounts) do
    local index = account[INDEX]
    if index and account[IS_NEW] == true and sub(account[KEY_NAME], COLON_AT + 1) ~= OTHERS then
      local made = made_of[index] or 0
      if call('ZCOUNT', index, now, '+inf') + made >= EACH_ACCOUNTS_MAX or call('ZCARD', index) + made >= EACH_KEPT_MAX then
        found = found + 2 ^ (place - 1)
      end
    end
  end
  return found
end

-- the refusal of a window, if it is stronger than the one before: used up until the latest moment, then held by calls in flight
local function stronger(short, now, verdict, fields, at, used, held, need)
  local ends = fields[at + WINDOW_NEXT_AT]
  local till = verdict == VERDICT_QUOTA_HELD and -1 or ends == 0 and HUGE or ends
  if short and till <= short[1] then return short end
  return {till, REFUSED.pack{
    verdict = verdict, now = now, scope = SCOPE_BUDGET, kind = KIND_BUDGET, used = used, limit = fields[at + WINDOW_LIMIT_AT], till = ends,
    budget = fields[at + WINDOW_BUDGET_ID_AT], unit = fields[at + WINDOW_FLAGS_AT] % WINDOW_ENFORCES, held = held, need = need,
  }}
end

-- Cuts what a call needs to what every window that enforces has free, where it states no maximum (`leasts` not 0) and not
-- below that; or answers the refusal: -13 used up, -9 held
local function budgets_short(accounts, now, needs, leasts)
  local short
  for i = 1, #accounts do
    local meters, definition = accounts[i][METERS], accounts[i][DEFINITION]
    local units, limits = definition[UNITS], definition[LIMITS]
    for place = 1, definition[LIVE_COUNT] do
      local unit, limit = units[place], limits[place]
      local need = needs[unit]
      if limit and need > 0 then
        local used = meters[place * 2 - 1]
        local left = limit - used
        local free = left - meters[place * 2]
        if need > free then
          local bound, verdict = cut(left, free, leasts[unit] > 0 and min(leasts[unit], need) or need, VERDICT_BUDGET_EXCEEDED)
          if bound then needs[unit] = bound else short = stronger(short, now, verdict, definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE, used, left - free, need) end
        end
      end
    end
  end
  return short and short[2]
end

-- short: whether a call's budgets have enough free for it. Amounts are by unit, as in the flags of windows.
-- Needs state, take, wide_holds, definition, rings, carries, windows, account.
local OTHERS = 'other'

-- The accounts of single owners that cannot be made, a bit for each: they do not exist, and the most that may have a place, or may be
-- stored, exist already. The calls then use the shared account instead.
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

-- The refusal by a window, if it is stronger than a former one: the latest end of a used-up window, then amounts held by calls. One that
-- rolls ends for a call once the call fits. Of a wide window amounts below a whole unit come behind the limit, and are at `below`.
local function stronger(refusal, now, verdict, definition, meters, place, limit, need, least, unit, limit_rest, below)
  local fields, at, ring = definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE, rings.at_place(definition, place)
  local used, held, used_rest, held_rest = meters[place * 2 - 1], meters[place * 2], below and meters[below] or 0, below and meters[below + 1] or 0
  local ends, carried, carried_rest = fields[at + WINDOW_NEXT_AT], carries.of(definition, meters, place)
  limit_rest = limit_rest or 0
  if ring then ends = rings.fits_at(definition, meters, ring, limit - used - held, limit_rest - used_rest - held_rest, held, held_rest, least) end
  local till = verdict == VERDICT_QUOTA_HELD and -1 or ends == 0 and HUGE or ends
  if refusal and till <= refusal[1] then return refusal end
  if below then
    limit, limit_rest = wide.added(limit, limit_rest, carried, carried_rest)
    used, used_rest = wide.added(used, used_rest, carried, carried_rest)
  else limit, used = limit + carried, used + carried end
  return {till, REFUSED.pack{
    verdict = verdict, now = now, scope = SCOPE_BUDGET, kind = KIND_BUDGET, used = used, limit = limit, till = ends,
    budget = fields[at + WINDOW_BUDGET_ID_AT], unit = unit, held = held, need = need,
    limit_rest = limit_rest, used_rest = used_rest, held_rest = held_rest,
  }}
end

-- Cuts the needs of a call to the free amount of every window that enforces, if it states no maximum (`leasts` not 0), and not below
-- `leasts`; or returns the refusal: -13 used up, -9 held.
local function budgets_short(accounts, now, needs, leasts)
  local refusal
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
          local least = leasts[unit] > 0 and min(leasts[unit], need) or need
          local bound, verdict = cut(left, free, least, VERDICT_BUDGET_EXCEEDED)
          if bound then needs[unit] = bound else refusal = stronger(refusal, now, verdict, definition, meters, place, limit, need, least, unit) end
        end
      end
    end
    if definition[WIDES] then refusal = wide.short(stronger, refusal, meters, definition, now, needs, leasts) end
  end
  return refusal and refusal[2]
end

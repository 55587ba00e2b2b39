-- hold: takes a call's amounts in all windows of its budgets, or in none. Amounts are by unit, as in the flags of windows.
-- Needs state, take, wide_holds, definition, rings, windows, account, short, steps, held.

-- The needs of the present call, and the least amounts they may be cut to; always one request.
local needs, leasts = {0, 0, 0, 1}, {0, 0, 0, 0}

-- The amounts to hold for a call, in place of a former hold's; or nil and the refusal. Under a strict plan that is all it could use.
local function budget_needs(accounts, now, packed, raised_packed, strict)
  local money, money_most, money_least, budget_tokens, budget_tokens_most, budget_tokens_least = NEED.read(packed)
  if strict then money, budget_tokens = max(money, money_most), max(budget_tokens, budget_tokens_most) end
  local full = too_many(accounts, now)
  if full > 0 then return nil, refused(VERDICT_OTHER_ACCOUNT, now, SCOPE_BUDGET, KIND_BUDGET, full) end
  if raised_packed then give_back(accounts, raised_packed) end
  needs[FLAG_MONEY], needs[FLAG_TOKENS], leasts[FLAG_MONEY], leasts[FLAG_TOKENS] = money, budget_tokens, money_least, budget_tokens_least
  local refusal = budgets_short(accounts, now, needs, leasts)
  if not refusal and #packed > NEED_BYTES then refusal = wide.stopped_by_steps(accounts, packed) end
  if refusal then return nil, refusal end
  return needs
end

-- Holds `needs` in every window; returns the part of the hold about them, money and tokens, and the tightest window that enforces,
-- packed, as it is then.
local function hold_windows(accounts, now)
  local least_left, tightest, tight_place, tight_used, tight_meters = HUGE, nil, 0, 0, nil
  local wide_left, tight_wide, wide_account, rolls = HUGE, nil, nil, false
  for i = 1, #accounts do
    local account = accounts[i]
    local meters, definition = account[METERS], account[DEFINITION]
    if definition[SPECIAL] then
      if definition[WAITS] then kinds.begin(account, needs, now, now) end
      meters, definition = account[METERS], account[DEFINITION]
      rolls = rolls or definition[RINGS]
    end
    local units, limits = definition[UNITS], definition[LIMITS]
    if account[IS_EACH] then account[CALLS], account[HEAD] = account[CALLS] + 1, false end
    for place = 1, definition[LIVE_COUNT] do
      local held, limit = meters[place * 2] + needs[units[place]], limits[place]
      if held > INTEGER_MAX then held = INTEGER_MAX end
      meters[place * 2] = held
      if limit then
        local used = meters[place * 2 - 1] + held
        local left = limit > 0 and (limit - used) / limit or 0
        if left < least_left then least_left, tightest, tight_place, tight_used, tight_meters = left, definition, place, used, meters end
      end
    end
    if definition[WIDES] then
      local found
      least_left, found = wide.hold_all(definition, meters, needs, least_left)
      if found then wide_left, tight_wide, wide_account = least_left, found, account end
    end
  end
  local money, budget_tokens = needs[FLAG_MONEY], needs[FLAG_TOKENS]
  local told
  if tight_wide and wide_left == least_left then
    told = wide.told(wide_account[DEFINITION], wide_account[METERS], needs, tight_wide)
    return held_as(accounts), money, budget_tokens, rolls and told .. rings.told_frees(accounts) or told
  end
  if not tightest then told = BUDGETS.span('', 'limit_rest', {money = money, budget_tokens = budget_tokens})
  else
    local fields, at, limit, reset = tightest[FIELDS], (tight_place - 1) * DEFINED_WINDOW_SIZE, tightest[LIMITS][tight_place], nil
    if tightest[CARRIES] then
      local carried = carries.of(tightest, tight_meters, tight_place)
      limit, tight_used = limit + carried, tight_used + carried
    end
    if rolls then reset = rings.resets_at(tightest, tight_meters, tight_place) end
    told = BUDGETS.span('', 'limit_rest', {
      money = money, budget_tokens = budget_tokens, budget = fields[at + WINDOW_BUDGET_ID_AT], limit = limit,
      used = tight_used, reset = reset or fields[at + WINDOW_NEXT_AT], unit = tightest[UNITS][tight_place],
    })
  end
  -- behind what is below a whole unit of a wide window
  if rolls then told = told .. ZERO .. ZERO .. rings.told_frees(accounts) end
  return held_as(accounts), money, budget_tokens, told
end

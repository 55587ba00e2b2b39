-- cover: what budgets' windows have free for a running call. Needs state, wide, definition, account, held.

-- The free amount of a unit in windows that enforce, and whether the first one with too little stops its calls.
local function free_in(accounts, held, unit, more)
  local free, cuts = more, false
  for i in ipairs(held) do
    local meters, definition = accounts[i][METERS], accounts[i][DEFINITION]
    for place = 1, definition and definition[LIVE_COUNT] or 0 do
      local fields, at = definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE
      local flags = fields[at + WINDOW_FLAGS_AT]
      if flags < FLAG_CARRIES and flags % WINDOW_ENFORCES == unit and has(flags, WINDOW_ENFORCES) then
        local left = max(0, free_of(meters, place * 2 - 1, fields[at + WINDOW_LIMIT_AT]))
        if left < more and has(flags, WINDOW_CUTS) then cuts = true end
        free = min(free, left)
      end
    end
    for _, window in ipairs(unit == FLAG_MONEY and definition and definition[WIDES] or wide.none) do
      local flags, _, left = window[WIDE_FLAGS], wide.left(meters, window)
      if window[WIDE_PLACE] <= definition[LIVE_COUNT] and has(flags, WINDOW_ENFORCES) then
        left = max(0, left)
        if left < more and has(flags, WINDOW_CUTS) then cuts = true end
        free = min(free, left)
      end
    end
  end
  return free, cuts
end

-- The windows of a hold, the money and tokens that it lacks of the wanted amounts as far as these are free, and exhausted: 0 no, 1 yes,
-- 2 yes and a window with too little stops its calls.
local function free_in_windows(hold, packed_hold, accounts, money_wanted, budget_tokens_wanted)
  local size, exhausted = HOLD.field(packed_hold, 'budgets'), 0
  local held = size == 0 and no_windows or held_in(accounts, packed_hold, size)
  if not held then return no_windows, 0, 0, 0 end -- of other accounts: it is kept as it is, and keeps no other call from being kept
  local money, budget_tokens = max(0, money_wanted - hold.money), max(0, budget_tokens_wanted - hold.budget_tokens)
  for unit, more in pairs({[FLAG_MONEY] = money, [FLAG_TOKENS] = budget_tokens}) do
    if more > 0 then
      local free, cuts = free_in(accounts, held, unit, more)
      if free < more then exhausted = max(exhausted, cuts and 2 or 1) end
      if unit == FLAG_MONEY then money = free else budget_tokens = free end
    end
  end
  return held, money, budget_tokens, exhausted
end

-- wide_windows: which windows of money are wide, and what calls hold and use of those. Needs state, batch, wide, definition, rings, carries.

-- how the amounts of a window of money are counted: what is defined in billionths is wide as long as these do not hold what is used
-- or held, what is defined in larger steps always. Nothing is while programs run that know no wide ones: such an amount is refused
-- beyond what they count to
function wide.measure(window)
  local unit, steps = window.flags % WINDOW_ENFORCES, wide.steps[window.flags % WINDOW_ENFORCES]
  if written_as ~= TODAY then
    window.limit, window.flags = steps and min(window.limit * steps, INTEGER_MAX) or window.limit, window.flags - unit + FLAG_MONEY
  elseif unit == FLAG_MONEY or unit == FLAGS_OVERFLOWED then
    local carry_window, fits = window.carry, abs(window.used) < WHOLE_MAX and window.held < WHOLE_MAX
    if carry_window then fits = fits and abs(carry_window.used) < WHOLE_MAX end
    for part = 0, window.ring and WHOLE_PARTS or -1 do fits = fits and abs(window.ring[part]) < WHOLE_MAX end
    window.flags = window.flags - unit + (fits and FLAG_MONEY or FLAGS_OVERFLOWED)
  end
  if window.flags % WINDOW_ENFORCES ~= FLAG_MONEY then return true end
  window.used, window.held = wide.joined(window.used, window.used_rest), wide.joined(window.held, window.held_rest)
end

-- windows as an account has them: their definition, nil where there is none, and their meters
function wide.gathered(windows)
  local parts, meters, rests = {}, {}, {}
  for _, window in ipairs(windows) do
    local unit, carry_window = window.flags % WINDOW_ENFORCES, window.carry
    if written_as ~= TODAY and (carry_window or window.flags >= FLAG_ROLLING) then error({err = 'ERR programs that run know no windows of this kind'}) end
    carries.fold(window, -1)
    if unit ~= FLAG_TOKENS and unit ~= FLAG_REQUESTS and wide.measure(window) then
      rests[#rests + 1] = window.used_rest
      rests[#rests + 1] = window.held_rest
    end
    parts[#parts + 1] = DEFINED_WINDOW.pack{
      budget_id = window.budget_id, limit = window.limit, start = window.start, next = window.next, after = window.after,
      flags = window.flags,
    }
    meters[#meters + 1] = window.used
    meters[#meters + 1] = window.held
    if carry_window then carries.gather(window, parts, meters) end
  end
  for _, rest in ipairs(rests) do meters[#meters + 1] = rest end
  rings.gather(windows, meters)
  return #parts > 0 and definition_of(table.concat(parts)) or nil, meters
end

-- makes those windows of money of an account wide that pass what one number counts, and counts what was used in them
function wide.widen(account, windows, places, money, admission, now)
  for _, window in ipairs(windows) do
    if places[window.place] and (not window.ring or rings.use(window, money, admission, now)) then window.used, window.used_rest = wide.added(window.used, window.used_rest, wide.split(money)) end
  end
  account[DEFINITION], account[METERS] = wide.gathered(windows)
  account[HEAD] = false
end

-- what a window has used that passes what one number counts: of money it waits to be counted in two, while all programs know these
function wide.passing(meters, units, place, passed)
  if units[place] ~= FLAG_MONEY or written_as ~= TODAY then return INTEGER_MAX, passed end
  passed = passed or {}
  passed[place] = true
  return meters[place * 2 - 1], passed
end

-- holds an amount more in those wide windows of an account that are not gone, or in those of some ids (`is_in`)
function wide.hold_some(definition, meters, amount, ids, is_in)
  for _, window in ipairs(definition[WIDES] or wide.none) do
    local place = window[WIDE_PLACE]
    if ids and is_in(ids, definition[FIELDS][(place - 1) * DEFINED_WINDOW_SIZE + WINDOW_BUDGET_ID_AT]) or not ids and place <= definition[LIVE_COUNT] then
      wide.hold(meters, window, amount)
    end
  end
end

-- counts a use in the wide windows of an account from one place to another
function wide.use_some(definition, meters, amount, first, last)
  for _, window in ipairs(definition[WIDES]) do
    if window[WIDE_PLACE] >= first and window[WIDE_PLACE] <= last then wide.use(meters, window, amount) end
  end
end

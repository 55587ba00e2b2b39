-- wide: money that one number does not hold exactly counts in two: whole units of its currency, and billionths below one.
-- Money beyond what billionths hold below 2^53 is said in larger steps, by its unit in a window's flags. A window that was defined in
-- billionths and has used or holds more than that is FLAGS_OVERFLOWED: its limit is in billionths. All these are WIDE: the loops over windows
-- find 0 there to move.
-- needs: quota state
-- sets: unheld
-- Of one wide window of a definition: its place among the windows, where the billionths of its used and held amount are among the
-- meters, its limit in two numbers, and its flags.
local WIDE_PLACE, WIDE_BELOW, WIDE_WHOLE, WIDE_REST, WIDE_FLAGS = 1, 2, 3, 4, 5
local wide = {none = {}, steps = WIDE_STEPS}

-- an amount in billionths, exact below 2^53, as two numbers: the second is not below 0
function wide.split(amount)
  local rest = math.fmod(amount, NANO)
  if rest < 0 then rest = rest + NANO end
  return (amount - rest) / NANO, rest
end

-- the sum of two amounts in two numbers each; the second numbers may be of any size
function wide.added(whole, rest, more, more_rest)
  rest = rest + more_rest
  local over = floor(rest / NANO)
  return whole + more + over, rest - over * NANO
end

-- two numbers in billionths: exact below 2^53, else that
function wide.joined(whole, rest) return max(-INTEGER_MAX, min(INTEGER_MAX, whole * NANO + rest)) end

-- a limit as it is said in steps, as two numbers
function wide.limit(limit, unit)
  local step = wide.steps[unit]
  if step == 1 then return wide.split(limit) end
  local steps = NANO / step
  local rest = math.fmod(limit, steps)
  return (limit - rest) / steps, rest * step
end

-- moves an amount, which is at two places of the meters, by billionths
function wide.move(meters, at, below, amount)
  local whole, rest = wide.split(amount)
  whole, rest = wide.added(meters[at], meters[below], whole, rest)
  meters[at], meters[below] = min(whole, INTEGER_MAX), rest
end

-- moves what calls in flight hold of a wide window
function wide.hold(meters, window, amount)
  local at, below = window[WIDE_PLACE] * 2, window[WIDE_BELOW] + 1
  wide.move(meters, at, below, amount)
  if meters[at] < 0 then meters[at], meters[below], unheld = 0, 0, true end
end

function wide.use(meters, window, amount) wide.move(meters, window[WIDE_PLACE] * 2 - 1, window[WIDE_BELOW], amount) end

-- what is left of a wide window, and free, in billionths: exact below 2^53, and calls need less
function wide.left(meters, window)
  local at, below = window[WIDE_PLACE] * 2 - 1, window[WIDE_BELOW]
  local whole, rest = window[WIDE_WHOLE] - meters[at], window[WIDE_REST] - meters[below]
  return wide.joined(whole, rest), wide.joined(whole - meters[at + 1], rest - meters[below + 1])
end

-- the wide window at a place; nil if that one is not wide
function wide.at_place(definition, place)
  for _, window in ipairs(definition[WIDES] or wide.none) do
    if window[WIDE_PLACE] == place then return window end
  end
end

-- as `budgets_short`, in the wide windows of an account; `refuse` makes a refusal
function wide.short(refuse, refusal, account, now, wanted, lowest)
  local meters, definition = account[METERS], account[DEFINITION]
  for _, window in ipairs(definition[WIDES]) do
    local need, place = wanted[FLAG_MONEY], window[WIDE_PLACE]
    if need > 0 and place <= definition[LIVE_COUNT] and has(window[WIDE_FLAGS], WINDOW_ENFORCES) then
      local left, free = wide.left(meters, window)
      if need > free then
        local least = lowest[FLAG_MONEY] > 0 and min(lowest[FLAG_MONEY], need) or need
        local bound, verdict = cut(left, free, least, VERDICT_BUDGET_EXCEEDED)
        if bound then wanted[FLAG_MONEY] = bound else refusal = refuse(refusal, now, verdict, account, place, need, least) end
      end
    end
  end
  return refusal
end

-- holds money in the wide windows of an account; answers the tightest one that enforces, if it is tighter, and the part that it has left
function wide.hold_all(definition, meters, wanted, least_left)
  local found
  for _, window in ipairs(definition[WIDES]) do
    local place = window[WIDE_PLACE]
    if place <= definition[LIVE_COUNT] then
      wide.hold(meters, window, wanted[FLAG_MONEY])
      if has(window[WIDE_FLAGS], WINDOW_ENFORCES) then
        local left = 1 - (meters[place * 2 - 1] + meters[place * 2]) / max(1, window[WIDE_WHOLE])
        if left < least_left then least_left, found = left, window end
      end
    end
  end
  return least_left, found
end

-- how the amounts of a window of money are counted: what is defined in billionths is wide as long as these do not hold what is used
-- or held, what is defined in larger steps always. Nothing is while programs run that know no wide ones: such an amount is refused
-- beyond what they count to
function wide.measure(window)
  local unit, steps = window.flags % WINDOW_ENFORCES, wide.steps[window.flags % WINDOW_ENFORCES]
  if written_as ~= TODAY then
    window.limit, window.flags = steps and min(window.limit * steps, INTEGER_MAX) or window.limit, window.flags - unit + FLAG_MONEY
  elseif unit == FLAG_MONEY or unit == FLAGS_OVERFLOWED then
    local carry_window, is_small = window.carry, abs(window.used) < WHOLE_MAX and window.held < WHOLE_MAX
    if carry_window then is_small = is_small and abs(carry_window.used) < WHOLE_MAX end
    for part = 0, window.ring and WHOLE_PARTS or -1 do is_small = is_small and abs(window.ring[part]) < WHOLE_MAX end
    window.flags = window.flags - unit + (is_small and FLAG_MONEY or FLAGS_OVERFLOWED)
  end
  if window.flags % WINDOW_ENFORCES ~= FLAG_MONEY then return true end
  window.used, window.held = wide.joined(window.used, window.used_rest), wide.joined(window.held, window.held_rest)
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

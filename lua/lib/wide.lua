-- wide: money that one number does not hold exactly counts in two: whole units of its currency, and billionths below one. Needs state.
-- Money beyond what billionths hold below 2^53 is said in larger steps, by its unit in a window's flags. A window that was defined in
-- billionths and has used or holds more than that is FLAGS_OVERFLOWED: its limit is in billionths. All these are WIDE: the loops over windows
-- find 0 there to move.
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

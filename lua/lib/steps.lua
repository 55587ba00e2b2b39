-- steps: which steps of a call's budgets are reached, before it holds anything. In the table of `wide`, since the library has 200 locals
-- already, the most of Lua. Needs state, wide, definition, account.

-- A part of an integer in millionths, exact: whole, and the millionths beyond.
function wide.part(amount, parts)
  local low = amount % STEP_PARTS
  local rest = parts * low
  return parts * ((amount - low) / STEP_PARTS) + floor(rest / STEP_PARTS), rest % STEP_PARTS
end

-- Whether used and held are a part of a wide window's limit or more. The carried amount belongs to both: meters have it taken off the used
-- amount.
function wide.reaches(meters, definition, window, parts)
  local at, below = window[WIDE_PLACE] * 2, window[WIDE_BELOW]
  local carried, carried_rest = carries.of(definition, meters, window[WIDE_PLACE])
  local limit, limit_rest = wide.added(window[WIDE_WHOLE], window[WIDE_REST], carried, carried_rest)
  local whole, millionths = wide.part(limit, parts)
  local rest, beyond = wide.part(limit_rest, parts)
  rest = rest + millionths * (NANO / STEP_PARTS) + (beyond > 0 and 1 or 0)
  return (meters[at - 1] + carried + meters[at] - whole) * NANO + meters[below] + carried_rest + meters[below + 1] - rest >= 0
end

-- Whether the window of a budget that enforces is used and held to a part of its limit (in millionths) or more.
function wide.is_step_reached(accounts, budget, parts)
  for i = 1, #accounts do
    local meters, definition = accounts[i][METERS], accounts[i][DEFINITION]
    local fields, limits = definition[FIELDS], definition[LIMITS]
    for place = 1, definition[LIVE_COUNT] do
      if limits[place] and fields[(place - 1) * DEFINED_WINDOW_SIZE + WINDOW_BUDGET_ID_AT] == budget then
        local carried = carries.of(definition, meters, place)
        local whole, millionths = wide.part(limits[place] + carried, parts)
        return meters[place * 2 - 1] + carried + meters[place * 2] >= whole + (millionths > 0 and 1 or 0)
      end
    end
    for _, window in ipairs(definition[WIDES] or wide.none) do
      local place = window[WIDE_PLACE]
      if has(window[WIDE_FLAGS], WINDOW_ENFORCES) and fields[(place - 1) * DEFINED_WINDOW_SIZE + WINDOW_BUDGET_ID_AT] == budget then
        return wide.reaches(meters, definition, window, parts)
      end
    end
  end
  return false
end

-- The steps behind NEED, decoded: three numbers each. Callers bring the same again and again, so the last ones are cached.
wide.step_lists, wide.step_lists_count = {}, 0
function wide.steps_in(packed)
  local written = sub(packed, NEED_BYTES + 1)
  local steps = wide.step_lists[written]
  if not steps then
    steps = {}
    for at = 1, #written, STEP_BYTES do
      local budget, parts, binds = STEP.read(sub(written, at, at + STEP_BYTES - 1))
      local count = #steps
      steps[count + 1], steps[count + 2], steps[count + 3] = budget, parts, binds
    end
    if wide.step_lists_count == DEFINITIONS_MAX then wide.step_lists, wide.step_lists_count = {}, 0 end
    wide.step_lists[written], wide.step_lists_count = steps, wide.step_lists_count + 1
  end
  return steps
end

-- The answer to a call that one of its steps (behind NEED in `packed`) does not let pass: a byte for each step, 1 if it is reached. nil
-- if all let it pass.
function wide.stopped_by_steps(accounts, packed)
  local steps, stops = wide.steps_in(packed), false
  for at = 1, #steps, 3 do
    local binds = steps[at + 2]
    if binds == STEP_JUDGES then stops = true
    elseif binds ~= STEP_TELLS then stops = stops or wide.is_step_reached(accounts, steps[at], steps[at + 1]) == (binds == STEP_STOPS) end
  end
  if not stops then return nil end
  local reached = {}
  for at = 1, #steps, 3 do reached[#reached + 1] = wide.is_step_reached(accounts, steps[at], steps[at + 1]) and '\1' or '\0' end
  return CODE.pack{code = VERDICT_STEP_REACHED} .. table.concat(reached)
end

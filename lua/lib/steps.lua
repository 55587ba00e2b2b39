-- steps: which steps of a call's budgets are reached, before it holds anything.
-- needs: carries state wide

-- A part of an integer in millionths, exact: whole, and the millionths beyond.
local function part_of_limit(amount, parts)
  local low = amount % STEP_PARTS
  local rest = parts * low
  return parts * ((amount - low) / STEP_PARTS) + floor(rest / STEP_PARTS), rest % STEP_PARTS
end

-- Whether used and held are a part of a limit or more, all in two numbers. Carried amounts belong to used and limit: meters have them taken
-- off the used amount.
local function reaches(parts, carried, carried_rest, limit, limit_rest, used, used_rest, held, held_rest)
  limit, limit_rest = wide.added(limit, limit_rest, carried, carried_rest)
  local whole, millionths = part_of_limit(limit, parts)
  local rest, beyond = part_of_limit(limit_rest, parts)
  rest = rest + millionths * (NANO / STEP_PARTS) + (beyond > 0 and 1 or 0)
  return (used + carried + held - whole) * NANO + used_rest + carried_rest + held_rest - rest >= 0
end

-- The same of a window whose amounts are in one number: with what is carried they may be more than that holds.
local function reaches_in_one(parts, carried, limit, used, held)
  if carried == 0 then
    local whole, millionths = part_of_limit(limit, parts)
    return used + held >= whole + (millionths > 0 and 1 or 0)
  end
  local more, more_rest = wide.split(carried)
  local most, most_rest = wide.split(limit)
  local whole, rest = wide.split(used)
  return reaches(parts, more, more_rest, most, most_rest, whole, rest, wide.split(held))
end

-- Whether the window of a budget that enforces is used and held to a part of its limit (in millionths) or more.
local function is_step_reached(accounts, budget, parts)
  for i = 1, #accounts do
    local meters, definition = accounts[i][METERS], accounts[i][DEFINITION]
    local fields, limits = definition[FIELDS], definition[LIMITS]
    for place = 1, definition[LIVE_COUNT] do
      if limits[place] and fields[(place - 1) * DEFINED_WINDOW_SIZE + WINDOW_BUDGET_ID_AT] == budget then
        return reaches_in_one(parts, carries.of(definition, meters, place), limits[place], meters[place * 2 - 1], meters[place * 2])
      end
    end
    for _, window in ipairs(definition[WIDES] or wide.none) do
      local place = window[WIDE_PLACE]
      if has(window[WIDE_FLAGS], WINDOW_ENFORCES) and fields[(place - 1) * DEFINED_WINDOW_SIZE + WINDOW_BUDGET_ID_AT] == budget then
        local at, below, carried, carried_rest = place * 2, window[WIDE_BELOW], carries.of(definition, meters, place)
        return reaches(
          parts, carried, carried_rest, window[WIDE_WHOLE], window[WIDE_REST], meters[at - 1], meters[below], meters[at], meters[below + 1]
        )
      end
    end
  end
  return false
end

-- The steps behind NEED, decoded: three numbers each. Callers bring the same again and again, so the last ones are cached.
local step_lists, step_lists_count = {}, 0
local function steps_in(packed)
  local written = sub(packed, NEED_BYTES + 1)
  local steps = step_lists[written]
  if not steps then
    steps = {}
    for at = 1, #written, STEP_BYTES do
      local budget, parts, binds = STEP.read(sub(written, at, at + STEP_BYTES - 1))
      local count = #steps
      steps[count + 1], steps[count + 2], steps[count + 3] = budget, parts, binds
    end
    if step_lists_count == DEFINITIONS_MAX then step_lists, step_lists_count = {}, 0 end
    step_lists[written], step_lists_count = steps, step_lists_count + 1
  end
  return steps
end

-- The answer to a call that one of its steps (behind NEED in `packed`) does not let pass: a byte for each step, 1 if it is reached. nil
-- if all let it pass.
local function stopped_by_steps(accounts, packed)
  local steps, stops = steps_in(packed), false
  for at = 1, #steps, 3 do
    local binds = steps[at + 2]
    if binds == STEP_JUDGES then stops = true
    elseif binds ~= STEP_TELLS then stops = stops or is_step_reached(accounts, steps[at], steps[at + 1]) == (binds == STEP_STOPS) end
  end
  if not stops then return nil end
  local reached = {}
  for at = 1, #steps, 3 do reached[#reached + 1] = is_step_reached(accounts, steps[at], steps[at + 1]) and '\1' or '\0' end
  return CODE.pack{code = VERDICT_STEP_REACHED} .. table.concat(reached)
end

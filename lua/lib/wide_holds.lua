-- wide_holds: what a call needs of wide windows: whether they have it, what it holds of them, and how the tightest is told.
-- Needs state, window, wide, definition, rings, carries.

-- as `budgets_short`, in the wide windows of an account; `refuse` makes a refusal
function wide.short(refuse, refusal, meters, definition, now, wanted, lowest)
  for _, window in ipairs(definition[WIDES]) do
    local need, place = wanted[FLAG_MONEY], window[WIDE_PLACE]
    if need > 0 and place <= definition[LIVE_COUNT] and has(window[WIDE_FLAGS], WINDOW_ENFORCES) then
      local left, free = wide.left(meters, window)
      if need > free then
        local least = lowest[FLAG_MONEY] > 0 and min(lowest[FLAG_MONEY], need) or need
        local bound, verdict = cut(left, free, least, VERDICT_BUDGET_EXCEEDED)
        if bound then wanted[FLAG_MONEY] = bound else
          refusal = refuse(refusal, now, verdict, definition, meters, place, window[WIDE_WHOLE], need, least, WIDE, window[WIDE_REST], window[WIDE_BELOW])
        end
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

-- what is answered of a wide window that is the tightest one
function wide.told(definition, meters, wanted, window)
  local place, below = window[WIDE_PLACE], window[WIDE_BELOW]
  local carried, carried_rest = carries.of(definition, meters, place)
  local used, used_rest = wide.added(meters[place * 2 - 1] + meters[place * 2] + carried, meters[below] + meters[below + 1], 0, carried_rest)
  local limit, limit_rest = wide.added(window[WIDE_WHOLE] + carried, window[WIDE_REST], 0, carried_rest)
  local fields, at = definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE
  return BUDGETS.pack{
    money = wanted[FLAG_MONEY], budget_tokens = wanted[FLAG_TOKENS], budget = fields[at + WINDOW_BUDGET_ID_AT], limit = limit,
    used = used, reset = rings.resets_at(definition, meters, place) or fields[at + WINDOW_NEXT_AT], unit = WIDE, limit_rest = limit_rest,
    used_rest = used_rest,
  }
end

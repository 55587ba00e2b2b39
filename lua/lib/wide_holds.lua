-- wide_holds: what a call needs of wide windows: whether they have it, what it holds of them, and how the tightest is told.
-- Needs state, window, wide, definition.

-- as `budgets_short`, in the wide windows of an account; `refuse` makes a refusal
function wide.short(refuse, refusal, meters, definition, now, wanted, lowest)
  for _, window in ipairs(definition[WIDES]) do
    local need, place = wanted[FLAG_MONEY], window[WIDE_PLACE]
    if need > 0 and place <= definition[LIVE_COUNT] and has(window[WIDE_FLAGS], WINDOW_ENFORCES) then
      local left, free = wide.left(meters, window)
      if need > free then
        local bound, verdict = cut(left, free, lowest[FLAG_MONEY] > 0 and min(lowest[FLAG_MONEY], need) or need, VERDICT_BUDGET_EXCEEDED)
        if bound then wanted[FLAG_MONEY] = bound else
          refusal = refuse(refusal, now, verdict, definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE, window[WIDE_WHOLE], meters[place * 2 - 1],
            meters[place * 2], need, WIDE, window[WIDE_REST], meters[window[WIDE_BELOW]], meters[window[WIDE_BELOW] + 1])
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
  local used, used_rest = meters[place * 2 - 1] + meters[place * 2], meters[below] + meters[below + 1]
  if used_rest >= NANO then used, used_rest = used + 1, used_rest - NANO end
  local fields, at = definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE
  return BUDGETS.pack{
    money = wanted[FLAG_MONEY], budget_tokens = wanted[FLAG_TOKENS], budget = fields[at + WINDOW_BUDGET_ID_AT], limit = window[WIDE_WHOLE],
    used = used, reset = fields[at + WINDOW_NEXT_AT], unit = WIDE, limit_rest = window[WIDE_REST], used_rest = used_rest,
  }
end

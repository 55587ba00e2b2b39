-- extend: what renewing one call does to its hold and accounts. Needs state.

-- raises a hold until it covers what is wanted, as far as tokens and credits are free; answers exhausted:
-- 0 no, 1 yes and the plan lets the call finish, 2 yes and the plan cuts it
local function cover(h, t, o, tokens, credits)
  local short, more = false, tokens - h[H_TOKENS]
  if more > 0 and has(h[H_FLAGS], HOLD_COUNTS) then
    if t[T_TOTAL] >= 0 and t[T_OVERAGE_POLICY] ~= POLICY_BILL then
      local free = max(0, t[T_REMAINING] - t[T_HELD])
      if more > free then short, more = true, free end
    end
    h[H_TOKENS], t[T_HELD] = h[H_TOKENS] + more, t[T_HELD] + more
  end
  more = credits - h[H_CREDITS]
  if more > 0 and o and has(h[H_FLAGS], HOLD_BY_TOKEN) then
    local free = max(0, o[O_BALANCE] + o[O_CREDIT_LIMIT] - o[O_CREDITS_HELD])
    if more > free then short, more = true, free end
    h[H_CREDITS], o[O_CREDITS_HELD] = h[H_CREDITS] + more, o[O_CREDITS_HELD] + more
  end
  return short and 1 + t[T_ON_EXHAUSTED] or 0
end

-- one reader of states: each name once, whoever names it again
local function account_opener(form)
  local opened, order = {}, {}
  return function(name, raw)
    local a = opened[name]
    if a == nil then
      a = raw and open(form, raw) or false
      opened[name] = a
      if a then order[#order + 1] = name end
    end
    return a
  end, order
end

-- extend: what renewing one call does to its hold and accounts. Needs state.

-- raises a hold until it covers what is wanted, as far as tokens and credits are free; answers exhausted:
-- 0 no, 1 yes and the plan lets the call finish, 2 yes and the plan cuts it
local function cover(h, t, o, tokens, credits)
  local short, more = false, tokens - h[H_TOKENS]
  if more > 0 and has(h[1], HOLD_COUNTS) then
    if t[TOTAL] >= 0 and t[POLICY] ~= POLICY_BILL then
      local free = max(0, t[REMAINING] - t[HELD])
      if more > free then short, more = true, free end
    end
    h[H_TOKENS], t[HELD] = h[H_TOKENS] + more, t[HELD] + more
  end
  more = credits - h[H_CREDITS]
  if more > 0 and o and has(h[1], HOLD_BY_TOKEN) then
    local free = max(0, o[BALANCE] + o[CREDIT_LIMIT] - o[CHELD])
    if more > free then short, more = true, free end
    h[H_CREDITS], o[CHELD] = h[H_CREDITS] + more, o[CHELD] + more
  end
  return short and 1 + t[EXHAUSTED] or 0
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

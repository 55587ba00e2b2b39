-- extend: what renewing one call does to its hold and tenant. Needs state.

-- raises a hold until it covers observed + margin, as far as tokens are free; answers exhausted:
-- 0 no, 1 yes and the plan lets the call finish, 2 yes and the plan cuts it
local function cover(h, t, observed, margin)
  local want = observed + margin - h[H_TOKENS]
  if want <= 0 or not has(h[1], HOLD_COUNTS) then return 0 end
  local more = want
  if t[TOTAL] >= 0 and t[POLICY] ~= POLICY_BILL then
    more = math.min(want, math.max(0, t[REMAINING] - t[HELD]))
  end
  h[H_TOKENS], t[HELD] = h[H_TOKENS] + more, t[HELD] + more
  return more < want and 1 + t[EXHAUSTED] or 0
end

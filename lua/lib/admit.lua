-- admit: what reserve decides, limit by limit. Needs state, take.
local PENDING, ACTIVE = 1, 2

-- tokens to hold, or nil and the refusal: -8 quota exceeded, -9 all that remains is held; true last where the hold is
-- the call's limit: under a strict plan it is all the call could use, cut to what is free, to no less than `least`, where
-- the call states no maximum (`least` 0: it does)
local function quota_hold(t, counts, need, ceiling, least)
  if not counts or ceiling == 0 then return 0 end -- what needs nothing is covered, whatever is left
  if t[T_TOTAL] < 0 or t[T_OVERAGE_POLICY] == POLICY_BILL then return need end
  local remaining = t[T_REMAINING]
  if remaining <= 0 then return nil, VERDICT_QUOTA_EXCEEDED end
  local free = remaining - t[T_HELD]
  if free <= 0 then return nil, VERDICT_QUOTA_HELD end
  if t[T_ADMISSION] == STRICT then
    local wanted = least > 0 and least or ceiling
    if wanted > free then return nil, wanted > remaining and VERDICT_QUOTA_EXCEEDED or VERDICT_QUOTA_HELD end
    return ceiling < free and ceiling or free, nil, true
  end
  if free < ceiling then return free end
  return need
end

-- credits to hold, or nil and the refusal: -10 too few, -9 enough but held by calls in flight. All of them, or where
-- tokens set the price and the call states no maximum (`least` is not 0) what is free: to that it is bound
local function credit_hold(o, credits, least)
  local there = o[O_BALANCE] + o[O_CREDIT_LIMIT]
  local free = there - o[O_CREDITS_HELD]
  if credits <= free then return credits end
  if least > 0 and least <= free then return free end
  return nil, (least > 0 and least or credits) > there and VERDICT_INSUFFICIENT_CREDITS or VERDICT_QUOTA_HELD
end

-- what is kept of an organization's service; before units were held it ended with the month's quantity
local function activation(raw)
  if not raw then return ACTIVATION.fresh() end
  return ACTIVATION.opened(#raw < ACTIVATION_BYTES and raw .. ZERO .. ZERO or raw)
end

-- One-Time: the first call in holds the price, the others ride free while it is pending

-- The price to hold, and the flags of the hold: ONE_TIME says that the call waits there. What has no price yet waits for nothing
local function join(a, price, flags, was)
  if was and has(was[H_FLAGS], HOLD_ONE_TIME) then return 0, flags end
  if price == 0 then return 0, flags - HOLD_ONE_TIME end
  if a[A_FLAGS] == ACTIVE then return 0, flags end
  a[A_WAITING] = a[A_WAITING] + 1
  if a[A_FLAGS] == PENDING then return 0, flags end
  a[A_FLAGS], a[A_PRICE] = PENDING, price
  return price, flags
end

-- gives back what a hold that is raised took of the accounts: they are asked for all of it anew
local function put_back(was, t, o)
  t[T_HELD] = max(0, t[T_HELD] - was[H_TOKENS])
  if has(was[H_FLAGS], HOLD_ONE_TIME) then return end
  local account_held = has(was[H_FLAGS], HOLD_USES) and O_SPEND_HELD or O_CREDITS_HELD
  o[account_held] = max(0, o[account_held] - was[H_CREDITS])
end

-- quotients are rounded up without a call: (a + -a % b) / b
local function admitted(now, tokens, t, o, credits, scope, most, used, scope2, most2, used2, bounds)
  local free = t[T_REMAINING] - t[T_HELD]
  if t[T_TOTAL] < 0 then free = -1 elseif free < 0 then free = 0 end
  return ADMITTED.pack{
    verdict = bounds and 2 or VERDICT_ADMITTED, now = now, tokens = tokens, total = t[T_TOTAL], tokens_free = free,
    next_reset = t[T_NEXT_RESET], credits_free = o[O_BALANCE] + o[O_CREDIT_LIMIT] - o[O_CREDITS_HELD],
    requests_scope = scope, requests_limit = most, requests_used = (used + -used % UNIT) / UNIT,
    requests_reset = most > 0 and (used + -used % most) / most or 0,
    tokens_scope = scope2, tokens_limit = most2, tokens_used = (used2 + -used2 % UNIT) / UNIT,
    tokens_reset = most2 > 0 and (used2 + -used2 % most2) / most2 or 0, credits = credits,
  }
end

-- admit: what reserve decides, limit by limit. Needs state, take.
local ACTIVATION_FORM, ACTIVATION_SIZE, ACTIVATION_BYTES, PENDING, ACTIVE = '<Bdddddd', 7, 49, 1, 2

-- tokens to hold, or nil and the refusal: -8 quota exceeded, -9 all that remains is held
local function quota_hold(t, counts, need, ceiling)
  if not counts or ceiling == 0 then return 0 end -- what needs nothing is covered, whatever is left
  if t[TOTAL] < 0 or t[POLICY] == POLICY_BILL then return need end
  local remaining = t[REMAINING]
  if remaining <= 0 then return nil, -8 end
  local free = remaining - t[HELD]
  if free <= 0 then return nil, -9 end
  if t[ADMISSION] == STRICT and need > free then return nil, need > remaining and -8 or -9 end
  if free < ceiling then return free end
  return need
end

-- credits to hold, or nil and the refusal: -10 too few, -9 enough but held by calls in flight.
-- A price by token is an estimate: it holds what there is, where it is more
local function credit_hold(o, credits, by_token)
  local there = o[BALANCE] + o[CREDIT_LIMIT]
  local free = there - o[CHELD]
  if credits <= free then return credits end
  if by_token and free > 0 then return free end
  return nil, (by_token and there <= 0 or not by_token and credits > there) and -10 or -9
end

-- what is kept of an organization's service; before units were held it ended with the month's quantity
local function activation(raw)
  if not raw then return {0, 0, 0, 0, 0, 0, 0} end
  return {parse(ACTIVATION_FORM, #raw < ACTIVATION_BYTES and raw .. ZERO .. ZERO or raw)}
end

-- One-Time: the first call in holds the price, the others ride free while it is pending

-- The price to hold, and the flags of the hold: ONE_TIME says that the call waits there. What has no price yet waits for nothing
local function join(a, price, flags, was)
  if was and has(was[1], HOLD_ONE_TIME) then return 0, flags end
  if price == 0 then return 0, flags - HOLD_ONE_TIME end
  if a[1] == ACTIVE then return 0, flags end
  a[2] = a[2] + 1
  if a[1] == PENDING then return 0, flags end
  a[1], a[3] = PENDING, price
  return price, flags
end

-- gives back what a hold that is raised took of the accounts: they are asked for all of it anew
local function put_back(was, t, o)
  t[HELD] = max(0, t[HELD] - was[H_TOKENS])
  if has(was[1], HOLD_ONE_TIME) then return end
  local purse = has(was[1], HOLD_USES) and SPEND_HELD or CHELD
  o[purse] = max(0, o[purse] - was[H_CREDITS])
end

-- quotients are rounded up without a call: (a + -a % b) / b
local function admitted(now, tokens, t, o, credits, scope, limit, used, scope2, limit2, used2)
  local free = t[REMAINING] - t[HELD]
  if t[TOTAL] < 0 then free = -1 elseif free < 0 then free = 0 end
  return pack('<i8i8i8i8i8i8i8i8i8i8i8i8i8i8i8i8', 1, now, tokens, t[TOTAL], free, t[NEXT],
    o[BALANCE] + o[CREDIT_LIMIT] - o[CHELD],
    scope, limit, (used + -used % UNIT) / UNIT, limit > 0 and (used + -used % limit) / limit or 0,
    scope2, limit2, (used2 + -used2 % UNIT) / UNIT, limit2 > 0 and (used2 + -used2 % limit2) / limit2 or 0, credits)
end

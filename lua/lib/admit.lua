-- admit: what reserve decides, limit by limit. Needs state, bucket.
local ACTIVATION_FORM, PENDING, ACTIVE = '<Bdddd', 1, 2

-- a user's state; absent means never seen: the tenant's user limits, nothing used
local function user_state(raw, t, now)
  local u = raw and open(USER_FORM, raw) or {0, 0, 0, 0, 0, 0, 0, now, 0}
  if not has(u[FLAGS], OVERRIDE) then limit(u, t[URPM], t[UTPM], t[UCONC]) end
  return u
end

-- tokens to hold, or nil and the refusal: -8 quota exceeded, -9 all that remains is held
local function quota_hold(t, counts, need, ceiling)
  if not counts then return 0 end
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

-- One-Time: the first call in holds the price, the others ride free while it is pending
local function activation(raw)
  return raw and {parse(ACTIVATION_FORM, raw)} or {0, 0, 0, 0, 0}
end

local function join(a, price)
  if a[1] == ACTIVE then return 0 end
  a[2] = a[2] + 1
  if a[1] == PENDING then return 0 end
  a[1], a[3] = PENDING, price
  return price
end

-- the tightest bucket over the scopes: scope, limit, used, ms until it is whole again
local function tightest(scopes, limit_at, used_at)
  local found, least = 0, nil
  for scope = 1, 4 do
    local a = scopes[scope]
    if a and a[limit_at] > 0 then
      local left = a[limit_at] * UNIT - a[used_at]
      if not least or left < least then least, found = left, scope end
    end
  end
  if found == 0 then return 0, 0, 0, 0 end
  local limit, used = scopes[found][limit_at], scopes[found][used_at]
  return found, limit, ceil(used / UNIT), ceil(used / limit)
end

local function refused(code, now, scope, kind, used, limit, till)
  return pack('<i8i8i8i8i8i8i8', code, now, scope, kind, used, limit, till)
end

local function admitted(now, tokens, t, o, scopes, credits)
  local scope, limit, used, whole = tightest(scopes, RPM, RUSED)
  local scope2, limit2, used2, whole2 = tightest(scopes, TPM, TUSED)
  return pack('<i8i8i8i8i8i8i8i8i8i8i8i8i8i8i8i8', 1, now, tokens, t[TOTAL], t[TOTAL] < 0 and -1 or max(0, t[REMAINING] - t[HELD]),
    t[NEXT], o[BALANCE] + o[CREDIT_LIMIT] - o[CHELD], scope, limit, used, whole, scope2, limit2, used2, whole2, credits)
end

-- admit: what reserve decides, limit by limit. Needs state, bucket.
local ACTIVATION_FORM, PENDING, ACTIVE = '<Bdd', 1, 2

-- a user's state; absent means never seen: the tenant's user limits, nothing used
local function user_state(raw, t, now)
  local u = raw and open(USER_FORM, raw) or {0, 0, 0, 0, 0, 0, 0, now, 0}
  if not has(u[FLAGS], OVERRIDE) then u[RPM], u[TPM], u[CONC] = t[URPM], t[UTPM], t[UCONC] end
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

-- One-Time: the first call in holds the price, the others ride free while it is pending
local function activation(raw)
  return raw and {struct.unpack(ACTIVATION_FORM, raw)} or {0, 0, 0}
end

local function join(a, price)
  if a[1] == ACTIVE then return 0 end
  a[2] = a[2] + 1
  if a[1] == PENDING then return 0 end
  a[1], a[3] = PENDING, price
  return price
end

-- the tightest bucket over the scopes: {scope, limit, used, ms until it is whole again}
local function tightest(scopes, limit_at, used_at)
  local found, least = {0, 0, 0, 0}, nil
  for scope = 1, 4 do
    local a = scopes[scope]
    if a and a[limit_at] > 0 then
      local left = a[limit_at] * UNIT - a[used_at]
      if not least or left < least then
        least = left
        found = {scope, a[limit_at], math.ceil(a[used_at] / UNIT), math.ceil(a[used_at] / a[limit_at])}
      end
    end
  end
  return found
end

local function admitted(now, tokens, t, o, scopes)
  local r, w = tightest(scopes, RPM, RUSED), tightest(scopes, TPM, TUSED)
  return struct.pack('<dddddddddddddd', 1, now, tokens, t[TOTAL] < 0 and -1 or math.max(0, t[REMAINING] - t[HELD]), t[NEXT],
    o[BALANCE] + o[CREDIT_LIMIT] - o[CHELD], r[1], r[2], r[3], r[4], w[1], w[2], w[3], w[4])
end

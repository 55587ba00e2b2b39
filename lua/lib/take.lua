-- take: one request of one scope's buckets and slots, or what is missing. Needs state, bucket.

-- a user's packed state under the limits in force, nil where there are none: then nothing is kept of it. Absent means
-- not seen lately: the tenant's user limits, nothing used
local function user_state(raw, tenant, now)
  local limits = sub(tenant, 210, 233)
  if limits == NO_LIMITS and not (raw and has(byte(raw), OVERRIDE)) then return nil end
  if raw and sub(raw, 10, 33) == limits then return raw end
  local u = raw and open(USER_FORM, raw) or {0, 0, 0, 0, 0, 0, 0, now, 0}
  if has(u[FLAGS], OVERRIDE) then return raw end
  limit(u, parse('<ddd', tenant, 210))
  return write(USER_FORM, USER_SIZE, u)
end

-- What one request and up to `need` tokens make of a state, packed as it stands: its head packed, the tokens
-- taken, then requests a minute, requests used, tokens a minute, tokens used; where that does not fit nil and kind, used,
-- limit, until. With `had`, the tokens a hold took of it before, the request and its slot are there already.
-- Nothing is opened into a table and nothing packed but the counters: that is what most calls cost.
local function take(raw, now, need, had)
  local rpm, tpm, slots, requests, tokens, at, in_flight = parse('<ddddddd', raw, 10)
  if now > at then
    local passed = now - at
    requests, tokens, at = requests - rpm * passed, tokens - tpm * passed, now
    if requests < 0 then requests = 0 end
    if tokens < 0 then tokens = 0 end
  elseif at > now + FUTURE_MS then
    at = now
  end
  local taken = 0
  if had then tokens = tpm > 0 and max(0, tokens - had * UNIT) or tokens
  elseif rpm > 0 then
    local over = requests + UNIT - rpm * UNIT
    if over > 0 then return nil, 1, ceil(requests / UNIT), rpm, now + ceil(over / rpm) end
    requests = requests + UNIT
  end
  if not had then
    if slots > 0 and in_flight >= slots then return nil, 3, in_flight, slots, now + 1000 end
    in_flight = in_flight + 1
  end
  if tpm > 0 and need > 0 then -- what needs no tokens is covered by any debt
    local free = tpm * UNIT - tokens
    if free < UNIT then return nil, 2, ceil(tokens / UNIT), tpm, now + ceil((UNIT - free) / tpm) end
    taken = need * UNIT > free and floor(free / UNIT) or need
    tokens = tokens + taken * UNIT
  end
  return pack(HEAD_FORM, raw, requests, tokens, at, in_flight), taken, rpm, requests, tpm, tokens
end

local function refused(code, now, scope, kind, used, limit, till)
  return pack('<i8i8i8i8i8i8i8', code, now, scope, kind, used, limit, till)
end

-- take: one request of every scope's buckets and slots, or of none. Needs state, bucket.
local HUGE = 9007199254740992

-- a user's packed state under the limits in force; absent means never seen: the tenant's user limits, nothing used
local function user_state(raw, tenant, now)
  if raw and sub(raw, 10, 33) == sub(tenant, 210, 233) then return raw end
  local u = raw and open(USER_FORM, raw) or {0, 0, 0, 0, 0, 0, 0, now, 0}
  if has(u[FLAGS], OVERRIDE) then return raw end
  limit(u, parse('<ddd', tenant, 210))
  return write(USER_FORM, USER_SIZE, u)
end

-- What one request and up to `need` tokens make of a state, packed as it stands: its head packed, the tokens
-- taken, then requests a minute, requests used, tokens a minute, tokens used; where that does not fit nil and kind, used,
-- limit, until. Nothing is opened into a table and nothing packed but the counters: that is what most calls cost.
local function take(raw, now, need)
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
  if rpm > 0 then
    local over = requests + UNIT - rpm * UNIT
    if over > 0 then return nil, 1, ceil(requests / UNIT), rpm, now + ceil(over / rpm) end
    requests = requests + UNIT
  end
  if tpm > 0 then
    local free = tpm * UNIT - tokens
    if free < UNIT then return nil, 2, ceil(tokens / UNIT), tpm, now + ceil((UNIT - free) / tpm) end
    taken = need * UNIT > free and floor(free / UNIT) or need
    tokens = tokens + taken * UNIT
  end
  if slots > 0 and in_flight >= slots then return nil, 3, in_flight, slots, now + 1000 end
  return pack(HEAD_FORM, raw, requests, tokens, at, in_flight + 1), taken, rpm, requests, tpm, tokens
end

local function refused(code, now, scope, kind, used, limit, till)
  return pack('<i8i8i8i8i8i8i8', code, now, scope, kind, used, limit, till)
end

-- takes from every scope or refuses; answers the heads, in place of the states, and the tokens taken by scope, then of the
-- tightest bucket of requests and that of tokens: scope (0: none), limit, used; or nil and the refusal
local function take_all(states, now, need)
  local takes = {0, 0, 0, 0}
  local requests_left, requests_scope, requests_limit, requests_used = HUGE, 0, 0, 0
  local tokens_left, tokens_scope, tokens_limit, tokens_used = HUGE, 0, 0, 0
  for scope = 1, 4 do
    local state = states[scope]
    if state then
      local head, taken, rpm, requests, tpm, tokens = take(state, now, need)
      if not head then return nil, refused(taken == 3 and -7 or -6, now, scope, taken, rpm, requests, tpm) end
      states[scope], takes[scope] = head, taken
      local left = rpm * UNIT - requests
      if rpm > 0 and left < requests_left then
        requests_left, requests_scope, requests_limit, requests_used = left, scope, rpm, requests
      end
      left = tpm * UNIT - tokens
      if tpm > 0 and left < tokens_left then
        tokens_left, tokens_scope, tokens_limit, tokens_used = left, scope, tpm, tokens
      end
    end
  end
  return states, takes, requests_scope, requests_limit, requests_used, tokens_scope, tokens_limit, tokens_used
end

-- take: one request of one scope's buckets and concurrency slots, or what is missing. Needs state, bucket.

-- a user's packed state under the limits in force, nil where there are none: then nothing is kept of it. Absent means
-- not seen lately: the tenant's user limits, nothing used
local function user_state(raw, tenant, now)
  local limits = TENANT.bytes(tenant, 'user_rpm', 'user_concurrency')
  if limits == NO_LIMITS and not (raw and has(ACCOUNT.field(raw, 'flags'), OVERRIDE)) then return nil end
  if raw and ACCOUNT.bytes(raw, 'rpm', 'concurrency') == limits then return raw end
  local user_rpm, user_tpm, user_concurrency = TENANT.read(tenant)
  if not raw then return USER.pack{rpm = user_rpm, tpm = user_tpm, concurrency = user_concurrency, at = now} end
  local user = USER.opened(raw)
  if has(user.flags, OVERRIDE) then return raw end
  set_limits(user, user_rpm, user_tpm, user_concurrency)
  return USER.written(user)
end

-- What one request and up to `need` tokens make of a state, packed as it stands: its head packed, the tokens
-- taken, then requests a minute, requests used, tokens a minute, tokens used; where that does not fit nil and kind, used,
-- limit, until. With `had`, the tokens a hold took of it before, the request and its slot are there already.
-- Nothing is opened into a table and nothing packed but the counters: that is what most calls cost.
local function take(raw, now, need, had)
  local rpm, tpm, concurrency, requests_used, tokens_used, at, inflight = ACCOUNT.read(raw)
  requests_used, tokens_used, at = drained(requests_used, tokens_used, at, rpm, tpm, now)
  local taken = 0
  if had then tokens_used = tpm > 0 and max(0, tokens_used - had * UNIT) or tokens_used
  elseif rpm > 0 then
    local over = requests_used + UNIT - rpm * UNIT
    if over > 0 then return nil, KIND_REQUESTS, ceil(requests_used / UNIT), rpm, now + ceil(over / rpm) end
    requests_used = requests_used + UNIT
  end
  if not had then
    if concurrency > 0 and inflight >= concurrency then return nil, KIND_CONCURRENCY, inflight, concurrency, now + 1000 end
    inflight = inflight + 1
  end
  if tpm > 0 and need > 0 then -- what needs no tokens is covered by any debt
    local free = tpm * UNIT - tokens_used
    if free < UNIT then return nil, KIND_TOKENS, ceil(tokens_used / UNIT), tpm, now + ceil((UNIT - free) / tpm) end
    taken = need * UNIT > free and floor(free / UNIT) or need
    tokens_used = tokens_used + taken * UNIT
  end
  return ACCOUNT.replaced(raw, {requests_used = requests_used, tokens_used = tokens_used, at = at, inflight = inflight}),
    taken, rpm, requests_used, tpm, tokens_used
end

local function refused(verdict, now, scope, kind, used, most, till)
  return REFUSED.pack{
    verdict = verdict, now = now, scope = scope, kind = kind or 0, used = used or 0, limit = most or 0, till = till or 0,
  }
end

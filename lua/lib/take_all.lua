-- take_all: one request of every scope's buckets and concurrency slots, or of none. Needs state, bucket, take.
local HUGE = 9007199254740992
local reserved_sizes = {0, TENANT_BYTES, ORGANIZATION_BYTES, KEY_BYTES} -- as `stored` takes them
local had_nothing = {}

-- the hold that is topped up, opened, the tokens it took by scope, and whether it is another service's; nil and nothing where
-- it is gone, or none is to be topped up: then all is taken again
local function raised(name, service_id)
  local packed = name and call('GET', name)
  local hold = packed and HOLD.opened(today(packed, name))
  if not hold or has(hold.flags, HOLD_RECLAIMED) then return nil, had_nothing end
  return hold, {hold.key_tpm, has(hold.flags, HOLD_USER) and hold.user_tpm, hold.tenant_tpm, hold.organization_tpm},
    hold.service_id ~= 0 and hold.service_id ~= service_id
end

-- the refusal of a scope; tokens are refused only where no other scope lacks a request or a slot, which come first
local function refusal(states, scope, now, had, kind, used, most, till)
  if kind == KIND_TOKENS then
    for other = scope + 1, SCOPE_ORGANIZATION do
      if states[other] then
        local head, first, used2, most2, till2 = take(states[other], now, 0, had[other])
        if not head then return refusal(states, other, now, had, first, used2, most2, till2) end
      end
    end
  end
  local verdict = kind == KIND_CONCURRENCY and VERDICT_CONCURRENCY_LIMITED or VERDICT_RATE_LIMITED
  return refused(verdict, now, scope, kind, used, most, till), kind
end

-- takes from every scope or refuses; answers the heads, in place of the states, and the tokens taken by scope, then of the
-- tightest bucket of requests and that of tokens: scope (0: none), limit, used; or nil, the refusal and its kind.
-- Of scopes that a hold which is topped up has already, only the tokens are taken, in place of those it `had`
local function take_all(states, now, need, had)
  local takes = {0, 0, 0, 0}
  local requests_left, requests_scope, requests_limit, requests_used = HUGE, 0, 0, 0
  local tokens_left, tokens_scope, tokens_limit, tokens_used = HUGE, 0, 0, 0
  for scope = SCOPE_KEY, SCOPE_ORGANIZATION do
    local state = states[scope]
    if state then
      local head, taken, rpm, requests, tpm, tokens = take(state, now, need, had[scope])
      if not head then
        local kind, used, most, till = taken, rpm, requests, tpm -- what a refusal has in their place
        return nil, refusal(states, scope, now, had, kind, used, most, till)
      end
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

-- take_all: one request of every scope's buckets and slots, or of none. Needs state, bucket, take.
local HUGE = 9007199254740992
local reserved_sizes = {0, TENANT_BYTES, ORGANIZATION_BYTES, KEY_BYTES} -- as `stored` takes them
local taken_by = {H_KEY_TPM, H_USER_TPM, H_TENANT_TPM, H_ORGANIZATION_TPM} -- where a hold says what it took, by scope

-- the hold that is raised, opened; nil where it is gone: then all of it is taken anew
local function raised(name)
  local packed = call('GET', name)
  local h = packed and HOLD.opened(today(packed, name))
  return h and not has(h[H_FLAGS], HOLD_RECLAIMED) and h or nil
end

-- the refusal of a scope; tokens are refused only where no other scope lacks a request or a slot, which come first
local function refusal(states, scope, now, was, kind, used, most, till)
  if kind == KIND_TOKENS then
    for other = scope + 1, SCOPE_ORGANIZATION do
      local had = was and (other ~= SCOPE_USER or has(was[H_FLAGS], HOLD_USER)) and was[taken_by[other]]
      if states[other] then
        local head, first, used2, most2, till2 = take(states[other], now, 0, had)
        if not head then return refusal(states, other, now, was, first, used2, most2, till2) end
      end
    end
  end
  local verdict = kind == KIND_CONCURRENCY and VERDICT_CONCURRENCY_LIMITED or VERDICT_RATE_LIMITED
  return refused(verdict, now, scope, kind, used, most, till), kind
end

-- takes from every scope or refuses; answers the heads, in place of the states, and the tokens taken by scope, then of the
-- tightest bucket of requests and that of tokens: scope (0: none), limit, used; or nil, the refusal and its kind.
-- Of scopes that `was`, a hold that is raised, has already, only the tokens are taken, in place of those it took
local function take_all(states, now, need, was)
  local takes = {0, 0, 0, 0}
  local requests_left, requests_scope, requests_limit, requests_used = HUGE, 0, 0, 0
  local tokens_left, tokens_scope, tokens_limit, tokens_used = HUGE, 0, 0, 0
  for scope = SCOPE_KEY, SCOPE_ORGANIZATION do
    local state = states[scope]
    if state then
      local had = was and (scope ~= SCOPE_USER or has(was[H_FLAGS], HOLD_USER)) and was[taken_by[scope]]
      local head, taken, rpm, requests, tpm, tokens = take(state, now, need, had)
      if not head then
        local kind, used, most, till = taken, rpm, requests, tpm -- what a refusal has in their place
        return nil, refusal(states, scope, now, was, kind, used, most, till)
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

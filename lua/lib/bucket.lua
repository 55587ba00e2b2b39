-- bucket: the limits of a minute: requests and tokens, and calls at once, of a key, user, tenant and organization. Exact in integers.
-- needs: state
-- sets: unheld
-- A level counts what was taken, UNIT for each request or token. It drains by `limit` a millisecond, so one unit drains in 60000 /
-- limit ms. A full bucket is level 0; debt is level > limit * UNIT.
local UNIT, FUTURE_MS = 60000, 2000

-- Formats and numbers of fields, by the kind of state, and by scope.
local forms = {KEY_FORM, USER_FORM, TENANT_FORM, ORGANIZATION_FORM}
local sizes = {KEY_SIZE, USER_SIZE, TENANT_SIZE, ORGANIZATION_SIZE}

-- How long a user's state is stored, in ms, if it has only its tenant's user limits: while a call is in flight, which always ends;
-- then beyond the longest window, and until its tokens have drained, a day at most, since a key may name any number of users. A user
-- with limits of its own is stored as defined.
local IDLE_MS, LIFE_MS_MAX = 120000, 86400000

-- Writes a user's state with an expiry; or returns it, if it is to be kept, for the later MSET.
local function keep_user(name, packed, user, now)
  if user.inflight > 0 or has(user.flags, OVERRIDE) then return packed end
  local rpm, tpm, life = user.rpm, user.tpm, IDLE_MS
  if rpm > 0 then life = max(life, ceil(user.requests_used / rpm)) end
  if tpm > 0 then life = max(life, ceil(user.tokens_used / tpm)) end
  call('SET', name, as_written(name, packed), 'PXAT', now + min(LIFE_MS_MAX, life))
end

-- Sets limits; if one changes, the level is at most the new limit.
local function set_limits(account, rpm, tpm, concurrency)
  if rpm ~= account.rpm then account.requests_used = min(account.requests_used, rpm * UNIT) end
  if tpm ~= account.tpm then account.tokens_used = min(account.tokens_used, tpm * UNIT) end
  account.rpm, account.tpm, account.concurrency = rpm, tpm, concurrency
end

-- Drains both levels until now; a time far in the future came from another clock.
local function drain(account, now)
  local at, requests_used, tokens_used = account.at, account.requests_used, account.tokens_used
  if now <= at and at <= now + FUTURE_MS then return end
  if now > at then requests_used, tokens_used = max(0, requests_used - account.rpm * (now - at)), max(0, tokens_used - account.tpm * (now - at)) end
  account.requests_used, account.tokens_used, account.at = requests_used, tokens_used, now
end

-- Gives back the held slots (1, or 0 without a hold), and replaces the taken tokens by the used ones. There are none if the hold took
-- nothing of the account (`UNCOUNTED`).
local function give_back_rate(account, now, slots, taken, used)
  local at, tpm, inflight = account.at, account.tpm, account.inflight
  if taken < 0 then taken = 0 else inflight = inflight - slots end
  local tokens_used = account.tokens_used
  if now > at then -- as `drain` does
    local requests_used, passed = account.requests_used, now - at
    requests_used, tokens_used = requests_used - account.rpm * passed, tokens_used - tpm * passed
    if tokens_used < 0 then tokens_used = 0 end
    account.requests_used, account.at = requests_used < 0 and 0 or requests_used, now
  elseif at > now + FUTURE_MS then account.at = now end
  if tpm > 0 then
    tokens_used = tokens_used + (used - taken) * UNIT
    if tokens_used < 0 then tokens_used = 0 end
  end
  if inflight < 0 then inflight, unheld = 0, true end
  account.tokens_used, account.inflight = tokens_used, inflight
end

-- By scope, for the last call: the tokens taken, and the former levels with their times, which `roll_back` restores.
local takes = {0, 0, 0, 0}
local requests_before, tokens_before, times_before = {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}
-- Its accounts, and the amounts of the hold that it raises.
local taken_of, taken_had

-- Restores everything that `take_rate_limits` took for a call, up to a scope, and returns its refusal; nothing was written yet.
local function roll_back(answer, last)
  for scope = SCOPE_KEY, last or SCOPE_ORGANIZATION do
    local account = taken_of[scope]
    if account then
      account.requests_used, account.tokens_used, account.at = requests_before[scope], tokens_before[scope], times_before[scope]
      if not taken_had[scope] then account.inflight = account.inflight - 1 end
    end
  end
  return answer
end

-- Takes one request, one slot and up to `need` tokens from the opened accounts, in the order of their scopes; a scope without an
-- account takes nothing. `held_before` has, by scope, the tokens of the hold that is raised: its request and slot are taken already, and the
-- tokens replace those. Returns a refusal, with nothing taken. Otherwise nil, then the refusal if only tokens are missing, since any
-- other comes first; then scope (0: none), limit and level of the tightest bucket of requests, and the same of tokens. If the call is
-- refused later, `roll_back` restores everything.
local function take_rate_limits(accounts, now, need, held_before)
  local refusal, wanted = nil, need * UNIT
  local requests_left, requests_scope, requests_limit, requests_then = HUGE, 0, 0, 0
  local tokens_left, tokens_scope, tokens_limit, tokens_then = HUGE, 0, 0, 0
  taken_of, taken_had = accounts, held_before
  for scope = SCOPE_KEY, SCOPE_ORGANIZATION do
    local account, taken = accounts[scope], UNCOUNTED
    if account then
      taken = 0
      local rpm, tpm, requests_used, tokens_used, at = account.rpm, account.tpm, account.requests_used, account.tokens_used, account.at
      requests_before[scope], tokens_before[scope] = requests_used, tokens_used
      times_before[scope] = at
      if now > at then -- as `drain` does
        local passed = now - at
        requests_used, tokens_used = requests_used - rpm * passed, tokens_used - tpm * passed
        if requests_used < 0 then requests_used = 0 end
        if tokens_used < 0 then tokens_used = 0 end
        account.at = now
      elseif at > now + FUTURE_MS then account.at = now end
      local had_tokens = held_before[scope]
      if had_tokens then
        if tpm > 0 then tokens_used = max(0, tokens_used - had_tokens * UNIT) end
      else
        local concurrency, inflight = account.concurrency, account.inflight
        if rpm > 0 then
          requests_used = requests_used + UNIT
          if requests_used > rpm * UNIT then
            account.at = at
            return roll_back(refused(VERDICT_RATE_LIMITED, now, scope, KIND_REQUESTS, ceil(requests_used / UNIT) - 1, rpm, now + ceil((requests_used - rpm * UNIT) / rpm)), scope - 1)
          end
        end
        if concurrency > 0 and inflight >= concurrency then
          account.at = at
          return roll_back(refused(VERDICT_CONCURRENCY_LIMITED, now, scope, KIND_CONCURRENCY, inflight, concurrency, now + 1000), scope - 1)
        end
        account.inflight = inflight + 1
      end
      if rpm > 0 then
        local left = rpm * UNIT - requests_used
        if left < requests_left then requests_left, requests_scope, requests_limit, requests_then = left, scope, rpm, requests_used end
      end
      if tpm > 0 then
        local free = tpm * UNIT - tokens_used
        if need > 0 then -- what needs no tokens is covered by any debt
          if free >= wanted then taken, tokens_used, free = need, tokens_used + wanted, free - wanted
          elseif free >= UNIT then
            taken = floor(free / UNIT)
            tokens_used, free = tokens_used + taken * UNIT, free - taken * UNIT
          else
            refusal = refusal or refused(VERDICT_RATE_LIMITED, now, scope, KIND_TOKENS, ceil(tokens_used / UNIT), tpm, now + ceil((UNIT - free) / tpm))
          end
        end
        if free < tokens_left then tokens_left, tokens_scope, tokens_limit, tokens_then = free, scope, tpm, tokens_used end
      end
      account.requests_used, account.tokens_used = requests_used, tokens_used
    end
    takes[scope] = taken
  end
  return nil, refusal, requests_scope, requests_limit, requests_then, tokens_scope, tokens_limit, tokens_then
end

-- take: takes one request from the buckets and concurrency slots of several accounts, or refuses. Needs state, bucket.
local HUGE = 9007199254740992

local function refused(verdict, now, scope, kind, used, most, till)
  return REFUSED.pack{
    verdict = verdict, now = now, scope = scope, kind = kind or 0, used = used or 0, limit = most or 0, till = till or 0,
  }
end

-- By scope, for the last call: the tokens taken, and the former levels with their times, which `roll_back` restores.
local takes = {0, 0, 0, 0}
local requests_before, tokens_before, times_before = {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}
-- Its accounts, the amounts of the hold that it raises, and the last scope taken from.
local taken_of, taken_had, taken_to

-- Restores everything that `take_rate_limits` took for a call, and returns its refusal; nothing was written yet.
local function roll_back(answer)
  for scope = SCOPE_KEY, taken_to do
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
  local refusal
  local wanted = need * UNIT
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
      if now > at then -- as `drained` has it
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
            account.at, taken_to = at, scope - 1
            return roll_back(refused(VERDICT_RATE_LIMITED, now, scope, KIND_REQUESTS, ceil(requests_used / UNIT) - 1, rpm, now + ceil((requests_used - rpm * UNIT) / rpm)))
          end
        end
        if concurrency > 0 and inflight >= concurrency then
          account.at, taken_to = at, scope - 1
          return roll_back(refused(VERDICT_CONCURRENCY_LIMITED, now, scope, KIND_CONCURRENCY, inflight, concurrency, now + 1000))
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
  taken_to = SCOPE_ORGANIZATION
  return nil, refusal, requests_scope, requests_limit, requests_then, tokens_scope, tokens_limit, tokens_then
end

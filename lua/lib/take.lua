-- take: one request of the buckets and concurrency slots of a list of accounts, or the missing one. Needs state, bucket.
local HUGE = 9007199254740992

local function refused(verdict, now, scope, kind, used, most, till)
  return REFUSED.pack{
    verdict = verdict, now = now, scope = scope, kind = kind or 0, used = used or 0, limit = most or 0, till = till or 0,
  }
end

-- What one request and up to `need` tokens would make of accounts in the order of their scopes, which nothing is taken from
-- yet. Answers a refusal; or nil, the refusal where only tokens lack, which whatever else may lack comes before, and of the
-- tightest bucket of requests and that of tokens: scope (0: none), limit, used. What it makes is left by scope: the
-- tokens taken, the levels then and their time. Of accounts that a hold which is topped up took of (`had`: its tokens),
-- it has the request and the slot, and the tokens come in place of those. Of a scope that has no account nothing is taken
local takes, requests_of, tokens_of, times_of = {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}
local function required(accounts, now, need, had)
  local short
  local requests_left, requests_scope, requests_limit, requests_then = HUGE, 0, 0, 0
  local tokens_left, tokens_scope, tokens_limit, tokens_then = HUGE, 0, 0, 0
  for scope = 1, #accounts do
    local account, taken = accounts[scope], UNCOUNTED
    if account then
      taken = 0
      local rpm, tpm, concurrency, inflight = account.rpm, account.tpm, account.concurrency, account.inflight
      local requests_used, tokens_used, at = account.requests_used, account.tokens_used, account.at
      if at ~= now then requests_used, tokens_used, at = drained(requests_used, tokens_used, at, rpm, tpm, now) end
      local had_tokens = had[scope]
      if had_tokens then
        if tpm > 0 then tokens_used = max(0, tokens_used - had_tokens * UNIT) end
      else
        if rpm > 0 then
          requests_used = requests_used + UNIT
          local over = requests_used - rpm * UNIT
          if over > 0 then return refused(VERDICT_RATE_LIMITED, now, scope, KIND_REQUESTS, ceil(requests_used / UNIT) - 1, rpm, now + ceil(over / rpm)) end
        end
        if concurrency > 0 and inflight >= concurrency then
          return refused(VERDICT_CONCURRENCY_LIMITED, now, scope, KIND_CONCURRENCY, inflight, concurrency, now + 1000)
        end
      end
      if rpm > 0 then
        local left = rpm * UNIT - requests_used
        if left < requests_left then requests_left, requests_scope, requests_limit, requests_then = left, scope, rpm, requests_used end
      end
      if tpm > 0 then
        local free = tpm * UNIT - tokens_used
        if need > 0 then -- what needs no tokens is covered by any debt
          if free >= UNIT then
            taken = need * UNIT > free and floor(free / UNIT) or need
            tokens_used, free = tokens_used + taken * UNIT, free - taken * UNIT
          else
            short = short or refused(VERDICT_RATE_LIMITED, now, scope, KIND_TOKENS, ceil(tokens_used / UNIT), tpm, now + ceil((UNIT - free) / tpm))
          end
        end
        if free < tokens_left then tokens_left, tokens_scope, tokens_limit, tokens_then = free, scope, tpm, tokens_used end
      end
      requests_of[scope], tokens_of[scope], times_of[scope] = requests_used, tokens_used, at
    end
    takes[scope] = taken
  end
  return nil, short, requests_scope, requests_limit, requests_then, tokens_scope, tokens_limit, tokens_then
end

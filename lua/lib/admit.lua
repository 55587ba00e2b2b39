-- admit: the decisions of reserve, limit by limit. Needs state, take.
local PENDING = 1

-- The tokens to hold, or nil and the refusal: -8 quota exceeded, -9 the rest is held by other calls; last, true if the hold is the
-- call's limit. Under a strict plan that is all the call could use. If the call states no maximum, it is cut to the free amount, but
-- to no less than `least` (0: it states one; -1: all it needs, or nothing).
local function quota_hold(tenant, now, counts, need, ceiling, least)
  if not counts or ceiling == 0 then return 0 end -- what needs nothing is covered, whatever is left
  if not is_limited(tenant) then return need end
  local left, strict = tenant.limit - tenant.used, tenant.admission == STRICT
  local free = left - tenant.held
  if ceiling <= free then return strict and ceiling or need, nil, strict end
  local tokens, verdict = cut(left, free, least < 0 and need or strict and free > 0 and (least > 0 and least or ceiling) or 1, VERDICT_QUOTA_EXCEEDED)
  if tokens then return tokens, nil, strict end
  return nil, refused(verdict, now, SCOPE_TENANT, KIND_QUOTA, tenant.used, tenant.total, tenant.next_reset)
end

-- The credits to hold, or nil and the refusal: -10 too few, -9 enough but held by calls in flight. All of them; or the free amount,
-- as the call's limit, if tokens set the price and the call states no maximum (`least` is not 0).
local function credit_hold(organization, now, credits, least)
  local left = organization.credit_limit - organization.credits_used
  local free = left - organization.credits_held
  if credits <= free then return credits end
  local bound, verdict = cut(left, free, least > 0 and least or credits, VERDICT_INSUFFICIENT_CREDITS)
  return bound, bound == nil and refused(verdict, now, SCOPE_ORGANIZATION, KIND_CREDITS, organization.credits_held, left, 0)
end

-- The stored use of an organization's service; an early layout ends with the month's quantity.
local function activation_of(raw)
  if not raw then return ACTIVATION.fresh() end
  return ACTIVATION.opened(#raw < ACTIVATION_BYTES and raw .. ZERO .. ZERO or raw)
end

-- One-Time: the first call holds the price, and others are not charged while it is pending. Returns the price to hold, and the flags
-- of the hold: ONE_TIME means that the call waits for the first. A call whose price is still unknown waits for nothing.
local function reserve_activation(activation, price, flags, raised_hold)
  if raised_hold and has(raised_hold.flags, HOLD_ONE_TIME) then return 0, flags end
  if price == 0 then return 0, flags - HOLD_ONE_TIME end
  if activation.flags == ACTIVE then return 0, flags end
  activation.waiting = activation.waiting + 1
  if activation.flags == PENDING then return 0, flags end
  activation.flags, activation.price = PENDING, price
  return price, flags
end

-- The free credits of a packed organization that no call has opened; the last result is cached.
local asked_organization, credits_asked
local function credits_free_of(raw)
  if raw ~= asked_organization then
    local credits_used, credits_held, credit_limit = ORGANIZATION.read(raw)
    asked_organization, credits_asked = raw, credit_limit - credits_used - credits_held
  end
  return credits_asked
end

-- Quotients are rounded up without a function call: (a + -a % b) / b
local NO_BUCKETS = ADMITTED.span('requests_scope', '', {
  requests_scope = 0, requests_limit = 0, requests_used = 0, requests_reset = 0, tokens_scope = 0, tokens_limit = 0, tokens_used = 0, tokens_reset = 0})
local function admitted(now, tokens, tenant, credits_free, credits, bounds,
  requests_scope, requests_limit, requests_used, tokens_scope, tokens_limit, tokens_used)
  local verdict, total, free = bounds and BOUNDED or VERDICT_ADMITTED, tenant.total, -1
  if tenant.on_store_failure == STORE_ALLOW then verdict = verdict + LEASES end
  if total >= 0 then
    free = tenant.limit - tenant.used - tenant.held
    if free < 0 then free = 0 end
  end
  if requests_scope + tokens_scope == 0 then
    return ADMITTED.span('', 'requests_scope', {
      verdict = verdict, now = now, tokens = tokens, total = total, tokens_free = free, next_reset = tenant.next_reset, credits_free = credits_free,
      credits = credits}) .. NO_BUCKETS
  end
  return ADMITTED.span('', '', {
    verdict = verdict, now = now, tokens = tokens, total = total, tokens_free = free, next_reset = tenant.next_reset, credits_free = credits_free,
    credits = credits,
    requests_scope = requests_scope, requests_limit = requests_limit, requests_used = (requests_used + -requests_used % UNIT) / UNIT,
    requests_reset = requests_limit > 0 and (requests_used + -requests_used % requests_limit) / requests_limit or 0,
    tokens_scope = tokens_scope, tokens_limit = tokens_limit, tokens_used = (tokens_used + -tokens_used % UNIT) / UNIT,
    tokens_reset = tokens_limit > 0 and (tokens_used + -tokens_used % tokens_limit) / tokens_limit or 0,
  })
end

-- quota: windows in opened accounts, and a tenant's tokens: its plan, its cycles and their resets. The used amount of a window is at `at`
-- of its meters, and the amount held by calls in flight after it. Windows of budgets have meters of their own (windows.lua); a tenant's
-- quota, and an organization's credits and spend, are in the opened account, at QUOTA_AT, CREDITS_AT and SPEND_AT.
-- needs: calendar entry state
-- sets: unheld
local POLICY_CARRY, STRICT = 1, 1

local function free_of(meters, at, limit) return limit - meters[at] - meters[at + 1] end

local function hold_more(meters, at, amount)
  local held = meters[at + 1] + amount
  if held < 0 then held, unheld = 0, true end
  meters[at + 1] = held > INTEGER_MAX and INTEGER_MAX or held
end

-- The part of an amount that a window has free, and whether that is too little.
local function free_part(meters, at, limit, more)
  local part = min(more, max(0, free_of(meters, at, limit)))
  return part, part < more
end

-- The free amount of a window that has less than needed, if it is at least `least`; or nil and the refusal: `exceeded`, if it would
-- be refused even with no call in flight.
local function cut(left, free, least, exceeded)
  if least <= free then return free end
  return nil, least > left and exceeded or VERDICT_QUOTA_HELD
end

-- Whether a tenant's tokens are limited, not only counted.
local function is_limited(tenant) return tenant.total >= 0 and tenant.overage_policy ~= POLICY_BILL end

-- The remaining tokens, as the ledger has them.
local function remaining_of(tenant) return tenant.total < 0 and tenant.limit or tenant.limit - tenant.used end

-- Gives back the amounts of a hold to the tenant and the organization.
local function give_back_amounts(tenant, organization, flags, tokens, credits)
  if tokens ~= 0 then hold_more(tenant, QUOTA_AT, -tokens) end
  if credits > 0 and not has(flags, HOLD_ONE_TIME) then hold_more(organization, has(flags, HOLD_USES) and SPEND_AT or CREDITS_AT, -credits) end
end

-- The flags of an entry that say whether a tenant is blocked.
local function status_flag(tenant)
  local total, tenant_flags = tenant.total, tenant.flags
  if total < 0 then return has(tenant_flags, MANUAL_BLOCK) and ENTRY_UNLIMITED + ENTRY_BLOCKED + ENTRY_MANUAL_BLOCK or ENTRY_UNLIMITED end
  if has(tenant_flags, MANUAL_BLOCK) then return ENTRY_BLOCKED + ENTRY_MANUAL_BLOCK end
  return tenant.limit <= tenant.used and has(tenant_flags, HAS_PLAN) and is_limited(tenant) and ENTRY_BLOCKED or 0
end

-- Advances the seq, and the time, which never goes back.
local function stamp(tenant, now)
  tenant.seq = tenant.seq + 1
  if now > tenant.ledger_at then tenant.ledger_at = now end
end

-- Stamps and packs a movement of tokens.
local function movement(tenant, now, epoch, kind, amount, facts)
  stamp(tenant, now)
  facts.kind, facts.at, facts.epoch, facts.amount = kind, tenant.ledger_at, epoch, abs(amount)
  facts.flags = (facts.flags or 0) + ENTRY_TOKENS + status_flag(tenant) + ((kind ~= EVENT_CONSUME and amount >= 0) and ENTRY_IN or 0)
  return event(tenant, tenant.organization_id, facts)
end

-- The ledger's balance; 0 while unlimited.
local function balance_of(tenant) return tenant.total < 0 and 0 or remaining_of(tenant) end

-- Gives a tenant a plan. The running cycle still ends on its day, in the plan's local time; if the plan's cycles begin on other days,
-- it ends with the next of these.
local function follow(tenant, packed, now)
  local interval, anchor, day = tenant.reset_interval, anchor_of(tenant), day_of(tenant, tenant.next_reset)
  PLAN.into(tenant, packed)
  if tenant.next_reset == 0 or interval ~= tenant.reset_interval or anchor ~= anchor_of(tenant) then
    tenant.next_reset = next_reset_of(tenant, now)
  else tenant.next_reset = start_of_day(tenant, day) end
end

-- Has the next reset forgive use beyond the plan, also under a plan that carries it over: it was owed otherwise than in future
-- tokens.
local function forgive_next(tenant)
  if not has(tenant.flags, FORGIVES) then tenant.flags = tenant.flags + FORGIVES end
end

-- Starts a new cycle under the present plan; returns the event, which states the forgiven debt.
local function renew(tenant, now, epoch, passed, next_reset, facts)
  local before, left = balance_of(tenant), remaining_of(tenant)
  local carried = 0
  if left > 0 then carried = min(left, tenant.rollover_max, INTEGER_MAX - max(0, tenant.total_amount))
  elseif tenant.overage_policy == POLICY_CARRY and not has(tenant.flags, FORGIVES) then carried = left
  elseif left < 0 and is_limited(tenant) then
    local begun = string.match(facts.metadata or '', '^({.+)}$')
    facts.metadata = (begun and begun .. ',' or '{') .. format('"forgiven":%.0f}', 0 - left)
  end
  if has(tenant.flags, FORGIVES) then tenant.flags = tenant.flags - FORGIVES end
  tenant.total = tenant.total_amount
  tenant.limit = max(0, tenant.total) + carried
  tenant.used, tenant.cycle, tenant.next_reset = 0, tenant.cycle + passed, next_reset
  local packed = movement(tenant, now, epoch, EVENT_RESET, balance_of(tenant) - before, facts)
  tenant.last_reset = tenant.ledger_at
  return packed
end

-- The reset event that is due now, or nil; several missed cycles are one event.
local function due(tenant, now, epoch)
  local at = tenant.next_reset
  if at <= 0 or now < at then return nil end
  local next_reset = next_reset_of(tenant, now)
  local passed = next_reset > 0 and max(1, cycles_between(tenant, at, next_reset)) or 1
  local facts = {}
  if passed > 1 then facts.metadata = format('{"cycles":%.0f}', passed) end
  return renew(tenant, now, epoch, passed, next_reset, facts)
end

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

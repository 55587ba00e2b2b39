-- cycle: the plan of a tenant, and its due reset. Needs state, event, calendar.
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
    local said = string.match(facts.metadata or '', '^({.+)}$')
    facts.metadata = (said and said .. ',' or '{') .. format('"forgiven":%.0f}', 0 - left)
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

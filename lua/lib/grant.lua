-- grant: what each control verb does to an account. Needs state, event, cycle.

local function credit(organization, now, epoch, amount, facts)
  facts.kind, facts.flags, facts.epoch = EVENT_CREDIT, amount >= 0 and ENTRY_IN or 0, epoch
  move_credits(organization, now, amount, facts, 0)
  facts.at = organization.credit_at
  return event(nil, organization.organization_id, facts)
end

local function mark(tenant, now, epoch, kind, facts)
  local blocked = has(tenant.flags, MANUAL_BLOCK)
  if kind == EVENT_BLOCK and not blocked then tenant.flags = tenant.flags + MANUAL_BLOCK end
  if kind == EVENT_UNBLOCK and blocked then tenant.flags = tenant.flags - MANUAL_BLOCK end
  tenant.ledger_at = max(now, tenant.ledger_at)
  facts.kind, facts.flags, facts.at, facts.epoch = kind, status_flag(tenant), tenant.ledger_at, epoch
  return event(tenant, tenant.organization_id, facts)
end

-- moves a tenant to another plan now: the difference is an adjust; a first plan is a reset
local function change_plan(tenant, now, epoch, packed, facts)
  local had, total, remaining = has(tenant.flags, HAS_PLAN), tenant.total, tenant.remaining
  local interval, anchor = tenant.reset_interval, tenant.anchor
  PLAN.into(tenant, packed)
  if had ~= (tenant.plan_id > 0) then tenant.flags = tenant.flags + (had and -HAS_PLAN or HAS_PLAN) end
  if tenant.next_reset == 0 or interval ~= tenant.reset_interval or anchor ~= tenant.anchor then
    tenant.next_reset = boundary(tenant.reset_interval, tenant.anchor, now)
  end
  if tenant.seq == 0 then return renew(tenant, now, epoch, tenant.cycle == 0 and 1 or 0, tenant.next_reset, facts) end
  local before = total < 0 and 0 or remaining
  local beyond = total < 0 and remaining or remaining - total + tenant.used
  tenant.total = tenant.total_amount
  tenant.remaining = tenant.total < 0 and beyond or tenant.total + beyond - tenant.used
  return movement(tenant, now, epoch, EVENT_ADJUST, balance_of(tenant) - before, facts)
end

local function tenant_grant(tenant, now, epoch, verb, amount, plan, facts)
  if verb == VERB_PLAN then return change_plan(tenant, now, epoch, plan, facts) end
  if verb == VERB_BLOCK then return mark(tenant, now, epoch, EVENT_BLOCK, facts) end
  if verb == VERB_UNBLOCK then return mark(tenant, now, epoch, EVENT_UNBLOCK, facts) end
  if verb == VERB_RESET then
    return renew(tenant, now, epoch, 1, boundary(tenant.reset_interval, tenant.anchor, now), facts)
  end
  tenant.remaining = tenant.remaining + amount
  return movement(tenant, now, epoch, verb == VERB_RECHARGE and EVENT_RECHARGE or EVENT_ADJUST, amount, facts)
end

-- numbers past 2^53 - 1 would no longer be exact
local function out_of_range(tenant, before, organization)
  local largest = abs(organization.balance)
  if tenant then largest = max(largest, abs(tenant.remaining), abs(tenant.remaining - before)) end
  return largest > INTEGER_MAX
end

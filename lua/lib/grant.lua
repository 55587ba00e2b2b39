-- grant: the effects of each control verb on an account. Needs state, event, cycle.

local function credit(organization, now, epoch, amount, facts)
  facts.kind, facts.flags, facts.epoch = EVENT_CREDIT, amount >= 0 and ENTRY_IN or 0, epoch
  move_credits(organization, now, amount, facts, 0)
  facts.at = organization.credit_at
  return event(nil, organization.organization_id, facts)
end

local function mark(tenant, now, epoch, kind, cause, facts)
  local flags = tenant.flags % BLOCK_CAUSE
  if has(flags, MANUAL_BLOCK) then flags = flags - MANUAL_BLOCK end
  tenant.flags = kind == EVENT_BLOCK and flags + MANUAL_BLOCK + cause * BLOCK_CAUSE or flags
  tenant.ledger_at = max(now, tenant.ledger_at)
  facts.kind, facts.flags, facts.at, facts.epoch = kind, status_flag(tenant), tenant.ledger_at, epoch
  return event(tenant, tenant.organization_id, facts)
end

-- Moves a tenant to another plan now, as an adjust of the difference; a first plan is a reset. Under a plan that does not carry, use
-- beyond the former plan is forgiven at the next reset.
local function change_plan(tenant, now, epoch, packed, facts)
  local had = has(tenant.flags, HAS_PLAN)
  if tenant.total >= 0 and tenant.overage_policy ~= POLICY_CARRY and remaining_of(tenant) < 0 then forgive_next(tenant) end
  if has(tenant.flags, FORGIVES) then facts.metadata = '{"forgives":true}' end
  follow(tenant, packed, now)
  if had ~= (tenant.plan_id > 0) then tenant.flags = tenant.flags + (had and -HAS_PLAN or HAS_PLAN) end
  if tenant.seq == 0 then return renew(tenant, now, epoch, tenant.cycle == 0 and 1 or 0, tenant.next_reset, facts) end
  local before = balance_of(tenant)
  tenant.limit, tenant.total = tenant.limit + max(0, tenant.total_amount) - max(0, tenant.total), tenant.total_amount
  return movement(tenant, now, epoch, EVENT_ADJUST, balance_of(tenant) - before, facts)
end

local function tenant_grant(tenant, now, epoch, verb, amount, plan, facts)
  if verb == VERB_PLAN then return change_plan(tenant, now, epoch, plan, facts) end
  if verb == VERB_BLOCK then return mark(tenant, now, epoch, EVENT_BLOCK, amount, facts) end
  if verb == VERB_UNBLOCK then return mark(tenant, now, epoch, EVENT_UNBLOCK, 0, facts) end
  if verb == VERB_RESET then
    return renew(tenant, now, epoch, 1, next_reset_of(tenant, now), facts)
  end
  tenant.limit = tenant.limit + amount
  return movement(tenant, now, epoch, verb == VERB_RECHARGE and EVENT_RECHARGE or EVENT_ADJUST, amount, facts)
end

-- Whether a number would exceed 2^53 - 1 and no longer be exact.
local function out_of_range(tenant, before, organization)
  local largest = abs(organization.credits_used)
  if tenant then largest = max(largest, abs(tenant.limit), abs(remaining_of(tenant)), abs(remaining_of(tenant) - before)) end
  return largest > INTEGER_MAX
end

-- load: writes a definition into a state. Needs state, bucket, cycle.

-- By the kind of state.
local forms = {KEY_FORM, USER_FORM, TENANT_FORM, ORGANIZATION_FORM}
local sizes = {KEY_SIZE, USER_SIZE, TENANT_SIZE, ORGANIZATION_SIZE}

-- A new account: no limits, nothing used; a tenant starts unlimited, without a plan, at seq 0.
local function blank(kind)
  if kind == KIND_KEY then return KEY.fresh() end
  if kind == KIND_USER then return USER.fresh() end
  if kind == KIND_TENANT then return TENANT.fresh() end
  return ORGANIZATION.fresh()
end

-- Updates the terms of the plan that a tenant has; a first plan and a change of plan are grants. If the terms begin to carry use
-- over, they do so from the next cycle on, since use beyond the plan was owed otherwise until then.
local function define_tenant(tenant, packed, now)
  local user_rpm, user_tpm, user_concurrency, tenant_id, organization_id, created, plan_id = DEFINE_TENANT.read(packed)
  tenant.user_rpm, tenant.user_tpm, tenant.user_concurrency = user_rpm, user_tpm, user_concurrency
  tenant.tenant_id, tenant.organization_id, tenant.created = tenant_id, organization_id, created
  if not has(tenant.flags, HAS_PLAN) or plan_id ~= tenant.plan_id then return end
  local policy = tenant.overage_policy
  follow(tenant, DEFINE_TENANT.since(packed, 'plan_id'), now)
  if policy ~= POLICY_CARRY and tenant.overage_policy == POLICY_CARRY then forgive_next(tenant) end
end

local function define(account, kind, packed, now)
  local rpm, tpm, concurrency = DEFINE_USER.read(packed) -- every definition begins with these
  set_limits(account, rpm, tpm, concurrency)
  if kind == KIND_KEY then
    local key = account
    DEFINE_KEY.into(key, packed)
  elseif kind == KIND_USER then
    -- without limits of its own a user falls back to its tenant's user limits
    account.flags = account.rpm + account.tpm + account.concurrency > 0 and OVERRIDE or 0
  elseif kind == KIND_TENANT then
    define_tenant(account, packed, now)
  else
    local organization = account
    DEFINE_ORGANIZATION.into(organization, packed)
  end
end

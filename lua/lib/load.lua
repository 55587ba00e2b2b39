-- load: how a definition enters a state. Needs state, bucket, cycle.
local DEFINE, REBUILD, VERIFY, FORGET = 1, 2, 3, 4
local KIND_KEY, KIND_USER, KIND_TENANT, KIND_ORG = 1, 2, 3, 4

local function form_of(kind)
  if kind == KIND_KEY then return KEY_FORM, KEY_SIZE end
  if kind == KIND_USER then return USER_FORM, USER_SIZE end
  if kind == KIND_TENANT then return TENANT_FORM, TENANT_SIZE end
  return ORGANIZATION_FORM, ORGANIZATION_SIZE
end

-- a new account: no limits, nothing used; a tenant starts unlimited, without a plan, at seq 0
local function blank(kind, now)
  if kind == KIND_KEY then return KEY.pack{at = now} end
  if kind == KIND_USER then return USER.pack{at = now} end
  if kind == KIND_TENANT then return TENANT.pack{at = now} end
  return ORGANIZATION.pack{at = now}
end

-- the plan's terms follow the plan a tenant has; a first plan and a change of plan are grants
local function define_tenant(a, packed, now)
  local user_rpm, user_tpm, user_concurrency, tenant_id, organization_id, plan_id = DEFINE_TENANT.read(packed)
  a[T_USER_RPM], a[T_USER_TPM], a[T_USER_CONCURRENCY] = user_rpm, user_tpm, user_concurrency
  a[T_TENANT_ID], a[T_ORGANIZATION_ID] = tenant_id, organization_id
  if not has(a[FLAGS], HAS_PLAN) or plan_id ~= a[T_PLAN_ID] then return end
  local interval, anchor = a[T_RESET_INTERVAL], a[T_ANCHOR]
  PLAN.into(a, DEFINE_TENANT.since(packed, 'plan_id'))
  if interval ~= a[T_RESET_INTERVAL] or anchor ~= a[T_ANCHOR] then
    a[T_NEXT_RESET] = boundary(a[T_RESET_INTERVAL], a[T_ANCHOR], now)
  end
end

local function define(a, kind, packed, now)
  local rpm, tpm, concurrency = DEFINE_USER.read(packed) -- every definition begins with these
  set_limits(a, rpm, tpm, concurrency)
  if kind == KIND_KEY then
    local revoked, expires, key_id = DEFINE_KEY.read(packed)
    a[FLAGS], a[K_EXPIRES], a[K_KEY_ID] = revoked, expires, key_id
  elseif kind == KIND_USER then
    -- without limits of its own a user falls back to its tenant's user limits
    a[FLAGS] = a[RPM] + a[TPM] + a[CONCURRENCY] > 0 and OVERRIDE or 0
  elseif kind == KIND_TENANT then
    define_tenant(a, packed, now)
  else
    local credit_limit, cap, organization_id = DEFINE_ORGANIZATION.read(packed)
    a[O_CREDIT_LIMIT], a[O_CAP], a[O_ORGANIZATION_ID] = credit_limit, cap, organization_id
  end
end

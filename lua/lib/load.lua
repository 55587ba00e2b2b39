-- load: how a definition enters a state. Needs state, bucket, cycle.
local DEFINE, REBUILD, VERIFY, FORGET = 1, 2, 3, 4
local KIND_KEY, KIND_USER, KIND_TENANT, KIND_ORG = 1, 2, 3, 4

local function form_of(kind)
  if kind == KIND_KEY then return KEY_FORM, KEY_SIZE end
  if kind == KIND_USER then return USER_FORM, USER_SIZE end
  if kind == KIND_TENANT then return TENANT_FORM, TENANT_SIZE end
  return ORG_FORM, ORG_SIZE
end

-- a new account: no limits, nothing used; a tenant starts unlimited, without a plan, at seq 0
local function blank(size, now)
  local a = {}
  for i = 1, size do a[i] = 0 end
  a[AT] = now
  if size == TENANT_SIZE then a[TOTAL], a[PLAN_TOTAL], a[ANCHOR] = -1, -1, 1 end
  if size == ORG_SIZE then a[CAP] = -1 end
  return a
end

-- the plan's terms follow the plan a tenant has; a first plan and a change of plan are grants
local function define_tenant(a, packed, from, now)
  a[URPM], a[UTPM], a[UCONC], a[TENANT], a[TENANT_ORG], from = parse('<ddddd', packed, from)
  if not has(a[FLAGS], HAS_PLAN) then return end
  local terms = {parse('<ddddddddd', packed, from)}
  if terms[1] ~= a[PLAN] then return end
  local interval, anchor = a[INTERVAL], a[ANCHOR]
  a[INTERVAL], a[POLICY], a[ADMISSION], a[EXHAUSTED], a[STORE], a[ROLLOVER], a[PLAN_TOTAL], a[ANCHOR] = values(terms, 2, 9)
  if interval ~= a[INTERVAL] or anchor ~= a[ANCHOR] then a[NEXT] = boundary(a[INTERVAL], a[ANCHOR], now) end
end

local function define(a, kind, packed, now)
  local rpm, tpm, concurrency, from = parse('<ddd', packed)
  limit(a, rpm, tpm, concurrency)
  if kind == KIND_KEY then
    a[FLAGS], a[EXPIRES], a[KEY_ID] = parse('<ddd', packed, from)
  elseif kind == KIND_USER then
    -- without limits of its own a user falls back to its tenant's user limits
    a[FLAGS] = a[RPM] + a[TPM] + a[CONC] > 0 and OVERRIDE or 0
  elseif kind == KIND_TENANT then
    define_tenant(a, packed, from, now)
  else
    a[CREDIT_LIMIT], a[CAP], a[ORG] = parse('<ddd', packed, from)
  end
end

-- load: write definitions and rebuilt states, if the version or the marker is unchanged.
-- needs: bucket quota state
-- allows: oom
-- KEYS[1] m  KEYS[2] the state (or m itself for verb 3)  KEYS[3] x outbox (due reset of a tenant); for verb 3 the counter of m's writes
--   then, for a rebuild, more states
-- ARGV[1] packed: run id (40), verb (1 define, 2 rebuild, 3 verify), kind (1 k, 2 u, 3 t, 4 o), version, create (0 or 1)
-- ARGV[2] define: packed limits rpm, tpm, conc, then by kind
--           k: revoked, expires, key id, when its row was created (µs)
--           t: user rpm, tpm, conc, tenant, organization, when created, then the plan as in grant
--           o: credit limit, cap, organization, when created
--         rebuild: the whole packed state, expiring if it is a budget account that says so; verify: the new marker
-- ARGV[3] rebuild and verify: the marker as the keeper read it (empty: none); then a packed state for each key after the third
-- Returns packed: 1 done, 2 already at this version or later, 3 done in place of another row's account, 0 unverified, -2 unknown account, -4 marker changed
-- Example: define limits of tenant 7 at version 3 over version 2 -> levels, use and holds stay, limits change
if #KEYS < 3 or #ARGV ~= #KEYS then return redis.error_reply('ERR load takes 3 keys and 3 arguments, and 1 and 1 a further state') end
local run_id, verb, kind, version, create = LOAD.read(ARGV[1])
local raw = call('MGET', KEYS[1], KEYS[2])
if verb == REBUILD or verb == VERIFY then
  if (raw[1] or '') ~= ARGV[3] then return CODE.pack{code = -4} end
  if verb == VERIFY then call('HINCRBY', KEYS[3], 'v', 1) end
  for i = 2, #KEYS do
    local name, packed = KEYS[i], ARGV[i]
    local expires = verb == REBUILD and string.match(name, ':(%a):') == 'b' and BUDGET.field(today(packed, name), 'expires') or 0
    if expires > 0 then call('SET', name, packed, 'PXAT', expires)
    elseif i ~= 3 then call('SET', name, packed) end
  end
  return CODE.pack{code = 1}
end
local epoch = verified(raw[1], run_id)
if not epoch then return CODE.pack{code = 0} end
if not raw[2] and create == 0 then return CODE.pack{code = -2} end
local now = clock(NO_BATCH)
local account = raw[2] and open(forms[kind], today(raw[2], KEYS[2])) or blank(kind)
-- the account may be that of another row, which had the same id before PostgreSQL was set back
local before, created = 0, 0
if kind == KIND_KEY then
  local key = account
  before, created = key.created, DEFINE_KEY.field(ARGV[2], 'created')
elseif kind == KIND_TENANT then
  local tenant = account
  before, created = tenant.created, DEFINE_TENANT.field(ARGV[2], 'created')
elseif kind == KIND_ORGANIZATION then
  local organization = account
  before, created = organization.created, DEFINE_ORGANIZATION.field(ARGV[2], 'created')
end
local anothers = before > 0 and created > 0 and before ~= created
if anothers then
  if create == 0 then return CODE.pack{code = -2} end
  account = blank(kind)
elseif raw[2] and account.version >= version then return CODE.pack{code = 2} end
if kind == KIND_TENANT then
  local reset = due(account, now, epoch)
  if reset then call('XADD', KEYS[3], '*', 'e', written_as == TODAY and reset or ENTRY.earlier(reset)) end
end
drain(account, now)
account.version = version
define(account, kind, ARGV[2], now)
local packed = write(forms[kind], sizes[kind], account)
if kind ~= KIND_USER or keep_user(KEYS[2], packed, account, now) then call('MSET', KEYS[2], as_written(KEYS[2], packed)) end
return CODE.pack{code = anothers and 3 or 1}

-- functions: definitions in states
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

-- lease: set a share of the free amount aside for one gateway, to use while it cannot reach Redis.
-- needs: entry quota state
-- allows: oom
-- KEYS[1] d  KEYS[2] x outbox (due reset)  KEYS[3] late queue  KEYS[4] m
-- KEYS[5] h the lease, a hold without slots  KEYS[6] t  KEYS[7] o
-- ARGV[1] packed: run id (40), ttl ms (0: give it back, -1: give it back if its deadline has passed),
--         share in millionths, tokens kept, spent, handed, credits kept, spent, handed, lease id (36)
--         kept: what the gateway still counts on; spent: the used part of it that is not charged yet;
--         handed: the part of that in the late queue, which is charged once the queue is empty
-- The hold is never less than kept: it shrinks only after the gateway counts on less.
-- Returns packed: 1 leased, now, tokens (-1 unlimited), credits, strict, cuts, has a cap, 1 if the handed part is charged,
--     the tenant's plan
--   2 no lease: given back, or there is none (plan denies, blocked by hand)  3 renewed meanwhile
--   0 unverified  -2 unknown account
-- Example: remaining 1000, held 200, 40 of them this lease, share 50000 -> leased 42, held 202
if #KEYS ~= 7 or #ARGV ~= 1 then return redis.error_reply('ERR lease takes 7 keys and 1 argument') end
local run_id, ttl, share, kept, spent, handed, credits_kept, credits_spent, credits_handed, lease_id = LEASE.read(ARGV[1])
local raw = stored(KEYS, 4)
local epoch = verified(raw[1], run_id)
if not epoch then return CODE.pack{code = 0} end
if not (raw[3] and raw[4]) then return CODE.pack{code = -2} end
local now = clock(NO_BATCH)
local tenant, organization, hold = TENANT.opened(raw[3]), ORGANIZATION.opened(raw[4]), raw[2] and HOLD.opened(raw[2])
local ends = ttl <= 0
if ttl < 0 and hold and now < hold.deadline then return NO_LEASE.pack{code = 3, now = now} end
if (ends and not hold) or (not ends and (tenant.on_store_failure ~= STORE_ALLOW or has(tenant.flags, MANUAL_BLOCK))) then
  return NO_LEASE.pack{code = 2, now = now}
end

local events = {due(tenant, now, epoch)}
local charged = handed + credits_handed > 0 and call('XLEN', KEYS[3]) == 0
if charged then
  kept, spent = kept - handed, spent - handed
  credits_kept, credits_spent = credits_kept - credits_handed, credits_spent - credits_handed
end
if hold then give_back_amounts(tenant, organization, hold.flags, hold.tokens, hold.credits) end
local tokens, credits, held, credits_held = -1, 0, 0, 0
if not ends then
  if is_limited(tenant) then tokens, held = portion(free_of(tenant, QUOTA_AT, tenant.limit), share, kept, spent) end
  credits, credits_held = portion(free_of(organization, CREDITS_AT, organization.credit_limit), share, credits_kept, credits_spent)
end
hold_more(tenant, QUOTA_AT, held)
hold_more(organization, CREDITS_AT, credits_held)

if ends then call('ZREM', KEYS[1], lease_id) else call('ZADD', KEYS[1], format('%.0f', now + ttl), lease_id) end
local err = append(KEYS[2], events)
if err then
  if hold then call('ZADD', KEYS[1], format('%.0f', hold.deadline), lease_id) else call('ZREM', KEYS[1], lease_id) end
  return err
end
local writes = {KEYS[6], TENANT.written(tenant), KEYS[7], ORGANIZATION.written(organization), nil, nil}
if ends then call('DEL', KEYS[5])
else
  writes[5], writes[6] = KEYS[5], HOLD.pack{
    flags = HOLD_LEASE, tokens = held, credits = credits_held, deadline = now + ttl,
    organization_id = organization.organization_id, tenant_id = tenant.tenant_id, created = hold and hold.created or now,
  }
end
call('MSET', values(all_as_written(writes, 1, #writes)))
if ends then return NO_LEASE.pack{code = 2, now = now} end
return LEASED.pack{
  code = 1, now = now, tokens = tokens, credits = credits, strict = tenant.admission, cuts = tenant.on_exhausted,
  capped = organization.cap < 0 and 0 or 1, charged = charged and 1 or 0,
  plan_id = tenant.plan_id,
}

-- functions: the part that is set aside
local WHOLE = 1000000

-- The part that the gateway may count on, and its hold: at least the amount that it still counts on.
local function portion(free, share, kept, spent)
  local left = max(0, free - spent)
  local aim = spent + floor(left / WHOLE) * share + floor(left % WHOLE * share / WHOLE)
  return aim, max(kept, aim)
end

-- reserve: take a hold on every limit of one request, or on none.
-- A call of which only the head is known holds a request and slots; once its body is read the hold is topped up: what it
-- took already is not taken again. A hold that is gone is taken again; a top-up that is refused leaves it as it was.
-- needs: state batch bucket event cycle take take_all admit tiers spend append
-- KEYS[1] h hold, written here  KEYS[2] d deadlines (ZSET)  KEYS[3] x outbox (due reset)
-- KEYS[4] m marker  KEYS[5] t tenant  KEYS[6] o organization  KEYS[7] k API key
-- KEYS[8] u user, where flags has USER  KEYS[8 or 9] a activation and month, where flags has ONE_TIME or 16
-- ARGV[1] packed: batch (lib/batch.lua), run id (40), catalogue version, need, what of it counts toward the quota (-1: all,
--         where no plan weighs kinds), ceiling (the most), least and credits' least (what they may be cut to; 0 where the
--         call states its maximum), of which ceiling and least are the quota's too, credits, units, ttl ms, service,
--         the plan whose weights these go by (-1: whichever it is),
--         flags (1 user, 2 One-Time, 4 counts tokens, 8 Subscription meter,
--         16 usage, 32 credits, 64 credits by token, 128 raises the hold there is), request id (36)
-- ARGV[2] the caller's own user id, up to 128 characters  ARGV[3] the service's tiers, where flags has 16
-- Returns packed: verdict, now, then
--   admitted (1; 2 where a strict plan makes the hold the call's limit): tokens held, the cycle's total,
--     tokens free (both -1: unlimited), next reset, credits free, requests {scope, limit, used, reset},
--     tokens {scope, limit, used, reset} (scope 0: none), credits held
--   refused: scope, kind, used, limit, until (0: unknown)
--   0 unverified, -1 stale catalogue, -2 unknown account: nothing more
--   -12 the tenant follows another plan: as refused, with that as the limit
-- Verdicts of a refusal: -3 key revoked or expired, -4 tenant blocked, -5 not included, -6 rate limited, -7 too many at once,
--   -8 quota exceeded, -9 held by calls in flight, -10 too few credits, -11 spend cap reached
-- Example: 10 a minute, 10 taken a second ago -> {-6, now, 3, 1, 10, 10, now + 5000}
if #KEYS < 7 or #ARGV < 2 then return redis.error_reply('ERR reserve takes 7 to 9 keys and 2 or 3 arguments') end
local batch, run_id, catalogue, need, weighed, ceiling, least, credits_least, credits, units, ttl, service_id, plan_id, flags, request_id =
  RESERVE.read(ARGV[1])
local with_user, one_time, counts, uses = has(flags, FLAG_USER), has(flags, FLAG_ONE_TIME), has(flags, FLAG_COUNTS), has(flags, FLAG_USES)
if #KEYS ~= 7 + (with_user and 1 or 0) + ((one_time or uses) and 1 or 0) or #ARGV ~= (uses and 3 or 2) then
  return redis.error_reply('ERR reserve takes a key and an argument for each flag')
end
local hold_key, deadlines, outbox, _, tenant_key, organization_key, api_key, user_key = values(KEYS)
local activation_key, user_id, tiers = KEYS[with_user and 9 or 8], ARGV[2], ARGV[3]
local raw = stored(KEYS, 4, reserved_sizes)
local packed_tenant, packed_organization, packed_key = raw[2], raw[3], raw[4]
local epoch, version = verified(raw[1], run_id)
if not epoch then return CODE.pack{code = VERDICT_UNVERIFIED} end
if catalogue < version then return CODE.pack{code = VERDICT_STALE} end
if not (packed_tenant and packed_organization and packed_key) then return CODE.pack{code = VERDICT_UNKNOWN_ACCOUNT} end
local now, tenant, organization = clock(batch), TENANT.account(packed_tenant), ORGANIZATION.account(packed_organization)
local packed_user = with_user and user_state(raw[5], packed_tenant, now)
local activation = (one_time or uses) and activation_of(raw[with_user and 6 or 5])

local expires, key_id = KEY.read(packed_key)
if has(KEY.field(packed_key, 'flags'), REVOKED) or (expires > 0 and now >= expires) then return refused(VERDICT_REVOKED, now, SCOPE_KEY) end
local reset = due(tenant, now, epoch)
if has(tenant.flags, MANUAL_BLOCK) then return refused(VERDICT_TENANT_BLOCKED, now, SCOPE_TENANT) end
if plan_id >= 0 and plan_id ~= tenant.plan_id then return refused(VERDICT_OTHER_PLAN, now, SCOPE_TENANT, KIND_QUOTA, 0, tenant.plan_id) end
local raised_hold, had, unlike = raised(has(flags, FLAG_RAISES) and hold_key, service_id)
if unlike then return redis.error_reply('ERR reserve raises a hold of its own service, or of none') end
local heads, takes, requests_scope, requests_limit, requests_used, tokens_scope, tokens_limit, tokens_used =
  take_all({packed_key, packed_user, packed_tenant, packed_organization}, now, need, had)
local lacking, lacks = not heads and takes, requests_scope -- what stands in their place then
if lacking and lacks ~= KIND_TOKENS then return lacking end
if has(flags, FLAG_SUBSCRIPTION) and not has(tenant.flags, HAS_PLAN) then return refused(VERDICT_NOT_INCLUDED, now, SCOPE_ORGANIZATION) end
if lacking then return lacking end
if raised_hold then put_back(raised_hold, tenant, organization) end
local tokens, short, bounds = quota_hold(tenant, now, counts, weighed < 0 and need or weighed, ceiling, least)
if short then return short end
if one_time then credits, flags = join(activation, credits, flags, raised_hold) end
if credits > 0 then credits, short = credit_hold(organization, now, credits, credits_least) end
-- what units hold is kept with their service
if uses and not short then credits, short = 0, spend_hold(organization, activation, raised_hold, tiers, units, now) end
if short then return short end

tenant.held, organization.credits_held = tenant.held + tokens, organization.credits_held + credits
-- the same bits, but for the one that says reclaimed, and that of a user nothing is kept of
local kept = flags % FLAG_RAISES - (has(flags, FLAG_SUBSCRIPTION) and FLAG_SUBSCRIPTION or 0) - (with_user and not packed_user and 1 or 0)
local hold = HOLD.pack{flags = kept, tokens = tokens, key_tpm = takes[1], user_tpm = takes[2], tenant_tpm = takes[3],
  organization_tpm = takes[4], credits = credits, service_id = service_id, deadline = now + ttl, key_id = key_id, units = units,
  organization_id = organization.organization_id, tenant_id = tenant.tenant_id, created = now, weighed = min(weighed, 0)} .. user_id .. (uses and '\0' .. tiers or '')
call('ZADD', deadlines, now + ttl, request_id)
local err = reset and append(outbox, {reset})
if err then
  if raised_hold then call('ZADD', deadlines, raised_hold.deadline, request_id) else call('ZREM', deadlines, request_id) end
  return err
end
local new_tenant = reset and TENANT.renewed(packed_tenant, heads[3], 'ledger_at', tenant)
  or TENANT.renewed(packed_tenant, heads[3], 'held', tenant)
local new_organization = (uses and ORGANIZATION.renewed(packed_organization, heads[4], 'spend_held', organization))
  or ((credits > 0 or raised_hold) and ORGANIZATION.renewed(packed_organization, heads[4], 'credits_held', organization))
  or heads[4] .. ACCOUNT.behind(packed_organization)
call('MSET', tenant_key, new_tenant, organization_key, new_organization, api_key, heads[1] .. ACCOUNT.behind(packed_key), hold_key, hold,
  some(user_key, keep_user(user_key, packed_user and heads[2]), activation_key, activation and ACTIVATION.written(activation)))
return admitted(now, tokens, tenant, organization, credits, bounds,
  requests_scope, requests_limit, requests_used, tokens_scope, tokens_limit, tokens_used)

-- reserve: take a hold on every limit of one request, or on none.
-- A call known by its head alone holds a request and slots; once its body is read the hold is raised: what it took
-- already is not taken again. A hold that is gone is taken anew; a raise that is refused leaves the hold as it was.
-- needs: state batch bucket event cycle take take_all admit spend append
-- KEYS[1] h hold, written here  KEYS[2] d deadlines (ZSET)  KEYS[3] x outbox (due reset)
-- KEYS[4] m marker  KEYS[5] t tenant  KEYS[6] o organization  KEYS[7] k API key
-- KEYS[8] u user, where flags has USER  KEYS[8 or 9] a activation and month, where flags has ONE_TIME or 16
-- ARGV[1] packed: batch (lib/batch.lua), run id (40), catalogue version, need, ceiling (the most), least and credits' least
--         (what they may be cut to; 0 where the call states its maximum), credits, units, ttl ms, service,
--         flags (1 user, 2 One-Time, 4 counts tokens, 8 Subscription meter,
--         16 usage, 32 credits, 64 credits by token, 128 raises the hold there is), request id (36)
-- ARGV[2] the caller's own user id, up to 128 characters  ARGV[3] the service's tiers, where flags has 16
-- Returns packed: verdict, now, then
--   admitted (1; 2 where a strict plan makes the hold the call's limit): tokens held, the cycle's total,
--     tokens free (both -1: unlimited), next reset, credits free, requests {scope, limit, used, reset}, tokens {scope, limit, used, reset} (scope 0: none), credits held
--   refused: scope, kind, used, limit, until (0: unknown)
--   0 unverified, -1 stale catalogue, -2 unknown account: nothing more
-- Example: 10 a minute, 10 taken a second ago -> {-6, now, 3, 1, 10, 10, now + 5000}
if #KEYS < 7 or #ARGV < 2 then return redis.error_reply('ERR reserve takes 7 to 9 keys and 2 or 3 arguments') end
local batch, run_id, catalogue, need, ceiling, least, credits_least, credits, units, ttl, service_id, flags, request_id =
  RESERVE.read(ARGV[1])
local raises = flags >= FLAG_RAISES
if raises then flags = flags - FLAG_RAISES end
local with_user, one_time, counts, uses = has(flags, FLAG_USER), has(flags, FLAG_ONE_TIME), has(flags, FLAG_COUNTS), has(flags, FLAG_USES)
if #KEYS ~= 7 + (with_user and 1 or 0) + ((one_time or uses) and 1 or 0) or #ARGV ~= (uses and 3 or 2) then
  return redis.error_reply('ERR reserve takes a key and an argument for each flag')
end
local raw = stored(KEYS, 4, reserved_sizes)
local epoch, version = verified(raw[1], run_id)
if not epoch then return CODE.pack{code = VERDICT_UNVERIFIED} end
if catalogue < version then return CODE.pack{code = VERDICT_STALE} end
if not (raw[2] and raw[3] and raw[4]) then return CODE.pack{code = VERDICT_UNKNOWN_ACCOUNT} end
local now, t, o = clock(batch), TENANT.account(raw[2]), ORGANIZATION.account(raw[3])
local u = with_user and user_state(raw[5], raw[2], now)

local expires, key_id = KEY.read(raw[4])
if has(KEY.field(raw[4], 'flags'), REVOKED) or (expires > 0 and now >= expires) then return refused(VERDICT_REVOKED, now, SCOPE_KEY, 0, 0, 0, 0) end
local reset = due(t, now, epoch)
if has(t[FLAGS], MANUAL_BLOCK) then return refused(VERDICT_TENANT_BLOCKED, now, SCOPE_TENANT, 0, 0, 0, 0) end
local was = raises and raised(KEYS[1]) or nil
local other = was and was[H_SERVICE_ID] ~= 0 and was[H_SERVICE_ID] ~= service_id
if other then return redis.error_reply('ERR reserve raises a hold of its own service, or of none') end
local heads, takes, scope, rate, used, scope2, rate2, used2 = take_all({raw[4], u, raw[2], raw[3]}, now, need, was)
if not heads and scope ~= KIND_TOKENS then return takes end
if has(flags, FLAG_SUBSCRIPTION) and not has(t[FLAGS], HAS_PLAN) then return refused(VERDICT_NOT_INCLUDED, now, SCOPE_ORGANIZATION, 0, 0, 0, 0) end
if not heads then return takes end
if was then put_back(was, t, o) end
local tokens, verdict, bounds = quota_hold(t, counts, need, ceiling, least)
if verdict then return refused(verdict, now, SCOPE_TENANT, KIND_QUOTA, t[T_USED], t[T_TOTAL], t[T_NEXT_RESET]) end
local a = (one_time or uses) and activation(raw[with_user and 6 or 5])
if one_time then credits, flags = join(a, credits, flags, was) end
if credits > 0 then
  credits, verdict = credit_hold(o, credits, credits_least)
  if verdict then return refused(verdict, now, SCOPE_ORGANIZATION, KIND_CREDITS, o[O_CREDITS_HELD], o[O_BALANCE] + o[O_CREDIT_LIMIT], 0) end
end
if uses then
  credits = 0 -- what units hold is kept with their service
  spend_back(a, was)
  local over, spent, till = spend_hold(o, a, ARGV[3], units, now)
  if over then return refused(over, now, SCOPE_ORGANIZATION, KIND_SPEND, spent, o[O_CAP], till) end
end

t[T_HELD], o[O_CREDITS_HELD] = t[T_HELD] + tokens, o[O_CREDITS_HELD] + credits
-- the same bits, but for the one that says reclaimed, and that of a user nothing is kept of
local kept = flags - (has(flags, FLAG_SUBSCRIPTION) and FLAG_SUBSCRIPTION or 0) - (with_user and not u and 1 or 0)
local hold = HOLD.pack{flags = kept, tokens = tokens, key_tpm = takes[1], user_tpm = takes[2], tenant_tpm = takes[3],
  organization_tpm = takes[4], credits = credits, service_id = service_id, deadline = now + ttl, key_id = key_id, units = units,
  organization_id = o[O_ORGANIZATION_ID], tenant_id = t[T_TENANT_ID], created = now} .. ARGV[2] .. (uses and '\0' .. ARGV[3] or '')
call('ZADD', KEYS[2], now + ttl, request_id)
local err = reset and append(KEYS[3], {reset})
if err then
  if was then call('ZADD', KEYS[2], was[H_DEADLINE], request_id) else call('ZREM', KEYS[2], request_id) end
  return err
end
local tenant = reset and TENANT.renewed(raw[2], heads[3], 'ledger_at', t) or TENANT.renewed(raw[2], heads[3], 'held', t)
local organization = (uses and ORGANIZATION.renewed(raw[3], heads[4], 'spend_held', o))
  or ((credits > 0 or was) and ORGANIZATION.renewed(raw[3], heads[4], 'credits_held', o)) or heads[4] .. ACCOUNT.behind(raw[3])
call('MSET', KEYS[5], tenant, KEYS[6], organization, KEYS[7], heads[1] .. ACCOUNT.behind(raw[4]), KEYS[1], hold,
  some(KEYS[8], keep_user(KEYS[8], u and heads[2]), KEYS[with_user and 9 or 8], a and ACTIVATION.written(a)))
return admitted(now, tokens, t, o, credits, scope, rate, used, scope2, rate2, used2, bounds)

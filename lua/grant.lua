-- grant: apply one control write to an account, once by its id.
-- needs: state window batch entry event calendar cycle wide definition rings carries wide_windows windows account budgeted held paid kept append grant reset
-- allows: oom
-- KEYS[1] m  KEYS[2] g ids of control writes not yet in PostgreSQL (HASH)  KEYS[3] x outbox
-- KEYS[4] t tenant  KEYS[5] o organization  KEYS[6 on] up to 256 b accounts of a budget, for verb 9; each account of one owner
--   is followed by its index (ZSET)
-- ARGV[1] packed: run id (40), verb, amount (adjust and credits: signed; block: the number of its cause; plan: the time in ms since which it is in force, by the
--   clock of the process that set it: a cycle that was over by then ends first, if that clock is at most a minute ahead), id (36)
--   verbs: 1 recharge, 2 reset, 3 adjust, 4 block, 5 unblock, 6 plan, 7 credits, 8 sweep (only a due reset),
--   9 budget: reset its window (amount: its id), or take a part of it away; with an empty id more accounts follow in other calls
-- ARGV[2] metadata (JSON object or empty)
-- ARGV[3] the plan's terms, for verb 6, packed: plan id (0 none), the tenant's anchor, and each term of the plan; for verb 9 nothing, or
--   for each account the start of its window and the money to be taken from that, at most what it has used (below 0: added)
-- Returns packed: 1 applied or 2 applied before, now, seq, remaining (-1 unlimited), balance, epoch,
--     how far the tenant's seq moved, the credits' seq (0: not moved)
--   | 0 unverified | -2 unknown account | -3 out of range: the account would pass 2^53 - 1
-- Example: recharge 50 on remaining -20 -> remaining 30, one outbox entry whose source is the id
if #KEYS < 5 or #ARGV ~= 3 then return redis.error_reply('ERR grant takes 5 keys and 3 arguments') end
local run_id, verb, amount, id = GRANT.read(ARGV[1])
if #KEYS > 5 and verb ~= VERB_BUDGET then return redis.error_reply('ERR grant takes 5 keys and 3 arguments') end
local raw = stored({KEYS[1], KEYS[4], KEYS[5], values(KEYS, 6)}, 1)
local epoch = verified(raw[1], run_id)
if not epoch then return CODE.pack{code = 0} end
if not raw[3] or (not raw[2] and verb ~= VERB_CREDITS and verb ~= VERB_BUDGET) then return CODE.pack{code = -2} end
local now = clock(NO_BATCH)
local tenant, organization = raw[2] and TENANT.opened(raw[2]), ORGANIZATION.opened(raw[3])
local seq, credit_seq = tenant and tenant.seq or 0, organization.credit_seq
local function answer(code)
  local remaining = (not tenant or tenant.total < 0) and -1 or remaining_of(tenant)
  return GRANTED.pack{
    code = code, now = now, seq = tenant and tenant.seq or organization.credit_seq, remaining = remaining,
    balance = 0 - organization.credits_used, epoch = epoch, moved = tenant and tenant.seq - seq or 0,
    credit_seq = organization.credit_seq > credit_seq and organization.credit_seq or 0,
  }
end
local once = verb ~= VERB_SWEEP and id ~= NO_ID
if once and call('HEXISTS', KEYS[2], id) == 1 then return answer(2) end

local at = (verb == VERB_PLAN and amount <= now + PLAN_AHEAD_MS_MAX) and max(now, amount) or now
local events, before = {tenant and due(tenant, at, epoch) or nil}, tenant and remaining_of(tenant) or 0
local facts = {source = id, metadata = ARGV[2]}
local accounts
if verb == VERB_BUDGET then
  accounts = reset_windows(events, KEYS, raw, 6, 2, amount, now, epoch, organization.organization_id, once and id or '', ARGV[2], ARGV[3])
elseif verb == VERB_CREDITS then events[#events + 1] = credit(organization, now, epoch, amount, facts)
elseif verb ~= VERB_SWEEP then events[#events + 1] = tenant_grant(tenant, at, epoch, verb, amount, ARGV[3], facts) end
if #events == 0 then return answer(2) end
if out_of_range(tenant, before, organization) then return CODE.pack{code = -3} end

local err = append(KEYS[3], events)
if err then return err end
if once then call('HSET', KEYS[2], id, '1') end
local writes = {KEYS[5], ORGANIZATION.written(organization)}
if tenant then writes[3], writes[4] = KEYS[4], TENANT.written(tenant) end
call('MSET', values(all_as_written(writes, 1, #writes)))
for _, account in ipairs(accounts or {}) do write_budget(account, nil, now) end
return answer(1)

-- grant: one control write on an account, once by its id.
-- needs: state batch event cycle append grant
-- allows: oom
-- KEYS[1] m  KEYS[2] g ids of control writes not yet in PostgreSQL (HASH)  KEYS[3] x outbox
-- KEYS[4] t tenant  KEYS[5] o organization
-- ARGV[1] packed: run id (40), verb, amount (adjust and credits: signed), id (36)
--   verbs: 1 recharge, 2 reset, 3 adjust, 4 block, 5 unblock, 6 plan, 7 credits, 8 sweep (a due reset only)
-- ARGV[2] metadata (JSON object or empty)
-- ARGV[3] the plan's terms, for verb 6, packed: plan id (0 none), the tenant's anchor, and each term of the plan
-- Returns packed: 1 applied or 2 applied before, now, seq, remaining (-1 unlimited), balance, epoch,
--     how far the tenant's seq moved, the credits' seq (0: not moved)
--   | 0 unverified | -2 unknown account | -3 out of range: the account would pass 2^53 - 1
-- Example: recharge 50 on remaining -20 -> remaining 30, one outbox entry whose source is the id
if #KEYS ~= 5 or #ARGV ~= 3 then return redis.error_reply('ERR grant takes 5 keys and 3 arguments') end
local run_id, verb, amount, id = GRANT.read(ARGV[1])
local raw = stored({KEYS[1], KEYS[4], KEYS[5]}, 1, any_size)
local epoch = verified(raw[1], run_id)
if not epoch then return CODE.pack{code = 0} end
if not raw[3] or (not raw[2] and verb ~= VERB_CREDITS) then return CODE.pack{code = -2} end
local now = clock(NO_BATCH)
local tenant, organization = raw[2] and TENANT.opened(raw[2]), ORGANIZATION.opened(raw[3])
local seq, credit_seq = tenant and tenant.seq or 0, organization.credit_seq
local function answer(code)
  local remaining = (not tenant or tenant.total < 0) and -1 or tenant.remaining
  return GRANTED.pack{
    code = code, now = now, seq = tenant and tenant.seq or organization.credit_seq, remaining = remaining,
    balance = organization.balance, epoch = epoch, moved = tenant and tenant.seq - seq or 0,
    credit_seq = organization.credit_seq > credit_seq and organization.credit_seq or 0,
  }
end
if verb ~= VERB_SWEEP and call('HEXISTS', KEYS[2], id) == 1 then return answer(2) end

local events, before = {tenant and due(tenant, now, epoch) or nil}, tenant and tenant.remaining or 0
local facts = {source = id, metadata = ARGV[2]}
if verb == VERB_CREDITS then events[#events + 1] = credit(organization, now, epoch, amount, facts)
elseif verb ~= VERB_SWEEP then events[#events + 1] = tenant_grant(tenant, now, epoch, verb, amount, ARGV[3], facts) end
if #events == 0 then return answer(2) end
if out_of_range(tenant, before, organization) then return CODE.pack{code = -3} end

local err = append(KEYS[3], events)
if err then return err end
if verb ~= VERB_SWEEP then call('HSET', KEYS[2], id, '1') end
local writes = {KEYS[5], ORGANIZATION.written(organization)}
if tenant then writes[3], writes[4] = KEYS[4], TENANT.written(tenant) end
call('MSET', values(writes))
return answer(1)

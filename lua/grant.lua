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
if not raw[3] or (not raw[2] and verb ~= CREDITS_VERB) then return CODE.pack{code = -2} end
local now = clock(NO_BATCH)
local t, o = raw[2] and TENANT.opened(raw[2]), ORGANIZATION.opened(raw[3])
local seq, credit_seq = t and t[T_SEQ] or 0, o[O_CREDIT_SEQ]
local function answer(code)
  local remaining = (not t or t[T_TOTAL] < 0) and -1 or t[T_REMAINING]
  return GRANTED.pack{
    code = code, now = now, seq = t and t[T_SEQ] or o[O_CREDIT_SEQ], remaining = remaining, balance = o[O_BALANCE],
    epoch = epoch, moved = t and t[T_SEQ] - seq or 0, credit_seq = o[O_CREDIT_SEQ] > credit_seq and o[O_CREDIT_SEQ] or 0,
  }
end
if verb ~= SWEEP and call('HEXISTS', KEYS[2], id) == 1 then return answer(2) end

local events, before = {t and due(t, now, epoch) or nil}, t and t[T_REMAINING] or 0
local f = {source = id, metadata = ARGV[2]}
if verb == CREDITS_VERB then events[#events + 1] = credit(o, now, epoch, amount, f)
elseif verb ~= SWEEP then events[#events + 1] = tenant_grant(t, now, epoch, verb, amount, ARGV[3], f) end
if #events == 0 then return answer(2) end
if out_of_range(t, before, o) then return CODE.pack{code = -3} end

local err = append(KEYS[3], events)
if err then return err end
if verb ~= SWEEP then call('HSET', KEYS[2], id, '1') end
local writes = {KEYS[5], ORGANIZATION.written(o)}
if t then writes[3], writes[4] = KEYS[4], TENANT.written(t) end
call('MSET', values(writes))
return answer(1)

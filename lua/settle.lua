-- settle: replace a hold by what was really used, once; or make good what a reclaim charged.
-- needs: state batch bucket event cycle admit spend append settlement charge
-- allows: oom
-- KEYS[1] d  KEYS[2] x outbox  KEYS[3] late lane  KEYS[4] g control ids
-- KEYS[5] m  KEYS[6] h hold (deleted; a tombstone after a reclaim)  KEYS[7] t  KEYS[8] o  KEYS[9] k
-- KEYS[10] u, where flags has USER  KEYS[10 or 11] a, where flags has ONE_TIME or 16
-- ARGV[1] packed: batch (lib/batch.lua), run id (40), mode (1 charge, 2 release, 3 reclaim, 4 post: no hold needed,
--         5 recover: was acknowledged before, by a Redis that may have forgotten it,
--         6 correct: no hold needed, amounts are what was used less what a reclaim charged),
--         tokens, credits, units, service, tenant, organization, key,
--         flags (1 user, 2 One-Time, 4 counts tokens, 16 usage, 32 credits), tombstone ttl ms, request id (36)
-- ARGV[2] user  ARGV[3] attribution  ARGV[4] metadata (JSON object)  ARGV[5] tiers, where flags has 16
-- ARGV[last] with mode recover, doubles: epoch, seq, how far it moved, credit seq, spend seq (0: not moved) of its answer
--   with post and correct: the late lane's entry. It is the token: deleted with the charge
-- Returns packed: 1 done, now, seq, remaining (-1 unlimited), credits charged, epoch, how far seq moved, credit seq,
--     spend seq (0: not moved)
--   | 0 unverified | -1 reclaimed before or -2 unknown, now, epoch
--   -2 too where the hold of a call known by its head alone (service 0) is to be given back and was raised meanwhile.
--   -1 and -2 append the call to the late lane, where the keeper looks it up; recover always does.
--   1 too where the late lane's entry is gone, or its request was dealt with and is not in PostgreSQL yet
-- Example: remaining 100, hold 50, charge 70 -> used + 70, remaining 30, held - 50, one outbox entry
if #KEYS < 9 or #ARGV < 4 then return redis.error_reply('ERR settle takes 9 to 11 keys and 4 to 6 arguments') end
local s, batch, run_id, with_user, kept, arguments = settlement_of(ARGV)
if #KEYS ~= 9 + (with_user and 1 or 0) + ((s[S_ONE_TIME] or s[S_USES]) and 1 or 0) or #ARGV ~= arguments then
  return redis.error_reply('ERR settle takes a key and an argument for each flag')
end
local raw = stored(KEYS, 5, settled_sizes)
local epoch = verified(raw[1], run_id)
if not epoch then return CODE.pack{code = SETTLED_UNVERIFIED} end
local now = clock(batch)
local taken = s[S_ENTRY] and dealt_with(KEYS[3], s[S_ENTRY], KEYS[4], s[S_SOURCE])
if taken then return SETTLED.pack{code = SETTLED_DONE, now = now, epoch = epoch} end
local h = raw[2] and HOLD.opened(raw[2], 'credits')
local gone = (not h and not s[S_ENTRY] and SETTLED_UNKNOWN) or (h and has(h[H_FLAGS], HOLD_RECLAIMED) and not s[S_ENTRY] and SETTLED_RECLAIMED)
  or (not (raw[3] and raw[4]) and SETTLED_UNKNOWN) or (h and s[S_SERVICE] == 0 and HOLD.field(raw[2], 'service_id') ~= 0 and SETTLED_UNKNOWN)
if gone then
  if s[S_MODE] == CHARGE or s[S_MODE] == RECOVER then late(KEYS[3], s, gone == SETTLED_RECLAIMED and HOLD.field(raw[2], 'charged') or 0) end
  return GONE.pack{code = gone, now = now, epoch = epoch}
end
local slots = (h and not has(h[H_FLAGS], HOLD_RECLAIMED)) and 1 or 0
if slots == 0 then h = HOLD.fresh('credits') end
local t, o = TENANT.account(raw[3]), ORGANIZATION.account(raw[4])
local u = with_user and has(h[H_FLAGS], HOLD_USER) and raw[6]
local a_key = KEYS[with_user and 11 or 10]
local a = (s[S_ONE_TIME] or s[S_USES]) and activation(raw[with_user and 7 or 6])

local seq, reset = t[T_SEQ], due(t, now, epoch)
t[T_HELD] = t[T_HELD] - h[H_TOKENS]
if t[T_HELD] < 0 then t[T_HELD] = 0 end
local account_held = s[S_USES] and O_SPEND_HELD or O_CREDITS_HELD
if not s[S_ONE_TIME] then o[account_held] = max(0, o[account_held] - h[H_CREDITS]) end
local activates = s[S_ONE_TIME] and s[S_MODE] ~= CORRECT and leave(a, o, s, has(h[H_FLAGS], HOLD_ONE_TIME) and slots or 0)
local entry, f
if s[S_USES] then spend_back(a, h, raw[2]) end
if not s[S_FREE] then entry, f = charge(s, t, o, a, now, epoch, activates) end
if s[S_USES] then spend_keep(o, a, s[S_TIERS], now) end

local tombstone = s[S_MODE] == RECLAIM and slots == 1 and HOLD.replaced(raw[2], {flags = h[H_FLAGS] + HOLD_RECLAIMED, charged = s[S_TOKENS]})
local used, tenant = s[S_TOKENS], TENANT.renewed(raw[3], give(raw[3], now, slots, h[H_TENANT_TPM], s[S_TOKENS]), 'ledger_at', t)
local head = give(raw[4], now, slots, h[H_ORGANIZATION_TPM], used)
-- how far the organization's account is written: its spend, its credits, or neither
local organization = (s[S_USES] and ORGANIZATION.renewed(raw[4], head, 'spend_at', o))
  or ((s[S_PAYS] or s[S_ONE_TIME] or h[H_CREDITS] > 0) and ORGANIZATION.renewed(raw[4], head, 'credit_at', o))
  or head .. ACCOUNT.behind(raw[4])
local key = raw[5] and give(raw[5], now, slots, h[H_KEY_TPM], used) .. ACCOUNT.behind(raw[5])
u = u and give(u, now, slots, h[H_USER_TPM], used)
a = a and ACTIVATION.written(a)

local told, removed = s[S_MODE] == RECOVER and late(KEYS[3], s, 0), call('ZREM', KEYS[1], s[S_REQUEST])
local err = append(KEYS[2], reset and {reset, entry} or {entry}) -- a call taken back for nothing has no entry
if err then
  if told then call('XDEL', KEYS[3], told) end
  if removed == 1 then call('ZADD', KEYS[1], slots == 1 and HOLD.field(raw[2], 'deadline') or 0, s[S_REQUEST]) end
  return err
end
if s[S_ENTRY] then call('HSET', KEYS[4], s[S_SOURCE], '1') call('XDEL', KEYS[3], s[S_ENTRY]) end
if tombstone then
  call('SET', KEYS[6], tombstone, 'PX', kept)
else
  call('DEL', KEYS[6])
end
call('MSET', KEYS[7], tenant, KEYS[8], organization, some(KEYS[9], key, KEYS[10], keep_user(KEYS[10], u), a_key, a))
return SETTLED.pack{code = SETTLED_DONE, now = now, seq = t[T_SEQ], remaining = t[T_TOTAL] < 0 and -1 or t[T_REMAINING], epoch = epoch,
  moved = t[T_SEQ] - seq, credits = f and f.credits or 0, credit_seq = f and f.credit_seq or 0, spend_seq = f and f.spend_seq or 0}

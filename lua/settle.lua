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
local raw = call('MGET', values(KEYS, 5))
local epoch = verified(raw[1], run_id)
if not epoch then return pack('<d', 0) end
local now = clock(batch)
local taken = s[S_ENTRY] and dealt_with(KEYS[3], s[S_ENTRY], KEYS[4], s[S_SOURCE])
if taken then return pack('<ddddddddd', 1, now, 0, 0, 0, epoch, 0, 0, 0) end
local h = raw[2] and {parse(HOLD_TAKEN_FORM, raw[2])}
local gone = (not h and not s[S_ENTRY] and -2) or (h and has(h[1], HOLD_RECLAIMED) and not s[S_ENTRY] and -1)
  or (not (raw[3] and raw[4]) and -2) or (h and s[S_SERVICE] == 0 and field(raw[2], H_SERVICE) ~= 0 and -2)
if gone then
  if s[S_MODE] == CHARGE or s[S_MODE] == RECOVER then late(KEYS[3], s, gone == -1 and field(raw[2], H_CHARGED) or 0) end
  return pack('<ddd', gone, now, epoch)
end
local slots = (h and not has(h[1], HOLD_RECLAIMED)) and 1 or 0
if slots == 0 then h = {0, 0, 0, 0, 0, 0, 0} end
local t, o = account(TENANT_ACCOUNT_FORM, raw[3]), account(ORG_ACCOUNT_FORM, raw[4])
local u = with_user and has(h[1], HOLD_USER) and raw[6]
local a_key = KEYS[with_user and 11 or 10]
local a = (s[S_ONE_TIME] or s[S_USES]) and activation(raw[with_user and 7 or 6])

local seq, reset = t[SEQ], due(t, now, epoch)
t[HELD] = t[HELD] - h[H_TOKENS]
if t[HELD] < 0 then t[HELD] = 0 end
local account_held = s[S_USES] and SPEND_HELD or CHELD
if not s[S_ONE_TIME] then o[account_held] = max(0, o[account_held] - h[H_CREDITS]) end
local activates = s[S_ONE_TIME] and s[S_MODE] ~= CORRECT and leave(a, o, s, has(h[1], HOLD_ONE_TIME) and slots or 0)
-- how far the organization's account is written: its spend, its credits, or neither
local moved = (s[S_USES] and TO_SPEND_AT) or ((s[S_PAYS] or s[S_ONE_TIME] or h[H_CREDITS] > 0) and TO_CREDIT_AT)
local entry, f
if s[S_USES] then spend_back(a, h, raw[2]) end
if not s[S_FREE] then entry, f = charge(s, t, o, a, now, epoch, activates) end
if s[S_USES] then spend_keep(o, a, s[S_TIERS], now) end

local tombstone = s[S_MODE] == RECLAIM and slots == 1 and reclaimed(raw[2], h[1], s[S_TOKENS])
local used = s[S_TOKENS]
local tenant = renewed(raw[3], give(raw[3], now, slots, h[H_TENANT_TPM], used), TO_LEDGER_AT, t)
local organization = renewed(raw[4], give(raw[4], now, slots, h[H_ORG_TPM], used), moved, o)
local key = raw[5] and renewed(raw[5], give(raw[5], now, slots, h[H_KEY_TPM], used))
u = u and give(u, now, slots, h[H_USER_TPM], used)
a = a and pack(ACTIVATION_FORM, values(a, 1, ACTIVATION_SIZE))

local told = s[S_MODE] == RECOVER and late(KEYS[3], s, 0)
local removed = call('ZREM', KEYS[1], s[S_REQUEST])
local err = append(KEYS[2], reset and {reset, entry} or {entry}) -- a call taken back for nothing has no entry
if err then
  if told then call('XDEL', KEYS[3], told) end
  if removed == 1 then call('ZADD', KEYS[1], slots == 1 and field(raw[2], H_DEADLINE) or 0, s[S_REQUEST]) end
  return err
end
if s[S_ENTRY] then call('HSET', KEYS[4], s[S_SOURCE], '1') call('XDEL', KEYS[3], s[S_ENTRY]) end
if tombstone then
  call('SET', KEYS[6], tombstone, 'PX', kept)
else
  call('DEL', KEYS[6])
end
call('MSET', KEYS[7], tenant, KEYS[8], organization, some(KEYS[9], key, KEYS[10], keep_user(KEYS[10], u), a_key, a))
return pack('<ddddddddd', 1, now, t[SEQ], t[TOTAL] < 0 and -1 or t[REMAINING], f and f.credits or 0, epoch,
  t[SEQ] - seq, f and f.credit_seq or 0, f and f.spend_seq or 0)

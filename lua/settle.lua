-- settle: replace a hold by what was really used, once; or make good what a reclaim charged.
-- needs: state batch bucket event cycle take admit tiers spend append settlement charge
-- allows: oom
-- KEYS[1] d  KEYS[2] x outbox  KEYS[3] late queue  KEYS[4] g control ids
-- KEYS[5] m  KEYS[6] h hold (deleted; a tombstone after a reclaim)  KEYS[7] t  KEYS[8] o  KEYS[9] k
-- KEYS[10] u, where flags has USER  KEYS[10 or 11] a, where flags has ONE_TIME or 16
-- ARGV[1] packed: batch (lib/batch.lua), run id (40), mode (1 charge, 2 release, 3 reclaim, 4 post: no hold needed,
--         5 recover: was acknowledged before, by a Redis that may have forgotten it,
--         6 correct: no hold needed, amounts are what was used less what a reclaim charged),
--         tokens, how many of the quota they count, credits, units, over (by how much credits are more than the call costs, in
--         nano-credits: it is carried to the organization's next call), service, tenant, organization, key,
--         flags (1 user, 2 One-Time, 4 counts tokens, 16 usage, 32 credits), tombstone ttl ms, request id (36)
-- ARGV[2] user  ARGV[3] attribution  ARGV[4] metadata (JSON object)  ARGV[5] tiers, where flags has 16
-- ARGV[last] with mode recover, doubles: epoch, seq, how far it moved, credit seq, spend seq (0: not moved) of its answer
--   with post and correct: the late queue's entry. It is the token: deleted with the charge
-- Returns packed: 1 done, now, seq, remaining (-1 unlimited), credits charged, epoch, how far seq moved, credit seq,
--     spend seq (0: not moved)
--   | 0 unverified | -1 reclaimed before or -2 unknown, now, epoch
--   -2 too where a hold of a call's head (service 0) is to be given back and was topped up meanwhile.
--   -1 and -2 append the call to the late queue, where the keeper looks it up; recover always does.
--   1 too where the late queue's entry is gone, or its request was dealt with and is not in PostgreSQL yet
-- Example: remaining 100, hold 50, charge 70 which count 70 -> used + 70, remaining 30, held - 50, one outbox entry
if #KEYS < 9 or #ARGV < 4 then return redis.error_reply('ERR settle takes 9 to 11 keys and 4 to 6 arguments') end
local settlement = SETTLEMENT.opened(ARGV[1])
local mode, flags, service_id, request_id = settlement.mode, settlement.flags, settlement.service_id, settlement.request_id
local with_user, one_time, uses = has(flags, FLAG_USER), has(flags, FLAG_ONE_TIME), has(flags, FLAG_USES)
if #KEYS ~= 9 + (with_user and 1 or 0) + ((one_time or uses) and 1 or 0) or #ARGV ~= (uses and 5 or 4) + (mode >= MODE_POST and 1 or 0) then
  return redis.error_reply('ERR settle takes a key and an argument for each flag')
end
local deadlines, outbox, lane, control, _, hold_key, tenant_key, organization_key, api_key, user_key = values(KEYS)
local activation_key = KEYS[with_user and 11 or 10]
local raw = stored(KEYS, 5, settled_sizes)
local packed_hold, packed_tenant, packed_organization, packed_key = raw[2], raw[3], raw[4], raw[5]
local epoch = verified(raw[1], settlement.run_id)
if not epoch then return CODE.pack{code = SETTLED_UNVERIFIED} end
local now = clock(settlement.batch)
local entry_id = mode >= MODE_POST and mode ~= MODE_RECOVER and ARGV[#ARGV]
local source = mode == MODE_CORRECT and correction_of(request_id) or request_id
if entry_id and dealt_with(lane, entry_id, control, source) then return SETTLED.pack{code = SETTLED_DONE, now = now, epoch = epoch} end
local hold = packed_hold and HOLD.opened(packed_hold, 'credits')
local reclaimed = hold and has(hold.flags, HOLD_RECLAIMED)
local gone = why_gone(entry_id, packed_hold, reclaimed, packed_tenant and packed_organization, service_id)
if gone then
  if mode == MODE_CHARGE or mode == MODE_RECOVER then late(lane, settlement, ARGV, reclaimed and packed_hold) end
  return GONE.pack{code = gone, now = now, epoch = epoch}
end
local slots = (hold and not reclaimed) and 1 or 0
if slots == 0 then hold = HOLD.fresh('credits') end
local tenant, organization = TENANT.account(packed_tenant), ORGANIZATION.account(packed_organization)
local packed_user = with_user and has(hold.flags, HOLD_USER) and raw[6]
local activation = (one_time or uses) and activation_of(raw[with_user and 7 or 6])

local seq, reset, tokens = tenant.seq, due(tenant, now, epoch), settlement.tokens
put_back(hold, tenant, organization)
-- a call that is given back for nothing moves no account
local free = mode == MODE_RELEASE or (mode == MODE_RECLAIM and tokens == 0 and settlement.weighed == 0 and settlement.credits == 0 and settlement.units == 0)
local waited = has(hold.flags, HOLD_ONE_TIME) and slots or 0
local activates = one_time and mode ~= MODE_CORRECT and leave(activation, organization, settlement, free, waited)
if uses then spend_back(activation, hold, packed_hold) end
local entry, facts = unmoved(settlement, ARGV, tenant, organization, now, epoch, free), no_facts
if not free then entry, facts = charge(settlement, ARGV, source, tenant, organization, activation, now, epoch, activates) end
if uses then spend_keep(organization, activation, ARGV[5], now) end

local tombstone = mode == MODE_RECLAIM and slots == 1 and HOLD.replaced(packed_hold, {flags = hold.flags + HOLD_RECLAIMED, charged = settlement.weighed})
local new_tenant = TENANT.renewed(packed_tenant, give(packed_tenant, now, slots, hold.tenant_tpm, tokens), 'ledger_at', tenant)
local head = give(packed_organization, now, slots, hold.organization_tpm, tokens)
-- how far the organization's account is written: its spend, its credits, or neither
local new_organization = (uses and ORGANIZATION.renewed(packed_organization, head, 'spend_at', organization))
  or ((one_time or has(flags, FLAG_PAYS) or hold.credits > 0) and ORGANIZATION.renewed(packed_organization, head, 'credit_at', organization))
  or head .. ACCOUNT.behind(packed_organization)
local new_key = packed_key and give(packed_key, now, slots, hold.key_tpm, tokens) .. ACCOUNT.behind(packed_key)
local new_user = packed_user and give(packed_user, now, slots, hold.user_tpm, tokens)

local told, removed = mode == MODE_RECOVER and late(lane, settlement, ARGV), call('ZREM', deadlines, request_id)
local err = append(outbox, reset and {reset, entry} or {entry}) -- what says nothing of itself has no entry
if err then
  if told then call('XDEL', lane, told) end
  if removed == 1 then call('ZADD', deadlines, slots == 1 and HOLD.field(packed_hold, 'deadline') or 0, request_id) end
  return err
end
if entry_id then call('HSET', control, source, '1') call('XDEL', lane, entry_id) end
if tombstone then call('SET', hold_key, tombstone, 'PX', settlement.tombstone) else call('DEL', hold_key) end
call('MSET', tenant_key, new_tenant, organization_key, new_organization,
  some(api_key, new_key, user_key, keep_user(user_key, new_user), activation_key, activation and ACTIVATION.written(activation)))
return SETTLED.pack{code = SETTLED_DONE, now = now, seq = tenant.seq, remaining = tenant.total < 0 and -1 or tenant.remaining,
  epoch = epoch, moved = tenant.seq - seq, credits = facts.credits or 0, credit_seq = facts.credit_seq or 0, spend_seq = facts.spend_seq or 0}

-- settle: replace a hold by the actual use, once; or correct what a reclaim charged.
-- needs: state window batch bucket entry event calendar cycle take admit append accounts account_bytes tiers spend wide definition rings carries wide_windows windows account budgeted budget_accounts held paid kept write settlement charge shape_cache shape calls settle
-- allows: oom
-- KEYS[1] d  KEYS[2] x outbox  KEYS[3] late queue  KEYS[4] g control ids  KEYS[5] m
-- then  t  o  k  u, if flags has USER  a, if flags has ONE_TIME or 16
--   b each budget account that the hold took from; each account of one owner is followed by its index (ZSET)
-- KEYS[last] h hold (deleted; a tombstone after a reclaim)
-- ARGV[1] packed: batch (lib/batch.lua), run id (40), mode (1 charge, 2 release, 3 reclaim, 4 post: no hold needed,
--         5 recover: was acknowledged before, by a Redis that may have lost it,
--         6 correct: no hold needed, amounts are the use less what a reclaim charged),
--         tokens, the part of them that counts toward the quota, credits, units, over (by how much credits exceed the call's cost, in
--         nano-credits: carried to the organization's next call), service, tenant, organization, key,
--         flags (1 user, 2 One-Time, 4 counts tokens, 16 usage, 32 credits), tombstone ttl ms, request id (36)
-- ARGV[2] user  ARGV[3] attribution  ARGV[4] metadata (JSON object)  ARGV[5] tiers, if flags has 16
-- ARGV[then] with budget accounts: money, tokens and requests that their windows count, packed, and the names of the
--   accounts; with post and correct the definition of each account
-- ARGV[last] with mode recover, doubles: epoch, seq, how far it moved, credit seq, spend seq (0: not moved) of its answer, and of
--   each earlier one
--   with post and correct: the late queue's entry. It is the token: deleted with the charge. For a control write, which is known
--   by its id, the time of the use instead, in ms: windows of budgets count it if they had begun by then
-- Of many calls, 2 to 64, of one partition or several: ARGV[1] their shape (lib/shape.lua), then their arguments one after another; keys
--   by the shape. Returns a list: each call's own answer or error
-- Returns packed: 1 done, now, seq, remaining (-1 unlimited), credits charged, epoch, how far seq moved, credit seq,
--     spend seq (0: not moved)
--   | 3 as 1, and an account held less than was given back
--   | 0 unverified
--   | why nothing was settled, now, epoch: -1 reclaimed before, -2 no hold of this id, -3 an account is unknown, -4 the hold of a
--     call's head (service 0) was raised meanwhile.
--   A charge of these is appended to the late queue, where the keeper decides it; recover always is.
--   1 too if the late queue's entry is gone, or its request was settled and is not in PostgreSQL yet
-- Example: remaining 100, hold 50, charge 70 which count 70 -> used + 70, remaining 30, held - 50, one outbox entry
if #KEYS < 9 or #ARGV < 4 then return redis.error_reply('ERR settle takes 9 or more keys and 4 or more arguments') end
if #ARGV[1] == SETTLEMENT_BYTES then return settle_alone(KEYS, ARGV) end
if not fits(ARGV[1], KEYS, ARGV, SETTLE_SHARED) then return redis.error_reply('ERR settle takes many calls as their shape has them') end
return answer_each(settle_alone, settle_part, SETTLE_SHARED, true, KEYS, ARGV)

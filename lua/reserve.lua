-- reserve: take a hold on every limit of one request, or on none.
-- A call with only its head known holds a request and slots; once its body is read the hold is raised: what it took already is not
-- taken twice. A hold that is gone is taken as new; a refused raise leaves it unchanged.
-- needs: state window batch bucket entry event calendar cycle take admit append accounts account_bytes tiers spend wide definition rings carries wide_windows windows account budgeted budget_accounts wide_holds short steps held hold paid kept write shape_cache shape calls hold_parts reserve
-- KEYS[1] d deadlines (ZSET)  KEYS[2] x outbox (due reset)  KEYS[3] m marker
-- then  t tenant  o organization  k API key  u user, if flags has USER  a activation and month, if flags has ONE_TIME or 16
--   b each budget account, written here; each account of one owner is followed by its index (ZSET)
-- KEYS[last] h hold, written here
-- ARGV[1] packed: batch (lib/batch.lua), run id (40), catalogue version, need, the part of need that counts toward the quota (-1: all,
--         if no plan weighs kinds), ceiling (the most), least and credits' least (the amounts they may be cut to; 0 if the
--         call states its maximum; -1: nothing is cut, under no plan); ceiling and least are those of the quota, too; credits, units,
--         ttl ms, service, the plan whose weights these use (-1: any),
--         flags (1 user, 2 One-Time, 4 counts tokens, 8 Subscription meter,
--         16 usage, 32 credits, 64 credits by token, 128 raises the existing hold), request id (36)
-- ARGV[2] the caller's own user id, up to 128 characters  ARGV[3] the service's tiers, if flags has 16
-- ARGV[last] with budget accounts, packed: money, its most (what a strict plan holds), its least (what it may be
--         cut to), tokens, their most, their least, and any steps of these budgets that have another model for the call (budget, millionths of
--         its limit, 0 if it is only told, 1 if the call stops where it is reached, 2 if it stops, 3 if it stops where it is not); then the definition of each account
-- Of many calls, 2 to 64, of one partition or several: ARGV[1] their shape (lib/shape.lua), then their arguments one after another; keys
--   by the shape. Returns a list: each call's own answer or error
-- Returns packed: verdict, now, then
--   admitted (1; 2 if a strict plan makes the hold the call's limit; 2 more if the plan lets calls go on while Redis
--     is away, so that a lease is wanted): tokens held, the cycle's total,
--     tokens free (both -1: unlimited), next reset, credits free, credits held, requests {scope, limit, used, reset},
--     tokens {scope, limit, used, reset} (scope 0: none); with budgets money and tokens they hold, and the
--     tightest that enforces {id (0: none), limit, used, reset, unit}
--   refused: scope, kind, used, limit, until (0: unknown); for a budget its id and unit, the amount that calls in flight
--     hold of it, and the amount that this one needs
--   -15 a step of a budget sends the call as another model: a byte for each step, 1 if it is reached
--   0 unverified, -1 stale catalogue, -2 unknown account: nothing more
--   -12 the tenant has another plan: like refused, with its id as the limit
--   -14 accounts of single owners cannot be made, as there are too many: like refused, with a bit for each such account as used
-- Verdicts of a refusal: -3 key revoked or expired, -4 tenant blocked, -5 not included, -6 rate limited, -7 too many at once,
--   -8 quota exceeded, -9 held by calls in flight, -10 too few credits, -11 spend cap reached, -13 budget exceeded
-- Example: 10 a minute, 10 taken a second ago -> {-6, now, 3, 1, 10, 10, now + 5000}
if #KEYS < 7 or #ARGV < 2 then return redis.error_reply('ERR reserve takes 7 or more keys and 2 or more arguments') end
if #ARGV[1] == RESERVE_BYTES then return reserve_alone(KEYS, ARGV) end
if not fits(ARGV[1], KEYS, ARGV, RESERVE_SHARED) then return redis.error_reply('ERR reserve takes many calls as their shape has them') end
return answer_each(reserve_alone, reserve_part, RESERVE_SHARED, false, KEYS, ARGV)

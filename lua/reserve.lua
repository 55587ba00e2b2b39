-- reserve: take a hold on every limit of one request, or on none.
-- A call with only its head known holds a request and slots; once its body is read the hold is topped up: what it
-- took already is not taken again. A hold that is gone is taken again; a top-up that is refused leaves it as it was.
-- needs: state window batch bucket entry event calendar cycle take admit append accounts account_bytes tiers spend definition windows account budgeted budget_accounts short held hold paid kept write shape_cache shape calls hold_parts reserve
-- KEYS[1] d deadlines (ZSET)  KEYS[2] x outbox (due reset)  KEYS[3] m marker
-- then  t tenant  o organization  k API key  u user, where flags has USER  a activation and month, where flags has ONE_TIME or 16
--   b each account of budgets, written here; behind one for each the index of these (ZSET)
-- KEYS[last] h hold, written here
-- ARGV[1] packed: batch (lib/batch.lua), run id (40), catalogue version, need, what of it counts toward the quota (-1: all,
--         where no plan weighs kinds), ceiling (the most), least and credits' least (what they may be cut to; 0 where the
--         call states its maximum; -1: nothing is cut, under no plan), ceiling and least being the quota's too, credits, units, ttl ms, service,
--         the plan whose weights these go by (-1: whichever it is),
--         flags (1 user, 2 One-Time, 4 counts tokens, 8 Subscription meter,
--         16 usage, 32 credits, 64 credits by token, 128 raises the hold there is), request id (36)
-- ARGV[2] the caller's own user id, up to 128 characters  ARGV[3] the service's tiers, where flags has 16
-- ARGV[last] where there are accounts of budgets, packed: money, its most (what a strict plan holds), its least (what it may be
--         cut to), tokens, their most, their least; then the definition of each account
-- Of many calls, 2 to 64, of one partition or several: ARGV[1] their shape (lib/shape.lua), then their arguments by turns; keys as
--   it has them. Returns a list: each call's own answer or error
-- Returns packed: verdict, now, then
--   admitted (1; 2 where a strict plan makes the hold the call's limit; 2 more where the plan lets calls go on while Redis
--     is away, so that a lease is wanted): tokens held, the cycle's total,
--     tokens free (both -1: unlimited), next reset, credits free, credits held, requests {scope, limit, used, reset},
--     tokens {scope, limit, used, reset} (scope 0: none); with budgets money and tokens they hold, and the
--     tightest that enforces {id (0: none), limit, used, reset, unit}
--   refused: scope, kind, used, limit, until (0: unknown), of a budget its id and unit, what calls in flight
--     hold of it and what this one needs
--   0 unverified, -1 stale catalogue, -2 unknown account: nothing more
--   -12 the tenant follows another plan: as refused, with that as the limit
--   -14 accounts for each are as many as may be: as refused, in place of used a bit for each account that is one too many
-- Verdicts of a refusal: -3 key revoked or expired, -4 tenant blocked, -5 not included, -6 rate limited, -7 too many at once,
--   -8 quota exceeded, -9 held by calls in flight, -10 too few credits, -11 spend cap reached, -13 budget exceeded
-- Example: 10 a minute, 10 taken a second ago -> {-6, now, 3, 1, 10, 10, now + 5000}
if #KEYS < 7 or #ARGV < 2 then return redis.error_reply('ERR reserve takes 7 or more keys and 2 or more arguments') end
if #ARGV[1] == RESERVE_BYTES then return reserve_alone(KEYS, ARGV) end
if not fits(ARGV[1], KEYS, ARGV, RESERVE_SHARED) then return redis.error_reply('ERR reserve takes many calls as their shape has them') end
return answer_each(reserve_alone, reserve_part, RESERVE_SHARED, false, KEYS, ARGV)

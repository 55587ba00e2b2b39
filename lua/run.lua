-- run: a budget that callers open and that their calls name: opened by its first call, kept once a call of it was admitted, looked up
-- by others, ended once; restored by workers that remember it, if Redis lost it.
-- needs: budget_accounts entry state
-- KEYS[1] m  KEYS[2] x outbox  KEYS[3] the run  KEYS[4] the runs of its tenant, by expiry (ZSET)
-- KEYS[5] b its account  KEYS[6] the index of such accounts (ZSET)  KEYS[7] its parent, or KEYS[3] without one
-- KEYS[8] the children of its parent, by expiry (ZSET); of none without a parent
-- KEYS[9] the runs that its API key opened, by expiry (ZSET)
-- ARGV[1] packed: run id (40), verb (1 look, 2 open, 3 end, 4 restore, 5 keep), organization, tenant, ttl ms, the budget id of a new one
-- ARGV[2] open: the wanted run, packed; end: the definition of its account; restore, keep: the run as it was stored
-- ARGV[3] its description in the entry (JSON); open: empty  ARGV[4] its id
-- Returns packed: 1 exists, 3 exists and is provisional, or 2 opened, ended, restored or kept now, and the time; then the stored run,
--   packed. A provisional run expires in a minute, and has no entry
--   | 0 unverified | -1 no such run | -2 its parent is not open | -3 its tenant has the most runs allowed
--   | -4 its API key would have more than it leaves to the tenant's others
-- Example: open with ttl 60000 below a run that expires in 10 s -> it expires in 10 s
if #KEYS ~= 9 or #ARGV ~= 4 then return redis.error_reply('ERR run takes 9 keys and 4 arguments') end
local CALLS_AT = 1 -- the window of calls comes first
local run_id, verb, organization_id, tenant_id, ttl, budget_id = RUN_CALL.read(ARGV[1])
local raw = call('MGET', KEYS[1], KEYS[3], KEYS[5], KEYS[7])
local epoch = verified(raw[1], run_id)
if not epoch then return CODE.pack{code = 0} end
local now, packed, ends, opens, member = clock(NO_BATCH), raw[2], verb == RUN_END, verb == RUN_OPEN, sub(KEYS[5], COLON_AT + 1)
local function answer(code, run) return RAN.pack{code = code, now = now} .. run end
local waits = packed and (tonumber(call('ZSCORE', KEYS[4], member)) or 0) < RUN.field(packed, 'expires') + RUN_KEPT_MS

local account, changes = nil, ends and packed and RUN.field(packed, 'ended') == 0 or waits and verb == RUN_KEEP
if packed and not changes then return answer(waits and 3 or 1, packed) end
if not packed and (ends or verb == RUN_LOOK) then return CODE.pack{code = -1} end
if ends then
  account = as_of(account_of_state(KEYS[5], raw[3]), ARGV[2], now)
  local meters = account[METERS]
  packed = RUN.replaced(packed, {ended = now, calls = meters[CALLS_AT]}) .. RUN.behind(packed)
  -- No call has room in it, whatever limit programs bring: older ones bring a larger one.
  meters[CALLS_AT], account[INDEX] = written_as == TODAY and ENDED_CALLS + meters[CALLS_AT] or INTEGER_MAX, KEYS[6]
elseif not opens then
  packed = packed or ARGV[2]
else
  local expires = now + ttl
  if KEYS[7] ~= KEYS[3] then
    if not raw[4] or RUN.field(raw[4], 'ended') > 0 or RUN.field(raw[4], 'expires') <= now then return CODE.pack{code = -2} end
    expires = min(expires, RUN.field(raw[4], 'expires'))
  end
  call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
  call('ZREMRANGEBYSCORE', KEYS[9], '-inf', now)
  local left, own = RUNS_MAX - call('ZCARD', KEYS[4]), call('ZCARD', KEYS[9])
  if left < 1 then return CODE.pack{code = -3} end
  if own > 0 and own + 1 > left - 1 then return CODE.pack{code = -4} end
  packed = RUN.replaced(ARGV[2], {budget_id = budget_id, created = now, expires = expires}) .. RUN.behind(ARGV[2])
end
local expires = RUN.field(packed, 'expires')
local forgotten = opens and min(now + RUN_WAITS_MS, expires + RUN_KEPT_MS) or expires + RUN_KEPT_MS
local err = not opens and append(KEYS[2], {ENTRY.pack{
  kind = EVENT_RUN, flags = 0, note = 0, at_ms = now, epoch = epoch, organization_id = organization_id,
  tenant_id = tenant_id, key_id = 0, service_id = 0, seq = 0, cycle = 0, amount = RUN.field(packed, 'budget_id'), remaining = 0, used = 0,
  next_reset_ms = expires, source = '', user = '', attribution = '', metadata = ARGV[3], budgets = '',
}})
if err then return err end
if ends then write_budget(account, nil, now) end
if ends and not waits then
  call('SET', KEYS[3], packed, 'KEEPTTL')
else
  call('SET', KEYS[3], packed, 'PXAT', forgotten)
  call('ZADD', KEYS[4], forgotten, member)
  if opens or verb == RUN_KEEP then
    call('ZADD', KEYS[9], forgotten, member)
    local last = call('ZRANGE', KEYS[9], -1, -1, 'WITHSCORES')[2] -- later ones may end before it
    call('EXPIRE', KEYS[9], ceil((last - now) / 1000))
  end
  if KEYS[7] ~= KEYS[3] then
    call('ZREMRANGEBYSCORE', KEYS[8], '-inf', now)
    call('ZADD', KEYS[8], forgotten, ARGV[4])
    local last = raw[4] and RUN.field(raw[4], 'expires') or expires -- no child expires after it
    call('EXPIRE', KEYS[8], ceil((last + RUN_KEPT_MS - now) / 1000))
  end
end
return answer(2, packed)

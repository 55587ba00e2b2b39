-- settlement: what is to be settled, and what becomes of it without a charge. Needs state, admit.
local CHARGE, RELEASE, RECLAIM, POST, RECOVER, CORRECT = 1, 2, 3, 4, 5, 6
local S_MODE, S_TOKENS, S_CREDITS, S_UNITS, S_SERVICE, S_KEY, S_REQUEST, S_ARGV, S_TIERS = 1, 2, 3, 4, 5, 6, 7, 8, 9
local S_ENTRY, S_SOURCE, S_ONE_TIME, S_COUNTS, S_USES, S_PAYS, S_FREE = 10, 11, 12, 13, 14, 15, 16

local settled_sizes = {0, 0, TENANT_BYTES, ORGANIZATION_BYTES, KEY_BYTES} -- as `stored` takes them

-- the id of a request's one correction: its own with the version nibble set to 8
local VERSION_AT = 15
local function correction_of(request)
  return sub(request, 1, VERSION_AT - 1) .. '8' .. sub(request, VERSION_AT + 1)
end

-- whether somebody took an entry of the late lane, or its request is on its way to PostgreSQL
local function dealt_with(lane, entry, control, id)
  return call('HEXISTS', control, id) == 1 or #call('XRANGE', lane, entry, entry) == 0
end

-- the packed argument: what is charged; then what only the script itself asks for, how many arguments there have to be last
local function settlement_of(argv)
  local batch, run_id, mode, tokens, credits, units, service_id, key_id, flags, tombstone, request_id =
    SETTLE.read(argv[1])
  local one_time, uses, recovers = has(flags, FLAG_ONE_TIME), has(flags, FLAG_USES), mode == RECOVER
  return {mode, tokens, credits, units, service_id, key_id, request_id, argv, uses and argv[5] or '',
    mode >= POST and not recovers and argv[#argv], mode == CORRECT and correction_of(request_id) or request_id,
    one_time, has(flags, FLAG_COUNTS), uses, has(flags, FLAG_PAYS),
    -- a call that is taken back for nothing leaves no row
    mode == RELEASE or (mode == RECLAIM and tokens == 0 and credits == 0 and units == 0),
  }, batch, run_id, has(flags, FLAG_USER), tombstone, (uses and 5 or 4) + (mode >= POST and 1 or 0)
end

-- leaves a call to the keeper, who knows the ledger; the batch means nothing any more
local function late(lane, s, charged)
  local argv = s[S_ARGV]
  return call('XADD', lane, '*', 'a', SETTLE.since(argv[1], 'layout'), 'u', argv[2], 'c', argv[3], 'm', argv[4], 't', s[S_TIERS],
    'charged', format('%.0f', charged), 'acknowledged', s[S_MODE] == RECOVER and argv[#argv] or '')
end

-- One-Time: the first success charges and activates, the last failure releases
local function leave(a, o, s, slots)
  a[A_WAITING] = max(0, a[A_WAITING] - slots)
  if a[A_FLAGS] == ACTIVE or (s[S_FREE] and a[A_WAITING] > 0) then return false end
  if a[A_FLAGS] == PENDING then
    o[O_CREDITS_HELD] = max(0, o[O_CREDITS_HELD] - a[A_PRICE])
    s[S_CREDITS] = a[A_PRICE]
  end
  a[A_FLAGS] = s[S_FREE] and 0 or ACTIVE
  a[A_PRICE] = s[S_FREE] and 0 or s[S_CREDITS]
  return not s[S_FREE]
end

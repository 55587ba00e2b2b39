-- settlement: what settle charges and appends. Needs state, event, admit, spend.
local CHARGE, RELEASE, RECLAIM, POST, RECOVER, CORRECT = 1, 2, 3, 4, 5, 6

-- the id of a request's one correction: its own with the version nibble set to 8
local function correction_of(request) return sub(request, 1, 14) .. '8' .. sub(request, 16) end

-- whether somebody took an entry of the late lane, or its request is on its way to PostgreSQL
local function dealt_with(lane, entry, control, id)
  return call('HEXISTS', control, id) == 1 or #call('XRANGE', lane, entry, entry) == 0
end

-- the packed argument: what is charged; then what only the script itself asks for, how many arguments there have to be last
local function settlement_of(argv)
  local run_id, mode, tokens, credits, units, service, _, _, key, flags, tombstone, request =
    parse('<c40BdddddddBdc36', argv[1])
  local one_time, uses, recovers = has(flags, 2), has(flags, 16), mode == RECOVER
  -- sixteen fields: with one more a table has room for 32, which is more memory than the C library keeps at hand
  return {
    mode = mode, tokens = tokens, credits = credits, units = units, service = service, key = key,
    request = request, argv = argv, tiers = uses and argv[5] or '', entry = mode >= POST and not recovers and argv[#argv],
    source = mode == CORRECT and correction_of(request) or request,
    one_time = one_time, counts = has(flags, 4), uses = uses, pays = has(flags, 32),
    -- a call that is taken back for nothing leaves no row
    free = mode == RELEASE or (mode == RECLAIM and tokens == 0 and credits == 0 and units == 0),
  }, run_id, has(flags, 1), tombstone, (uses and 5 or 4) + (mode >= POST and 1 or 0)
end

-- leaves a call to the keeper, who knows the ledger
local function late(lane, s, charged)
  local argv = s.argv
  return call('XADD', lane, '*', 'a', argv[1], 'u', argv[2], 'c', argv[3], 'm', argv[4], 't', s.tiers,
    'charged', format('%.0f', charged), 'acknowledged', s.mode == RECOVER and argv[#argv] or '')
end

-- One-Time: the first success charges and activates, the last failure releases
local function leave(a, o, s, slots)
  a[2] = max(0, a[2] - slots)
  if a[1] == ACTIVE or (s.free and a[2] > 0) then return false end
  if a[1] == PENDING then
    o[CHELD] = max(0, o[CHELD] - a[3])
    s.credits = a[3]
  end
  a[1] = s.free and 0 or ACTIVE
  a[3] = s.free and 0 or s.credits
  return not s.free
end

-- moves the accounts a call touches; answers its one outbox entry and the facts in it
local function charge(s, t, o, a, now, epoch, activates)
  local corrects = s.mode == CORRECT -- moves only what differs
  local f = {kind = corrects and ADJUST or CONSUME, flags = 0, at = now, epoch = epoch, amount = 0, key = s.key,
    service = s.service, source = s.source, user = s.argv[2], attribution = s.argv[3], metadata = s.argv[4],
    note = (s.mode == POST and NOTE_LATE) or (s.mode == RECLAIM and NOTE_RECLAIMED) or 0}
  if activates then f.flags = f.flags + ACTIVATES end
  if (s.pays and not s.one_time and not (corrects and s.credits == 0)) or activates then
    o[BALANCE], o[CSEQ] = o[BALANCE] - s.credits, o[CSEQ] + 1
    o[CREDIT_AT] = max(now, o[CREDIT_AT])
    f.flags, f.credit_seq, f.credits, f.balance = f.flags + CREDITS, o[CSEQ], s.credits, o[BALANCE]
  end
  if s.uses and not (corrects and s.units == 0) then
    local _, pay = spending()
    f.spend, f.priced = pay(o, a, s.tiers, s.units, now)
    f.flags, f.spend_seq, f.units, f.spent = f.flags + USAGE, o[SSEQ], s.units, o[SPENT]
  end
  if s.counts and not (corrects and s.tokens == 0) then
    if not corrects then t[USED] = t[USED] + s.tokens end
    if t[TOTAL] >= 0 then t[REMAINING] = t[REMAINING] - s.tokens end
    return movement(t, now, epoch, f.kind, -s.tokens, f), f
  end
  f.at = max(now, o[CREDIT_AT])
  return event(t, o[ORG], f), f
end

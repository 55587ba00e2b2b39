-- charge: the accounts a settled call moves, and its outbox entry. Needs state, event, spend, settlement.

-- moves the accounts a call touches; answers its one outbox entry and the facts in it that `settle` answers
local function charge(s, t, o, a, now, epoch, activates)
  local corrects = s[S_MODE] == CORRECT -- moves only what differs
  local note = (s[S_MODE] == POST and NOTE_LATE) or (s[S_MODE] == RECLAIM and NOTE_RECLAIMED) or 0
  if s[S_COUNTS] then
    if not corrects then t[T_USED] = t[T_USED] + s[S_TOKENS] end
    if t[T_TOTAL] >= 0 or corrects then t[T_REMAINING] = t[T_REMAINING] - s[S_TOKENS] end
  end
  if s[S_COUNTS] and not (s[S_PAYS] or s[S_ONE_TIME] or s[S_USES] or corrects) then -- most calls: no facts in a table
    local argv = s[S_ARGV]
    stamp(t, now)
    return tokens_event(t, CONSUME, TOKENS + status_flag(t), note, t[T_LEDGER_AT], epoch, s[S_KEY], s[S_SERVICE], s[S_TOKENS],
      s[S_SOURCE], argv[2], argv[3], argv[4])
  end
  local f = {kind = corrects and ADJUST or CONSUME, flags = 0, at = now, epoch = epoch, amount = 0, key = s[S_KEY],
    service = s[S_SERVICE], source = s[S_SOURCE], user = s[S_ARGV][2], attribution = s[S_ARGV][3], metadata = s[S_ARGV][4],
    note = note}
  if activates then f.flags = f.flags + ACTIVATES end
  if (s[S_PAYS] and not s[S_ONE_TIME] and not (corrects and s[S_CREDITS] == 0)) or activates then
    o[O_BALANCE], o[O_CREDIT_SEQ] = o[O_BALANCE] - s[S_CREDITS], o[O_CREDIT_SEQ] + 1
    o[O_CREDIT_AT] = max(now, o[O_CREDIT_AT])
    f.flags, f.credit_seq, f.credits, f.balance = f.flags + CREDITS, o[O_CREDIT_SEQ], s[S_CREDITS], o[O_BALANCE]
  end
  if s[S_USES] and not (corrects and s[S_UNITS] == 0) then
    f.spend, f.priced = spend_pay(o, a, s[S_TIERS], s[S_UNITS], now)
    f.flags, f.spend_seq, f.units, f.spent = f.flags + USAGE, o[O_SPEND_SEQ], s[S_UNITS], o[O_SPENT]
  end
  if s[S_COUNTS] and not (corrects and s[S_TOKENS] == 0) then
    return movement(t, now, epoch, f.kind, -s[S_TOKENS], f), f
  end
  f.at = max(now, o[O_CREDIT_AT])
  return event(t, o[O_ORGANIZATION_ID], f), f
end

-- grant: what each control verb does to an account. Needs state, event, cycle.
local VERB_RECHARGE, VERB_RESET, VERB_ADJUST, VERB_BLOCK, VERB_UNBLOCK, VERB_PLAN, CREDITS_VERB, SWEEP = 1, 2, 3, 4, 5, 6, 7, 8

local function credit(o, t, now, epoch, amount, f)
  o[BALANCE], o[CSEQ] = o[BALANCE] + amount, o[CSEQ] + 1
  o[CREDIT_AT] = max(now, o[CREDIT_AT])
  f.kind, f.flags, f.at, f.epoch = CREDIT, CREDITS + (amount >= 0 and INWARD or 0), o[CREDIT_AT], epoch
  f.credit_seq, f.credits, f.balance = o[CSEQ], abs(amount), o[BALANCE]
  return event(nil, o[ORG], f)
end

local function mark(t, now, epoch, kind, f)
  local blocked = has(t[FLAGS], MANUAL_BLOCK)
  if kind == BLOCK and not blocked then t[FLAGS] = t[FLAGS] + MANUAL_BLOCK end
  if kind == UNBLOCK and blocked then t[FLAGS] = t[FLAGS] - MANUAL_BLOCK end
  t[LEDGER_AT] = max(now, t[LEDGER_AT])
  f.kind, f.flags, f.at, f.epoch = kind, status_flag(t), t[LEDGER_AT], epoch
  return event(t, t[TENANT_ORG], f)
end

-- moves a tenant to another plan now: the difference is an adjust; a first plan is a reset
local function change_plan(t, now, epoch, packed, f)
  local had, total, remaining = has(t[FLAGS], HAS_PLAN), t[TOTAL], t[REMAINING]
  local interval, anchor = t[INTERVAL], t[ANCHOR]
  t[PLAN], t[INTERVAL], t[POLICY], t[ADMISSION], t[EXHAUSTED], t[STORE], t[ROLLOVER], t[PLAN_TOTAL], t[ANCHOR] =
    parse('<ddddddddd', packed)
  if had ~= (t[PLAN] > 0) then t[FLAGS] = t[FLAGS] + (had and -HAS_PLAN or HAS_PLAN) end
  if t[NEXT] == 0 or interval ~= t[INTERVAL] or anchor ~= t[ANCHOR] then
    t[NEXT] = boundary(t[INTERVAL], t[ANCHOR], now)
  end
  if t[SEQ] == 0 then return renew(t, now, epoch, t[CYCLE] == 0 and 1 or 0, t[NEXT], f) end
  local before = total < 0 and 0 or remaining
  local beyond = total < 0 and remaining or remaining - total + t[USED]
  t[TOTAL] = t[PLAN_TOTAL]
  t[REMAINING] = t[TOTAL] < 0 and beyond or t[TOTAL] + beyond - t[USED]
  return movement(t, now, epoch, ADJUST, balance_of(t) - before, f)
end

local function tenant_grant(t, now, epoch, verb, amount, plan, f)
  if verb == VERB_PLAN then return change_plan(t, now, epoch, plan, f) end
  if verb == VERB_BLOCK then return mark(t, now, epoch, BLOCK, f) end
  if verb == VERB_UNBLOCK then return mark(t, now, epoch, UNBLOCK, f) end
  if verb == VERB_RESET then
    return renew(t, now, epoch, 1, boundary(t[INTERVAL], t[ANCHOR], now), f)
  end
  t[REMAINING] = t[REMAINING] + amount
  return movement(t, now, epoch, verb == VERB_RECHARGE and RECHARGE or ADJUST, amount, f)
end

-- numbers past 2^53 - 1 would no longer be exact
local function out_of_range(t, before, o)
  local largest = abs(o[BALANCE])
  if t then largest = max(largest, abs(t[REMAINING]), abs(t[REMAINING] - before)) end
  return largest > INTEGER_MAX
end

-- grant: what each control verb does to an account. Needs state, event, cycle.
local VERB_RECHARGE, VERB_RESET, VERB_ADJUST, VERB_BLOCK, VERB_UNBLOCK, VERB_PLAN, CREDITS_VERB, SWEEP = 1, 2, 3, 4, 5, 6, 7, 8

local function credit(o, now, epoch, amount, f)
  o[O_BALANCE], o[O_CREDIT_SEQ] = o[O_BALANCE] + amount, o[O_CREDIT_SEQ] + 1
  o[O_CREDIT_AT] = max(now, o[O_CREDIT_AT])
  f.kind, f.flags, f.at, f.epoch = CREDIT, CREDITS + (amount >= 0 and INWARD or 0), o[O_CREDIT_AT], epoch
  f.credit_seq, f.credits, f.balance = o[O_CREDIT_SEQ], abs(amount), o[O_BALANCE]
  return event(nil, o[O_ORGANIZATION_ID], f)
end

local function mark(t, now, epoch, kind, f)
  local blocked = has(t[FLAGS], MANUAL_BLOCK)
  if kind == BLOCK and not blocked then t[FLAGS] = t[FLAGS] + MANUAL_BLOCK end
  if kind == UNBLOCK and blocked then t[FLAGS] = t[FLAGS] - MANUAL_BLOCK end
  t[T_LEDGER_AT] = max(now, t[T_LEDGER_AT])
  f.kind, f.flags, f.at, f.epoch = kind, status_flag(t), t[T_LEDGER_AT], epoch
  return event(t, t[T_ORGANIZATION_ID], f)
end

-- moves a tenant to another plan now: the difference is an adjust; a first plan is a reset
local function change_plan(t, now, epoch, packed, f)
  local had, total, remaining = has(t[FLAGS], HAS_PLAN), t[T_TOTAL], t[T_REMAINING]
  local interval, anchor = t[T_RESET_INTERVAL], t[T_ANCHOR]
  PLAN.into(t, packed)
  if had ~= (t[T_PLAN_ID] > 0) then t[FLAGS] = t[FLAGS] + (had and -HAS_PLAN or HAS_PLAN) end
  if t[T_NEXT_RESET] == 0 or interval ~= t[T_RESET_INTERVAL] or anchor ~= t[T_ANCHOR] then
    t[T_NEXT_RESET] = boundary(t[T_RESET_INTERVAL], t[T_ANCHOR], now)
  end
  if t[T_SEQ] == 0 then return renew(t, now, epoch, t[T_CYCLE] == 0 and 1 or 0, t[T_NEXT_RESET], f) end
  local before = total < 0 and 0 or remaining
  local beyond = total < 0 and remaining or remaining - total + t[T_USED]
  t[T_TOTAL] = t[T_TOTAL_AMOUNT]
  t[T_REMAINING] = t[T_TOTAL] < 0 and beyond or t[T_TOTAL] + beyond - t[T_USED]
  return movement(t, now, epoch, ADJUST, balance_of(t) - before, f)
end

local function tenant_grant(t, now, epoch, verb, amount, plan, f)
  if verb == VERB_PLAN then return change_plan(t, now, epoch, plan, f) end
  if verb == VERB_BLOCK then return mark(t, now, epoch, BLOCK, f) end
  if verb == VERB_UNBLOCK then return mark(t, now, epoch, UNBLOCK, f) end
  if verb == VERB_RESET then
    return renew(t, now, epoch, 1, boundary(t[T_RESET_INTERVAL], t[T_ANCHOR], now), f)
  end
  t[T_REMAINING] = t[T_REMAINING] + amount
  return movement(t, now, epoch, verb == VERB_RECHARGE and RECHARGE or ADJUST, amount, f)
end

-- numbers past 2^53 - 1 would no longer be exact
local function out_of_range(t, before, o)
  local largest = abs(o[O_BALANCE])
  if t then largest = max(largest, abs(t[T_REMAINING]), abs(t[T_REMAINING] - before)) end
  return largest > INTEGER_MAX
end

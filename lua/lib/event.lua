-- event: packs one outbox entry. Layout: gateway/core/accounts/ledger.py. Needs state.
local TOKENS, CREDITS, USAGE, UNLIMITED, INWARD, BLOCKED, MANUAL, ACTIVATES = 1, 2, 4, 8, 16, 32, 64, 128
local CONSUME, RESET, RECHARGE, ADJUST, BLOCK, UNBLOCK, CREDIT = 1, 2, 3, 4, 5, 6, 7
local NOTE_LATE, NOTE_RECLAIMED = 1, 2
local ZERO = '\0\0\0\0\0\0\0\0'
local NO_LIMITS = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'

local function exceeded(t)
  return has(t[FLAGS], HAS_PLAN) and t[T_TOTAL] >= 0 and t[T_OVERAGE_POLICY] ~= POLICY_BILL and t[T_REMAINING] <= 0
end

local function status_flag(t)
  local flags = 0
  if t[T_TOTAL] < 0 then flags = flags + UNLIMITED end
  if has(t[FLAGS], MANUAL_BLOCK) then flags = flags + BLOCKED + MANUAL
  elseif exceeded(t) then flags = flags + BLOCKED end
  return flags
end

-- a movement of tokens alone
local function tokens_event(t, kind, flags, note, at, epoch, key, service, amount, source, user, attribution, metadata)
  return ENTRY.pack{
    kind = kind, flags = flags, note = note, at_ms = at, epoch = epoch,
    organization_id = t[T_ORGANIZATION_ID], tenant_id = t[T_TENANT_ID], key_id = key, service_id = service,
    seq = t[T_SEQ], cycle = t[T_CYCLE], amount = amount, remaining = t[T_REMAINING], used = t[T_USED],
    next_reset_ms = t[T_NEXT_RESET], source = source, user = user, attribution = attribution, metadata = metadata,
  }
end

-- `o_id` is the organization's, which a tenant knows too
-- facts: kind, flags, note, at, epoch, key, service, amount, credit_seq, credits, balance, spend_seq, units,
-- spend, spent, source, user, attribution, metadata, priced (how the units were, packed)
local function event(t, o_id, f)
  local source, user, attribution, metadata = f.source or '', f.user or '', f.attribution or '', f.metadata or ''
  if t and not f.credit_seq and not f.spend_seq then
    return tokens_event(t, f.kind, f.flags, f.note or 0, f.at, f.epoch, f.key or 0, f.service or 0, f.amount or 0,
      source, user, attribution, metadata)
  end
  return ENTRY.pack{
    kind = f.kind, flags = f.flags, note = f.note or 0, at_ms = f.at, epoch = f.epoch,
    organization_id = o_id, tenant_id = t and t[T_TENANT_ID] or 0, key_id = f.key or 0, service_id = f.service or 0,
    seq = t and t[T_SEQ] or 0, cycle = t and t[T_CYCLE] or 0, amount = f.amount or 0,
    remaining = t and t[T_REMAINING] or 0, used = t and t[T_USED] or 0, next_reset_ms = t and t[T_NEXT_RESET] or 0,
    credit_seq = f.credit_seq or 0, credits = f.credits or 0, balance = f.balance or 0,
    spend_seq = f.spend_seq or 0, units = f.units or 0, spend = f.spend or 0, spent = f.spent or 0,
    source = source, user = user, attribution = attribution, metadata = metadata,
  } .. (f.priced or '')
end

-- the next seq, and a time that never runs backwards
local function stamp(t, now)
  t[T_SEQ] = t[T_SEQ] + 1
  if now > t[T_LEDGER_AT] then t[T_LEDGER_AT] = now end
end

-- stamps and packs a token movement
local function movement(t, now, epoch, kind, amount, f)
  stamp(t, now)
  f.kind, f.at, f.epoch, f.amount = kind, t[T_LEDGER_AT], epoch, abs(amount)
  f.flags = (f.flags or 0) + TOKENS + status_flag(t) + ((kind ~= CONSUME and amount >= 0) and INWARD or 0)
  return event(t, t[T_ORGANIZATION_ID], f)
end

-- event: packs one outbox entry. Layout: gateway/core/accounts/ledger.py. Needs state.
local LAYOUT, TOKENS, CREDITS, USAGE, UNLIMITED, INWARD, BLOCKED, MANUAL, ACTIVATES = 2, 1, 2, 4, 8, 16, 32, 64, 128
local CONSUME, RESET, RECHARGE, ADJUST, BLOCK, UNBLOCK, CREDIT = 1, 2, 3, 4, 5, 6, 7
local NOTE_LATE, NOTE_RECLAIMED = 1, 2
local EVENT_FORM = '<BBBBdddddddddddddddddddBc0Hc0Hc0Hc0'
-- of tokens alone: nothing stands where credits and spend would
local TOKENS_FORM, ZERO = '<BBBBddddddddddddc56Bc0Hc0Hc0Hc0', '\0\0\0\0\0\0\0\0'
local NO_LIMITS = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
local no_credits = ZERO .. ZERO .. ZERO .. ZERO .. ZERO .. ZERO .. ZERO

local function exceeded(t)
  return has(t[FLAGS], HAS_PLAN) and t[TOTAL] >= 0 and t[POLICY] ~= POLICY_BILL and t[REMAINING] <= 0
end

local function status_flag(t)
  local flags = 0
  if t[TOTAL] < 0 then flags = flags + UNLIMITED end
  if has(t[FLAGS], MANUAL_BLOCK) then flags = flags + BLOCKED + MANUAL
  elseif exceeded(t) then flags = flags + BLOCKED end
  return flags
end

-- a movement of tokens alone
local function tokens_event(t, kind, flags, note, at, epoch, key, service, amount, source, user, attribution, metadata)
  return pack(TOKENS_FORM, LAYOUT, kind, flags, note, at, epoch, t[TENANT_ORG], t[TENANT], key, service,
    t[SEQ], t[CYCLE], amount, t[REMAINING], t[USED], t[NEXT], no_credits,
    #source, source, #user, user, #attribution, attribution, #metadata, metadata)
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
  return pack(EVENT_FORM, LAYOUT, f.kind, f.flags, f.note or 0, f.at, f.epoch,
    o_id, t and t[TENANT] or 0, f.key or 0, f.service or 0,
    t and t[SEQ] or 0, t and t[CYCLE] or 0, f.amount or 0, t and t[REMAINING] or 0, t and t[USED] or 0, t and t[NEXT] or 0,
    f.credit_seq or 0, f.credits or 0, f.balance or 0, f.spend_seq or 0, f.units or 0, f.spend or 0, f.spent or 0,
    #source, source, #user, user, #attribution, attribution, #metadata, metadata) .. (f.priced or '')
end

-- the next seq, and a time that never runs backwards
local function stamp(t, now)
  t[SEQ] = t[SEQ] + 1
  if now > t[LEDGER_AT] then t[LEDGER_AT] = now end
end

-- stamps and packs a token movement
local function movement(t, now, epoch, kind, amount, f)
  stamp(t, now)
  f.kind, f.at, f.epoch, f.amount = kind, t[LEDGER_AT], epoch, abs(amount)
  f.flags = (f.flags or 0) + TOKENS + status_flag(t) + ((kind ~= CONSUME and amount >= 0) and INWARD or 0)
  return event(t, t[TENANT_ORG], f)
end

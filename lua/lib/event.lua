-- event: packs any outbox entry. Layout: gateway/core/accounts/outbox.py. Needs state, entry.
local ZERO = '\0\0\0\0\0\0\0\0'

-- Packs an entry; `organization_id` is known from a tenant, too.
-- Facts: kind, flags, note, at, epoch, key, service, amount, credit_seq, credits, balance, spend_seq, units, spend, spent, source,
-- user, attribution, metadata, priced (how the units were, packed), carried (of credits, packed); money, raw_tokens, requests,
-- budgets (the windows, packed).
local function event(tenant, organization_id, facts)
  local source, user, attribution, metadata = facts.source or '', facts.user or '', facts.attribution or '', facts.metadata or ''
  local flags, note, key_id, service_id, amount = facts.flags, facts.note or 0, facts.key or 0, facts.service or 0, facts.amount or 0
  local money, budget_tokens, requests, budgets = facts.money or 0, facts.raw_tokens or 0, facts.requests or 0, facts.budgets or ''
  if tenant and not facts.credit_seq and not facts.spend_seq then
    return tokens_event(tenant, facts.kind, flags, note, facts.at, facts.epoch, key_id, service_id, amount,
      source, user, attribution, metadata, money, budget_tokens, requests, budgets)
  end
  return ENTRY.pack{
    kind = facts.kind, flags = flags, note = note, at_ms = facts.at, epoch = facts.epoch,
    organization_id = organization_id, tenant_id = tenant and tenant.tenant_id or 0, key_id = key_id, service_id = service_id,
    seq = tenant and tenant.seq or 0, cycle = tenant and tenant.cycle or 0, amount = amount,
    remaining = tenant and remaining_of(tenant) or 0, used = tenant and tenant.used or 0, next_reset_ms = tenant and tenant.next_reset or 0,
    credit_seq = facts.credit_seq or 0, credits = facts.credits or 0, balance = facts.balance or 0,
    spend_seq = facts.spend_seq or 0, units = facts.units or 0, spend = facts.spend or 0, spent = facts.spent or 0, money = money, raw_tokens = budget_tokens, requests = requests,
    source = source, user = user, attribution = attribution, metadata = metadata, budgets = budgets,
  } .. (facts.priced or facts.carried or '')
end

-- Advances the seq, and the time, which never goes back.
local function stamp(tenant, now)
  tenant.seq = tenant.seq + 1
  if now > tenant.ledger_at then tenant.ledger_at = now end
end

-- Stamps and packs a movement of tokens.
local function movement(tenant, now, epoch, kind, amount, facts)
  stamp(tenant, now)
  facts.kind, facts.at, facts.epoch, facts.amount = kind, tenant.ledger_at, epoch, abs(amount)
  facts.flags = (facts.flags or 0) + ENTRY_TOKENS + status_flag(tenant) + ((kind ~= EVENT_CONSUME and amount >= 0) and ENTRY_IN or 0)
  return event(tenant, tenant.organization_id, facts)
end

-- Stamps a movement of credits and adds it to the facts; `carried` is the change of the amount paid ahead.
local function move_credits(organization, now, amount, facts, carried)
  organization.credits_used, organization.credit_seq = organization.credits_used - amount, organization.credit_seq + 1
  organization.credit_at = max(now, organization.credit_at)
  facts.flags = facts.flags + ENTRY_CREDITS
  facts.credit_seq, facts.credits, facts.balance = organization.credit_seq, abs(amount), 0 - organization.credits_used
  if organization.ahead ~= 0 or carried ~= 0 then facts.carried = CARRIED.pack{ahead = organization.ahead, carried = carried} end
end

-- entry: adds entries to the outbox and other streams, and packs them. Layout: gateway/core/accounts/outbox.py.
-- needs: state

-- After a failure, deletes what it added and returns the error; otherwise the entries are replaced by their ids.
local function append(stream, entries, count)
  for i = 1, count or #entries do
    if written_as ~= TODAY then entries[i] = ENTRY.earlier(entries[i]) end
    local id = try('XADD', stream, '*', 'e', entries[i])
    if kind_of(id) == 'table' then
      if i > 1 then call('XDEL', stream, values(entries, 1, i - 1)) end
      return id
    end
    entries[i] = id
  end
  return nil
end

-- The packed length that precedes a text; short ones are cached.
local LENGTHS_MAX = 1024
local lengths_8, lengths_16 = {}, {}
local function packed_length(known, form, length)
  local packed = pack(form, length)
  if length < LENGTHS_MAX then known[length] = packed end
  return packed
end

-- The beginning of an entry, with its account and time; the last one is cached.
local kind_begun, flags_begun, note_begun, at_begun, epoch_begun, tenant_begun, key_begun, service_begun, beginning
local function entry_begins(kind, flags, note, at, epoch, tenant, key_id, service_id)
  if at ~= at_begun or key_id ~= key_begun or tenant ~= tenant_begun or service_id ~= service_begun or flags ~= flags_begun or kind ~= kind_begun
    or note ~= note_begun or epoch ~= epoch_begun then
    kind_begun, flags_begun, note_begun, at_begun, epoch_begun, tenant_begun, key_begun, service_begun = kind, flags, note, at, epoch, tenant, key_id, service_id
    beginning = ENTRY.span('', 'seq', {kind = kind, flags = flags, note = note, at_ms = at, epoch = epoch,
      organization_id = tenant.organization_id, tenant_id = tenant.tenant_id, key_id = key_id, service_id = service_id})
  end
  return beginning
end

-- The numbers of an entry that moves only tokens, as most do, behind how it begins: those of the tenant, then of budgets. Texts follow.
local NO_SPEND, UNBUDGETED = ENTRY.span('credit_seq', 'money', {}), ENTRY.span('money', '', {})
local function tokens_moved(tenant, amount, money, budget_tokens, requests)
  local used, limit = tenant.used, tenant.limit
  return ENTRY.span('seq', 'credit_seq', {seq = tenant.seq, cycle = tenant.cycle, amount = amount,
    remaining = tenant.total < 0 and limit or limit - used, used = used, next_reset_ms = tenant.next_reset}) .. NO_SPEND
    .. (money == 0 and budget_tokens == 0 and requests == 0 and UNBUDGETED
      or ENTRY.span('money', '', {money = money, raw_tokens = budget_tokens, requests = requests}))
end

-- Packs an entry; `organization_id` is known from a tenant, too.
-- Facts: kind, flags, note, at, epoch, key, service, amount, credit_seq, credits, balance, spend_seq, units, spend, spent, source,
-- user, attribution, metadata, priced (how the units were, packed), carried (of credits, packed); money, raw_tokens, requests,
-- budgets (the windows, packed).
local function event(tenant, organization_id, facts)
  local source, user, attribution, metadata = facts.source or '', facts.user or '', facts.attribution or '', facts.metadata or ''
  local flags, note, key_id, service_id, amount = facts.flags, facts.note or 0, facts.key or 0, facts.service or 0, facts.amount or 0
  local money, budget_tokens, requests, budgets = facts.money or 0, facts.raw_tokens or 0, facts.requests or 0, facts.budgets or ''
  if tenant and not facts.credit_seq and not facts.spend_seq then
    return entry_begins(facts.kind, flags, note, facts.at, facts.epoch, tenant, key_id, service_id) .. tokens_moved(tenant, amount, money, budget_tokens, requests)
      .. ENTRY.texts{source = source, user = user, attribution = attribution, metadata = metadata, budgets = budgets}
  end
  return ENTRY.pack{
    kind = facts.kind, flags = flags, note = note, at_ms = facts.at, epoch = facts.epoch,
    organization_id = organization_id, tenant_id = tenant and tenant.tenant_id or 0, key_id = key_id, service_id = service_id,
    seq = tenant and tenant.seq or 0, cycle = tenant and tenant.cycle or 0, amount = amount,
    remaining = not tenant and 0 or tenant.total < 0 and tenant.limit or tenant.limit - tenant.used, used = tenant and tenant.used or 0, next_reset_ms = tenant and tenant.next_reset or 0,
    credit_seq = facts.credit_seq or 0, credits = facts.credits or 0, balance = facts.balance or 0,
    spend_seq = facts.spend_seq or 0, units = facts.units or 0, spend = facts.spend or 0, spent = facts.spent or 0, money = money, raw_tokens = budget_tokens, requests = requests,
    source = source, user = user, attribution = attribution, metadata = metadata, budgets = budgets,
  } .. (facts.priced or facts.carried or '')
end

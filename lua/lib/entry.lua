-- entry: packs outbox entries that move only tokens, as most do, and the lengths of texts. Needs state, window.

-- The packed length that precedes a text; short ones are cached.
local LENGTHS_MAX = 1024
local lengths_8, lengths_16 = {}, {}
local function packed_length(known, form, length)
  local packed = pack(form, length)
  if length < LENGTHS_MAX then known[length] = packed end
  return packed
end

local function status_flag(tenant)
  local total, tenant_flags = tenant.total, tenant.flags
  if total < 0 then return has(tenant_flags, MANUAL_BLOCK) and ENTRY_UNLIMITED + ENTRY_BLOCKED + ENTRY_MANUAL_BLOCK or ENTRY_UNLIMITED end
  if has(tenant_flags, MANUAL_BLOCK) then return ENTRY_BLOCKED + ENTRY_MANUAL_BLOCK end
  return tenant.limit <= tenant.used and has(tenant_flags, HAS_PLAN) and is_limited(tenant) and ENTRY_BLOCKED or 0
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

-- The entry of a movement of only tokens, with the windows of budgets that it moves, and the amounts.
local NO_SPEND, UNBUDGETED = ENTRY.span('credit_seq', 'money', {}), ENTRY.span('money', '', {})
local function tokens_event(tenant, kind, flags, note, at, epoch, key_id, service_id, amount, source, user, attribution, metadata,
  money, budget_tokens, requests, budgets)
  local used, limit = tenant.used, tenant.limit
  return entry_begins(kind, flags, note, at, epoch, tenant, key_id, service_id) .. ENTRY.span('seq', 'credit_seq', {
    seq = tenant.seq, cycle = tenant.cycle, amount = amount, remaining = tenant.total < 0 and limit or limit - used, used = used,
    next_reset_ms = tenant.next_reset}) .. NO_SPEND
    .. (money == 0 and budget_tokens == 0 and requests == 0 and UNBUDGETED
      or ENTRY.span('money', '', {money = money, raw_tokens = budget_tokens, requests = requests}))
    .. ENTRY.texts{source = source, user = user, attribution = attribution, metadata = metadata, budgets = budgets}
end

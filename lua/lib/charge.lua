-- charge: moves the accounts of a settled call, and makes its outbox entry. Needs state, event, spend, settlement.

-- The credits to charge, if they are `over` the call's cost by some nano-credits: whole credits paid ahead are deducted. A charge is
-- never below 0: what cannot be deducted now waits for the next one.
local function carry(organization, credits, over)
  local ahead = organization.ahead + over
  local back = ahead < NANO and 0 or min(credits, floor(ahead / NANO))
  organization.ahead = ahead - back * NANO
  return credits - back
end

-- The entry of a call that ended without a charge: it moves no account, and records the call in the journal. The call's arguments
-- begin at `a`.
local function unmoved(mode, key_id, service_id, request_id, argv, a, tenant, now, epoch)
  return event(tenant, tenant.organization_id, {
    kind = EVENT_CONSUME, flags = 0, note = mode == MODE_RECLAIM and NOTE_RECLAIMED or 0, at = now, epoch = epoch,
    key = key_id, service = service_id, source = request_id, user = argv[a + 1], attribution = argv[a + 2], metadata = argv[a + 3],
  })
end

-- Facts of a call that moves only tokens, as most do: none. `settle` charges it itself.
local no_facts = {}

-- Moves the accounts of any other call; returns its one outbox entry, and the facts in it that `settle` answers with.
local function charge(mode, flags, quota_tokens, credits, units, over, key_id, service_id, argv, a, source, tenant, organization, activation, now, epoch,
  activates, money, budget_tokens, requests, budgets)
  local counts, one_time, uses, pays = has(flags, FLAG_COUNTS), has(flags, FLAG_ONE_TIME), has(flags, FLAG_USES), has(flags, FLAG_PAYS)
  local corrects = mode == MODE_CORRECT -- moves only what differs
  local note = (mode == MODE_POST and NOTE_LATE) or (mode == MODE_RECLAIM and NOTE_RECLAIMED) or 0
  if counts then
    tenant.used = tenant.used + quota_tokens
    if tenant.used < 0 then tenant.limit, tenant.used = tenant.limit - tenant.used, 0 end -- it was used in a cycle before
  end
  local facts = {
    kind = corrects and EVENT_ADJUST or EVENT_CONSUME, flags = activates and ENTRY_ACTIVATES or 0, note = note, at = now, epoch = epoch,
    amount = 0, key = key_id, service = service_id, source = source, user = argv[a + 1], attribution = argv[a + 2], metadata = argv[a + 3],
    money = money, raw_tokens = budget_tokens, requests = requests, budgets = budgets,
  }
  if activates then move_credits(organization, now, -credits, facts, 0)
  elseif pays and not one_time and not (corrects and credits == 0 and over == 0) then
    local before = organization.ahead
    credits = carry(organization, credits, over)
    move_credits(organization, now, -credits, facts, organization.ahead - before)
  end
  if uses and not (corrects and units == 0) then
    facts.spend, facts.priced = spend_pay(organization, activation, argv[a + 4], units, now)
    facts.flags, facts.spend_seq, facts.units, facts.spent = facts.flags + ENTRY_USAGE, organization.spend_seq, units, organization.spent
  end
  if counts and not (corrects and quota_tokens == 0) then return movement(tenant, now, epoch, facts.kind, -quota_tokens, facts), facts end
  facts.at = max(now, organization.credit_at)
  return event(tenant, organization.organization_id, facts), facts
end

-- The end of a call's answer; for calls that move only tokens it is the same in an epoch, and cached.
local epoch_settled, settled_end
local function answer_ends(epoch, moved, facts)
  if facts ~= no_facts or moved ~= 1 or epoch ~= epoch_settled then
    epoch_settled = facts == no_facts and moved == 1 and epoch
    settled_end = SETTLED.span('credits', '', {epoch = epoch, moved = moved, credits = facts.credits or 0, credit_seq = facts.credit_seq or 0,
      spend_seq = facts.spend_seq or 0})
  end
  return settled_end
end

-- settle: replace a hold by the actual use, once; or correct what a reclaim charged.
-- needs: accounts batch bucket budget_accounts budgets carries entry quota spend state
-- sets: event_count event_of gone_count gone_of member_count member_of organization_far reset_of shared_now unheld
-- allows: oom
-- KEYS[1] d  KEYS[2] x outbox  KEYS[3] late queue  KEYS[4] g control ids  KEYS[5] m
-- then  t  o  k  u, if flags has USER  a, if flags has ONE_TIME or 16
--   b each budget account that the hold took from; each account of one owner is followed by its index (ZSET)
-- KEYS[last] h hold (deleted; a tombstone after a reclaim)
-- ARGV[1] packed: batch (lib/state.lua), run id (40), mode (1 charge, 2 release, 3 reclaim, 4 post: no hold needed,
--         5 recover: was acknowledged before, by a Redis that may have lost it,
--         6 correct: no hold needed, amounts are the use less what a reclaim charged),
--         tokens, the part of them that counts toward the quota, credits, units, over (by how much credits exceed the call's cost, in
--         nano-credits: carried to the organization's next call), service, tenant, organization, key,
--         flags (1 user, 2 One-Time, 4 counts tokens, 16 usage, 32 credits), tombstone ttl ms, request id (36)
-- ARGV[2] user  ARGV[3] attribution  ARGV[4] metadata (JSON object)  ARGV[5] tiers, if flags has 16
-- ARGV[then] with budget accounts: money, tokens and requests that their windows count, packed, and the names of the
--   accounts; with post and correct the definition of each account
-- ARGV[last] with mode recover, doubles: epoch, seq, how far it moved, credit seq, spend seq (0: not moved) of its answer, and of
--   each earlier one
--   with post and correct: the late queue's entry. It is the token: deleted with the charge. For a control write, which is known
--   by its id, the time of the use instead, in ms: windows of budgets count it if they had begun by then
-- Of many calls, 2 to 64, of one partition or several: ARGV[1] their shape (lib/batch.lua), then their arguments one after another; keys
--   by the shape. Returns a list: each call's own answer or error
-- Returns packed: 1 done, now, seq, remaining (-1 unlimited), credits charged, epoch, how far seq moved, credit seq,
--     spend seq (0: not moved)
--   | 3 as 1, and an account held less than was given back
--   | 0 unverified
--   | why nothing was settled, now, epoch: -1 reclaimed before, -2 no hold of this id, -3 an account is unknown, -4 the hold of a
--     call's head (service 0) was raised meanwhile.
--   A charge of these is appended to the late queue, where the keeper decides it; recover always is.
--   1 too if the late queue's entry is gone, or its request was settled and is not in PostgreSQL yet
-- Example: remaining 100, hold 50, charge 70 which count 70 -> used + 70, remaining 30, held - 50, one outbox entry
if #KEYS < 9 or #ARGV < 4 then return redis.error_reply('ERR settle takes 9 or more keys and 4 or more arguments') end
if #ARGV[1] == SETTLEMENT_BYTES then return run_call(settlements, KEYS, ARGV) end
if not fits(ARGV[1], KEYS, ARGV, SETTLE_SHARED) then return redis.error_reply('ERR settle takes many calls as their shape has them') end
return answer_each(settlements, KEYS, ARGV)

-- functions: the settlement of one call by steps, then the writes of all calls. Upvalues of lib/accounts.lua have the places of the call's
-- accounts. Its arguments are in `argv`, from `a` on.
local SETTLE_SHARED, VERSION_AT = 5, 15
local late_entries, ended_keys, tombstone_of, life_of, ended_of, post_of, entry_of, posted = {}, {}, {}, {}, {}, {}, {}, {}
local late_count, post_count = 0, 0

-- The time of a use that a control write charges; nil for an entry of the late queue, whose id is no number.
local function moment_of_use(entry_id) return tonumber(entry_id) end

-- The id of a request's only correction: its own, with the version digit 8.
local function correction_of(request) return sub(request, 1, VERSION_AT - 1) .. '8' .. sub(request, VERSION_AT + 1) end

-- Of a charge by the late queue or by a control write: the id of its request, the time of its use, and whether it was settled before: its
-- entry is gone, or its request on its way to PostgreSQL.
local function open_post(keys, mode, request_id, entry_id)
  local source, used_at = mode == MODE_CORRECT and correction_of(request_id) or request_id, moment_of_use(entry_id)
  if shape and (posted[source] or (not used_at and posted[entry_id])) then return source, used_at, true end
  return source, used_at, call('HEXISTS', keys[own_before + 4], source) == 1 or not (used_at or #call('XRANGE', keys[own_before + 3], entry_id, entry_id) > 0)
end

local function record_post(source, entry_id)
  post_count = post_count + 1
  post_of[post_count], entry_of[post_count] = source, entry_id
  if shape then posted[source], posted[entry_id] = true, true end
end

-- Adds such entries to the late queue, all or none; returns the error if that fails.
local function append_late(lane, entries, count)
  for i = 1, count do
    local id = try('XADD', lane, '*', values(entries[i]))
    if kind_of(id) == 'table' then
      if i > 1 then call('XDEL', lane, values(entries, 1, i - 1)) end
      return id
    end
    entries[i] = id
  end
end

-- Makes the late queue's entry of a call that the keeper decides by the ledger, with a reclaim's charge of it; the batch number is
-- omitted. The entry is added with those of its part.
local function queue_late(argv, a, count, mode, flags, paid, reclaimed_hold)
  local kept = SETTLEMENT.since(argv[a], 'layout')
  late_count = late_count + 1
  late_entries[late_count] = {'a', written_as == TODAY and kept or KEPT.earlier(kept), 'u', argv[a + 1], 'c', argv[a + 2], 'm', argv[a + 3],
    't', has(flags, FLAG_USES) and argv[a + 4] or '', 'b', paid or '',
    'charged', format('%.0f', reclaimed_hold and HOLD.field(reclaimed_hold, 'charged') or 0),
    'acknowledged', mode == MODE_RECOVER and argv[a + count - 1] or ''}
end

-- The reason why there is nothing to settle here, or nil. The late queue decides such a charge, and each one that is recovered. A newer
-- version's account is refused before anything is written; else when it is opened.
local function why_gone(keys, argv, a, count, packed_hold, reclaimed, entry_id, paid)
  local mode, service_id, flags = SETTLEMENT.read(argv[a])
  local gone
  if not entry_id and not packed_hold then gone = SETTLED_UNKNOWN
  elseif not entry_id and reclaimed then gone = SETTLED_RECLAIMED
  elseif not (raw_of[at_tenant] and raw_of[at_organization]) then gone = SETTLED_UNKNOWN_ACCOUNT
  elseif packed_hold and service_id == 0 and HOLD.field(packed_hold, 'service_id') ~= 0 then gone = SETTLED_RAISED end
  if gone then
    for _, at in ipairs({at_tenant, at_organization, at_key, has(flags, FLAG_USER) and at_user or nil}) do
      if raw_of[at] then today(raw_of[at], keys[at + keys_before]) end
    end
  end
  if mode == MODE_RECOVER or (gone and mode == MODE_CHARGE) then queue_late(argv, a, count, mode, flags, paid, reclaimed and packed_hold) end
  return gone
end

-- Charges what is not tokens alone: moves the accounts, and completes the facts of the entry, which it returns.
local function charge(facts, argv, a, tenant, organization, activation, activation_price)
  local mode, quota_tokens, credits, units, over, flags = SETTLEMENT.read(argv[a])
  local counts, corrects = has(flags, FLAG_COUNTS), mode == MODE_CORRECT -- which moves only what differs
  if counts then
    tenant.used = tenant.used + quota_tokens
    if tenant.used < 0 then tenant.limit, tenant.used = tenant.limit - tenant.used, 0 end -- it was used in a cycle before
  end
  facts.kind, facts.flags = corrects and EVENT_ADJUST or EVENT_CONSUME, activation_price and ENTRY_ACTIVATES or 0
  if activation_price then move_credits(organization, facts.at, -activation_price, facts, 0)
  elseif has(flags, FLAG_PAYS) and not has(flags, FLAG_ONE_TIME) and not (corrects and credits == 0 and over == 0) then
    local before = organization.ahead
    credits = carry(organization, credits, over)
    move_credits(organization, facts.at, -credits, facts, organization.ahead - before)
  end
  if has(flags, FLAG_USES) and not (corrects and units == 0) then
    facts.spend, facts.priced = spend_pay(organization, activation, argv[a + 4], units, facts.at)
    facts.flags, facts.spend_seq, facts.units, facts.spent = facts.flags + ENTRY_USAGE, organization.spend_seq, units, organization.spent
  end
  if counts and not (corrects and quota_tokens == 0) then return movement(tenant, facts.at, facts.epoch, facts.kind, -quota_tokens, facts) end
  facts.at = max(facts.at, organization.credit_at)
  return event(tenant, organization.organization_id, facts)
end

-- Facts of a call that moves only tokens, as most do: none.
local no_facts = {}

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

-- Settles one call; returns the answer.
local function settle_one(keys, hold_key, at_hold, argv, a, count)
  --> verify: the call's shape, its partition, and whether it was settled before
  --> find: the hold, or why there is nothing to settle
  --> open: the accounts that it moves
  --> give_back: what the hold took of windows; counts the use of plain windows of budgets in the same turn
  --> charge: the use, in the other windows and in one outbox entry
  --> record: the end of the hold, and what else the function call has to write
  --> end: the rates, and the answer
end

-- step verify of settle_one: the call has a key and an argument for each flag, in a partition that this program may write.
-- reads: keys hold_key argv a count
-- sets: now epoch mode tokens quota_tokens credits units service_id key_id flags tombstone request_id
-- sets: with_user one_time uses accounts_before_budgets arguments_before_budgets budget_arguments paid entry_id source used_at
do
  local batch, run_id, mode, tokens, quota_tokens, credits, units, service_id, key_id, flags, tombstone, request_id = SETTLEMENT.read(argv[a])
  local with_user, one_time, uses = has(flags, FLAG_USER), has(flags, FLAG_ONE_TIME), has(flags, FLAG_USES)
  local accounts_before_budgets, arguments_before_budgets = 3 + (with_user and 1 or 0) + ((one_time or uses) and 1 or 0), uses and 5 or 4
  local budget_arguments = count - arguments_before_budgets - (mode >= MODE_POST and 1 or 0) -- and a definition for each account
  local paid = budget_arguments > 0 and argv[a + arguments_before_budgets]
  if account_count < accounts_before_budgets or budget_arguments < 0 or (account_count > accounts_before_budgets) ~= (budget_arguments > 0) then
    return redis.error_reply('ERR settle takes a key and an argument for each flag')
  end
  if byte(hold_key, KIND_AT) ~= HOLD_KIND then return redis.error_reply('ERR settle takes a hold as its last key') end
  local epoch = verified(raw_of[places_before + 1], run_id)
  if not epoch then return CODE.pack{code = SETTLED_UNVERIFIED} end
  local now = shared_now or clock(batch)
  shared_now = now
  local entry_id = mode >= MODE_POST and mode ~= MODE_RECOVER and argv[a + count - 1]
  local source, used_at, is_settled = request_id, nil, false
  if entry_id then source, used_at, is_settled = open_post(keys, mode, request_id, entry_id) end
  if is_settled then return SETTLED.pack{code = SETTLED_DONE, now = now, epoch = epoch} end
end

-- step find of settle_one: a hold that was reclaimed holds nothing more, so `hold_count` is 0 as without one, and else 1.
-- reads: at_hold hold_key service_id mode keys argv a count entry_id paid now epoch
-- sets: packed_hold hold_count hold_flags hold_tokens key_tpm user_tpm tenant_tpm organization_tpm hold_credits
do
  local packed_hold = raw_of[at_hold]
  if shape and ended_of[hold_key] ~= nil then packed_hold = ended_of[hold_key] end
  local hold_count, reclaimed, hold_flags, hold_tokens, key_tpm, user_tpm, tenant_tpm, organization_tpm, hold_credits = 0, nil, 0, 0, 0, 0, 0, 0, 0
  if packed_hold then
    if byte(packed_hold) ~= TODAY then packed_hold = today(packed_hold, hold_key) end
    hold_count = 1
    hold_flags, hold_tokens, key_tpm, user_tpm, tenant_tpm, organization_tpm, hold_credits = HOLD.read(packed_hold)
    if has(hold_flags, HOLD_RECLAIMED) then
      hold_count, reclaimed, hold_flags, hold_tokens, key_tpm, user_tpm, tenant_tpm, organization_tpm, hold_credits = 0, true, 0, 0, 0, 0, 0, 0, 0
    end
  end
  if hold_count == 0 or service_id == 0 or mode == MODE_RECOVER or not (raw_of[at_tenant] and raw_of[at_organization]) then
    local gone = why_gone(keys, argv, a, count, packed_hold, reclaimed, entry_id, paid)
    if gone then return GONE.pack{code = gone, now = now, epoch = epoch} end
  end
end

-- step open of settle_one: of a call that moves only tokens the organization is opened for its limits alone.
-- reads: keys now epoch mode flags with_user one_time uses accounts_before_budgets hold_count hold_flags key_tpm organization_tpm hold_credits
-- sets: api_key user tenant organization activation at_activation tokens_alone seq
do
  local api_key = account_of[at_key]
  if not api_key then
    local must_open = hold_count == 1 and key_tpm >= 0
    if must_open or api_key == nil then api_key = limited_account(at_key, SCOPE_KEY, keys[at_key + keys_before], must_open) end
  end
  local user = with_user and has(hold_flags, HOLD_USER) and account_of[at_user]
  if user == nil then user = open_user(at_user, keys[at_user + keys_before]) end
  local tenant = account_of[at_tenant] or open_tenant(at_tenant, keys[at_tenant + keys_before], now, epoch)
  local tokens_alone = has(flags, FLAG_COUNTS) and not (one_time or uses or has(flags, FLAG_PAYS) or mode == MODE_CORRECT)
  local organization = account_of[at_organization]
  if not organization then
    local must_open = not tokens_alone or hold_credits > 0 or hold_count == 1 and organization_tpm >= 0
    if must_open or organization == nil then organization = limited_account(at_organization, SCOPE_ORGANIZATION, keys[at_organization + keys_before], must_open) end
  end
  local at_activation = (one_time or uses) and places_before + (shape and byte(shape, named_from + accounts_before_budgets - 1) or 1 + accounts_before_budgets)
  local activation, reset, seq = at_activation and open_activation(at_activation, keys[at_activation + keys_before]), reset_of[at_tenant], tenant.seq
  if reset then -- it comes with the first call that moves the tenant
    seq, event_count, reset_of[at_tenant] = seq - 1, event_count + 1, nil
    event_of[event_count] = reset
  end
end

-- step give_back of settle_one: the tokens and credits of the hold, its windows of budgets, its place before a price paid once, its units.
-- A call that ends without a charge (`is_uncharged`) moves no account. `held_windows` is nil where end_hold counted the use already.
-- reads: keys argv a now mode tokens quota_tokens credits units one_time uses accounts_before_budgets arguments_before_budgets budget_arguments paid used_at
-- reads: packed_hold hold_count hold_flags hold_tokens hold_credits tenant organization activation
-- sets: accounts held_windows money budget_tokens requests is_uncharged activation_price
do
  if hold_credits > 0 then give_back_amounts(tenant, organization, hold_flags, hold_tokens, hold_credits)
  elseif hold_tokens ~= 0 then tenant.held = held_after(tenant.held, hold_tokens) end
  local accounts, held_windows, money, budget_tokens, requests = nil, nil, 0, 0, 0
  if paid then
    accounts = accounts_at(keys, accounts_before_budgets, argv, budget_arguments > 1 and a + arguments_before_budgets + 1, now)
    if budget_arguments > 1 and budget_arguments ~= 1 + #accounts then error({err = 'ERR settle takes a definition for each budget account'}) end
    money, budget_tokens, requests = paid_of(paid)
  elseif hold_count == 1 and HOLD.field(packed_hold, 'budgets') > 0 then error({err = 'ERR a hold ends with its budget accounts'}) end
  local is_uncharged = mode == MODE_RELEASE or (mode == MODE_RECLAIM and tokens == 0 and quota_tokens == 0 and credits == 0 and units == 0
    and money == 0 and budget_tokens == 0 and requests == 0)
  if accounts then held_windows = end_hold(accounts, hold_count == 1 and packed_hold, used_at, is_uncharged) end
  local activation_price = false
  if one_time and mode ~= MODE_CORRECT then
    activation_price = release_activation(activation, organization, credits, is_uncharged, has(hold_flags, HOLD_ONE_TIME) and hold_count or 0)
  end
  if uses and has(hold_flags, HOLD_USES) and hold_credits == 0 then -- before units were counted, holds had a price and no units
    activation.held = held_after(activation.held, HOLD.field(packed_hold, 'units'))
  end
end

-- step charge of settle_one: of tokens alone the entry is packed from locals, of anything else from facts, which the answer needs, too.
-- A call without a charge has an entry if it says something of itself: it records the call in the journal.
-- reads: mode is_uncharged accounts held_windows used_at now packed_hold request_id tenant epoch tokens_alone quota_tokens key_id service_id money
-- reads: budget_tokens requests source argv a organization activation activation_price
-- sets: facts
do
  local entry, facts = nil, no_facts
  local note = mode == MODE_POST and NOTE_LATE or mode == MODE_RECLAIM and NOTE_RECLAIMED or 0
  if not is_uncharged then
    local budgets = accounts and pay_windows(accounts, held_windows, used_at, now, packed_hold, request_id) or ''
    if carries.begun then event_count = carried_entries(event_of, event_count, tenant.organization_id, now, epoch) end
    if tokens_alone then
      tenant.used, tenant.seq = tenant.used + quota_tokens, tenant.seq + 1
      if now > tenant.ledger_at then tenant.ledger_at = now end
      entry = entry_begins(EVENT_CONSUME, ENTRY_TOKENS + status_flag(tenant), note, tenant.ledger_at, epoch, tenant, key_id, service_id)
        .. tokens_moved(tenant, quota_tokens, money, budget_tokens, requests)
        .. ENTRY.texts{source = source, user = argv[a + 1], attribution = argv[a + 2], metadata = argv[a + 3], budgets = budgets}
    else
      facts = {note = note, at = now, epoch = epoch, key = key_id, service = service_id, source = source,
        user = argv[a + 1], attribution = argv[a + 2], metadata = argv[a + 3],
        money = money, raw_tokens = budget_tokens, requests = requests, budgets = budgets}
      entry = charge(facts, argv, a, tenant, organization, activation, activation_price)
    end
  elseif service_id ~= 0 and argv[a + 3] ~= '' then
    entry = event(tenant, tenant.organization_id, {
      kind = EVENT_CONSUME, flags = 0, note = note, at = now, epoch = epoch,
      key = key_id, service = service_id, source = request_id, user = argv[a + 1], attribution = argv[a + 2], metadata = argv[a + 3],
    })
  end
  if entry then
    event_count = event_count + 1
    event_of[event_count] = entry
  end
end

-- step record of settle_one: how far the organization's account is written: with its windows, or only its head.
-- reads: hold_key argv a now mode quota_tokens flags tombstone request_id one_time uses entry_id source packed_hold hold_count hold_flags hold_credits
-- reads: api_key user organization activation at_activation tokens_alone accounts
do
  if uses then spend_keep(organization, activation, argv[a + 4], now) end
  local tombstone_of_call = mode == MODE_RECLAIM and hold_count == 1 and HOLD.replaced(packed_hold, {flags = hold_flags + HOLD_RECLAIMED, charged = quota_tokens})
  member_count = member_count + 1
  member_of[member_count], ended_keys[member_count], tombstone_of[member_count], life_of[member_count] = request_id, hold_key, tombstone_of_call, tombstone
  if shape then ended_of[hold_key] = tombstone_of_call end
  if entry_id then record_post(source, entry_id) end
  if organization_far < FAR_LEDGER and (hold_credits > 0 or not tokens_alone and (uses or one_time or has(flags, FLAG_PAYS))) then organization_far = FAR_LEDGER end
  mark_moved(api_key, user, at_activation, accounts)
end

-- step end of settle_one: slots and tokens of a minute; whether an account held less than was given back.
-- reads: now epoch tokens hold_count key_tpm user_tpm tenant_tpm organization_tpm api_key user tenant organization seq facts
do
  if api_key then give_back_rate(api_key, now, hold_count, key_tpm, tokens) end
  if user then give_back_rate(user, now, hold_count, user_tpm, tokens) end
  give_back_rate(tenant, now, hold_count, tenant_tpm, tokens)
  if organization then give_back_rate(organization, now, hold_count, organization_tpm, tokens) end
  local code = SETTLED_DONE
  if unheld then code, unheld = SETTLED_UNHELD, false end
  return SETTLED.span('', 'credits', {code = code, now = now, seq = tenant.seq,
    remaining = tenant.total < 0 and -1 or tenant.limit - tenant.used}) .. answer_ends(epoch, tenant.seq - seq, facts)
end

-- Ends the holds of a part: reclaimed ones become tombstones, and the others are deleted with those of all parts.
local function end_holds()
  for i = 1, member_count do
    local name, tombstone = ended_keys[i], tombstone_of[i]
    if tombstone then call('SET', name, as_written(name, tombstone), 'PX', life_of[i])
    else
      gone_count = gone_count + 1
      gone_of[gone_count] = name
    end
  end
end

local function begin_settlements(many)
  late_count, post_count, carries.begun = 0, 0, false
  if many then posted, ended_of = {}, {} end
end

-- The writes of a part that may fail, all or none; then the rest.
local function end_settlements(keys)
  local late_queue = keys[own_before + 3]
  local err = late_count > 0 and append_late(late_queue, late_entries, late_count)
  if not err and member_count > 0 then
    err = append_and(keys[own_before + 2], event_of, event_count, 'ZREM', keys[own_before + 1], member_of, member_count)
    if err and late_count > 0 then call('XDEL', late_queue, values(late_entries, 1, late_count)) end
  end
  if err then error(err) end
  for i = 1, post_count do
    call('HSET', keys[own_before + 4], post_of[i], '1')
    if not moment_of_use(entry_of[i]) then call('XDEL', late_queue, entry_of[i]) end
  end
  end_holds()
end

local settlements = {shared = SETTLE_SHARED, moves = FAR_LEDGER, with_holds = true, begin = begin_settlements, run = settle_one, finish = end_settlements}

-- settle: the settlement of each call, and the writes of all. Needs state, accounts, admit, spend, paid, append, settlement, charge.
local SETTLE_SHARED = 5
local late_told, ended_keys, tombstone_of, life_of, ended_of, post_of, entry_of, posted = {}, {}, {}, {}, {}, {}, {}, {}
local told_count, post_count = 0, 0

-- Makes the late queue's entry of a call that the keeper decides by the ledger, with a reclaim's charge of it; the batch number is
-- omitted. The entry is added with those of its part.
local function queue_late(argv, a, count, mode, flags, paid, reclaimed_hold)
  local kept = SETTLEMENT.since(argv[a], 'layout')
  told_count = told_count + 1
  late_told[told_count] = {'a', written_as == TODAY and kept or KEPT.earlier(kept), 'u', argv[a + 1], 'c', argv[a + 2], 'm', argv[a + 3],
    't', has(flags, FLAG_USES) and argv[a + 4] or '', 'b', paid or '',
    'charged', format('%.0f', reclaimed_hold and HOLD.field(reclaimed_hold, 'charged') or 0),
    'acknowledged', mode == MODE_RECOVER and argv[a + count - 1] or ''}
end

-- Settles one call, whose arguments begin at `a`; returns the answer. If many calls share its part, the places of its accounts begin
-- at `first` in the shape.
local function settle_one(keys, hold_key, at_hold, account_count, argv, a, count, at_tenant, at_organization, at_key, at_user, shape, first, group)
  local batch, run_id, mode, tokens, quota_tokens, credits, units, over, service_id, key_id, flags, tombstone, request_id = SETTLEMENT.read(argv[a])
  local with_user, one_time, uses = has(flags, FLAG_USER), has(flags, FLAG_ONE_TIME), has(flags, FLAG_USES)
  local plain, given = 3 + (with_user and 1 or 0) + ((one_time or uses) and 1 or 0), uses and 5 or 4
  local paid_given = count - given - (mode >= MODE_POST and 1 or 0) -- and a definition for each account
  local paid = paid_given > 0 and argv[a + given]
  if account_count < plain or paid_given < 0 or (account_count > plain) ~= (paid_given > 0) then
    return redis.error_reply('ERR settle takes a key and an argument for each flag')
  end
  if byte(hold_key, KIND_AT) ~= HOLD_KIND then return redis.error_reply('ERR settle takes a hold as its last key') end
  local base = places_before
  local marker, epoch = raw_of[base + 1], marked_epoch
  if marker ~= last_marker or run_id ~= marked_by then epoch = verified(marker, run_id) end
  if not epoch then return CODE.pack{code = SETTLED_UNVERIFIED} end
  local now = shared_now or clock(batch)
  shared_now = now
  local entry_id = mode >= MODE_POST and mode ~= MODE_RECOVER and argv[a + count - 1]
  local source = mode == MODE_CORRECT and correction_of(request_id) or request_id
  local since = entry_id and moment_of_use(entry_id)
  if entry_id and (shape and (posted[source] or (not since and posted[entry_id])) or dealt_with(keys[own_before + 3], entry_id, keys[own_before + 4], source)) then
    return SETTLED.pack{code = SETTLED_DONE, now = now, epoch = epoch}
  end
  local at_activation = (one_time or uses) and base + (shape and byte(shape, first + plain - 1) or 1 + plain)
  local packed_hold = raw_of[at_hold]
  if shape and ended_of[hold_key] ~= nil then packed_hold = ended_of[hold_key] end
  local slots, reclaimed, hold_flags, hold_tokens, key_tpm, user_tpm, tenant_tpm, organization_tpm, hold_credits = 0, nil, 0, 0, 0, 0, 0, 0, 0
  if packed_hold then
    if byte(packed_hold) ~= TODAY then packed_hold = today(packed_hold, hold_key) end
    slots = 1
    hold_flags, hold_tokens, key_tpm, user_tpm, tenant_tpm, organization_tpm, hold_credits = HOLD.read(packed_hold)
    if has(hold_flags, HOLD_RECLAIMED) then
      slots, reclaimed, hold_flags, hold_tokens, key_tpm, user_tpm, tenant_tpm, organization_tpm, hold_credits = 0, true, 0, 0, 0, 0, 0, 0, 0
    end
  end
  local gone
  if slots == 0 or service_id == 0 or not (raw_of[at_tenant] and raw_of[at_organization]) then
    gone = why_gone(entry_id, packed_hold, reclaimed, raw_of[at_tenant] and raw_of[at_organization], service_id)
  end
  if gone then -- what a newer version has stored is told before anything is written; else when it is opened
    for _, at in ipairs({at_tenant, at_organization, at_key, with_user and at_user or nil}) do
      if raw_of[at] then today(raw_of[at], keys[at + keys_before]) end
    end
  end
  if mode == MODE_RECOVER or (gone and mode == MODE_CHARGE) then
    queue_late(argv, a, count, mode, flags, paid, reclaimed and packed_hold)
  end
  if gone then return GONE.pack{code = gone, now = now, epoch = epoch} end
  local counted = with_user and has(hold_flags, HOLD_USER)
  local api_key = account_of[at_key]
  if not api_key then
    local whole = slots == 1 and key_tpm >= 0
    if whole or api_key == nil then api_key = limited_account(at_key, SCOPE_KEY, keys[at_key + keys_before], whole) end
  end
  local user = counted and account_of[at_user]
  if user == nil then user = open_user(at_user, keys[at_user + keys_before]) end
  local tenant = account_of[at_tenant] or open_tenant(at_tenant, keys[at_tenant + keys_before], now, epoch)
  -- then only the limits of the organization matter
  local tokens_alone = has(flags, FLAG_COUNTS) and not (one_time or uses or has(flags, FLAG_PAYS) or mode == MODE_CORRECT)
  local organization = account_of[at_organization]
  if not organization then
    local whole = not tokens_alone or hold_credits > 0 or slots == 1 and organization_tpm >= 0
    if whole or organization == nil then organization = limited_account(at_organization, SCOPE_ORGANIZATION, keys[at_organization + keys_before], whole) end
  end
  local activation, reset = at_activation and open_activation(at_activation, keys[at_activation + keys_before]), reset_of[at_tenant]

  local seq = tenant.seq
  if reset then -- it comes with the first call that moves the tenant
    seq, event_count, reset_of[at_tenant] = seq - 1, event_count + 1, nil
    event_of[event_count] = reset
  end
  if hold_credits > 0 then put_back(tenant, organization, hold_flags, hold_tokens, hold_credits)
  elseif hold_tokens ~= 0 then hold_more(tenant, QUOTA_AT, -hold_tokens) end
  local accounts, held, money, budget_tokens, requests = nil, nil, 0, 0, 0
  if paid then
    accounts = accounts_at(keys, shape, group, shape and first + plain or base + plain + 2,
      shape and first + account_count - 1 or base + account_count + 1, argv, paid_given > 1 and a + given + 1, now)
    if paid_given > 1 and paid_given ~= 1 + #accounts then error({err = 'ERR settle takes a definition for each budget account'}) end
    held, money, budget_tokens, requests = give_back(accounts, slots == 1 and packed_hold, since), paid_of(paid)
  elseif slots == 1 and HOLD.field(packed_hold, 'budgets') > 0 then error({err = 'ERR a hold ends with its budget accounts'}) end
  -- a call that ends without a charge moves no account
  local free = mode == MODE_RELEASE or (mode == MODE_RECLAIM and tokens == 0 and quota_tokens == 0 and credits == 0 and units == 0
    and money == 0 and budget_tokens == 0 and requests == 0)
  local activates = false
  if one_time and mode ~= MODE_CORRECT then
    activates, credits = release_activation(activation, organization, credits, free, has(hold_flags, HOLD_ONE_TIME) and slots or 0)
  end
  if uses and has(hold_flags, HOLD_USES) and hold_credits == 0 then -- before units were counted, holds had a price and no units
    activation.held = held_after(activation.held, HOLD.field(packed_hold, 'units'))
  end
  local entry, facts = nil, no_facts
  if not free then
    local budgets = accounts and pay_windows(accounts, held, money, budget_tokens, requests, since, now, packed_hold, request_id) or ''
    if carries.begun then event_count = carries.told(event_of, event_count, tenant.organization_id, now, epoch) end
    if tokens_alone then -- as `charge` does, of tokens alone
      tenant.used, tenant.seq = tenant.used + quota_tokens, tenant.seq + 1
      if now > tenant.ledger_at then tenant.ledger_at = now end
      entry = tokens_event(tenant, EVENT_CONSUME, ENTRY_TOKENS + status_flag(tenant),
        mode == MODE_POST and NOTE_LATE or mode == MODE_RECLAIM and NOTE_RECLAIMED or 0, tenant.ledger_at, epoch, key_id, service_id,
        quota_tokens, source, argv[a + 1], argv[a + 2], argv[a + 3], money, budget_tokens, requests, budgets)
    else
      entry, facts = charge(mode, flags, quota_tokens, credits, units, over, key_id, service_id, argv, a, source, tenant, organization, activation, now,
        epoch, activates, money, budget_tokens, requests, budgets)
    end
  elseif service_id ~= 0 and argv[a + 3] ~= '' then entry = unmoved(mode, key_id, service_id, request_id, argv, a, tenant, now, epoch) end
  if uses then spend_keep(organization, activation, argv[a + 4], now) end
  if entry then -- what says nothing of itself has none
    event_count = event_count + 1
    event_of[event_count] = entry
  end
  local tombstone_of_call = mode == MODE_RECLAIM and slots == 1 and HOLD.replaced(packed_hold, {flags = hold_flags + HOLD_RECLAIMED, charged = quota_tokens})
  member_count = member_count + 1
  member_of[member_count], ended_keys[member_count], tombstone_of[member_count], life_of[member_count] = request_id, hold_key, tombstone_of_call, tombstone
  if shape then ended_of[hold_key] = tombstone_of_call end
  if entry_id then
    post_count = post_count + 1
    post_of[post_count], entry_of[post_count] = source, entry_id
    if shape then posted[source], posted[entry_id] = true, true end
  end

  -- how far the organization's account is written: with its windows, or only its head
  if organization_far < FAR_LEDGER and (hold_credits > 0 or not tokens_alone and (uses or one_time or has(flags, FLAG_PAYS))) then organization_far = FAR_LEDGER end
  if api_key then give_back_rate(api_key, now, slots, key_tpm, tokens) end
  if user then give_back_rate(user, now, slots, user_tpm, tokens) end
  give_back_rate(tenant, now, slots, tenant_tpm, tokens)
  if organization then give_back_rate(organization, now, slots, organization_tpm, tokens) end
  if shape or activation or accounts then
    moved_of[at_tenant], moved_of[at_organization], moved_of[at_key] = true, true, api_key
    if user then moved_of[at_user] = true end
    if activation then moved_of[at_activation] = true end
    if accounts then keep_accounts(accounts) end
  else part_is = PART_ALONE end
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

local function begin_settlements(own, before, many)
  enter_part(own, before, FAR_LEDGER)
  told_count, post_count, carries.begun = 0, 0, false
  if many then posted, ended_of = {}, {} end
end

-- The writes of a part that may fail, all or none; then the rest.
local function end_settlements(keys, places)
  local late_queue = keys[own_before + 3]
  local err = told_count > 0 and tell(late_queue, late_told, told_count)
  if not err and member_count > 0 then
    err = append_and(keys[own_before + 2], event_of, event_count, 'ZREM', keys[own_before + 1], member_of, member_count)
    if err and told_count > 0 then call('XDEL', late_queue, values(late_told, 1, told_count)) end
  end
  if err then error(err) end
  for i = 1, post_count do
    call('HSET', keys[own_before + 4], post_of[i], '1')
    if not moment_of_use(entry_of[i]) then call('XDEL', late_queue, entry_of[i]) end
  end
  end_holds()
  leave_part(keys, places)
end

-- Settles one call. KEYS[1] d  KEYS[2] x  KEYS[3] late queue  KEYS[4] g  KEYS[5] m
local function settle_alone(keys, argv)
  local places = #keys - SETTLE_SHARED
  look_up(keys, SETTLE_SHARED - 1, #keys)
  begin_settlements(0, 0)
  local answer = settle_one(keys, keys[#keys], places + 1, places - 1, argv, 1, #argv, 2, 3, 4, 5)
  end_settlements(keys, places)
  write_all()
  return answer
end

-- Settles the calls of a part, those after `done`, whose places come after `before`.
local function settle_part(keys, argv, part, before, done, answers)
  local many, places, holds = calls_of[part] > 1, places_of[part], #keys - call_count
  begin_settlements((part - 1) * (SETTLE_SHARED - 1), before, many)
  if not many then -- it names its accounts in their order
    local i = done + 1
    answers[i] = settle_one(keys, keys[holds + i], holds - keys_before + i, own_of[i], argv, argument_of[i], count_of[i], before + 2, before + 3, before + 4, before + 5)
    return end_settlements(keys, places)
  end
  local api_keys, users, tenants, organizations = values(scope_places)
  local own, at_tenant, at_organization, at_key, at_user, group
  for i = done + 1, done + calls_of[part] do
    if not group or group_of[i] ~= group then -- else its accounts are those of the call before
      own, at_tenant, at_organization, at_key, at_user, group = own_of[i], tenants[i], organizations[i], api_keys[i], users[i], group_of[i]
    end
    answers[i] = settle_one(keys, keys[holds + i], holds - keys_before + i, own, argv, argument_of[i], count_of[i], at_tenant, at_organization, at_key, at_user,
      argv[1], first_of[i], group)
  end
  end_settlements(keys, places)
end

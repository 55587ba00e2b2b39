-- reserve: the decision about each call, and the writes of all. Needs state, accounts, take, admit, spend, hold, paid, append.
local RESERVE_SHARED = 3
local had_nothing, held_now = {}, {}

-- The hold to raise, opened; the tokens it took by scope; whether it is of another service; and packed. nil and nothing if it is
-- gone, or none is to be raised: then everything is taken.
local function hold_to_raise(name, service_id, many)
  local packed = many and held_now[name] or call('GET', name)
  packed = packed and today(packed, name)
  local hold = packed and HOLD.opened(packed)
  if not hold or has(hold.flags, HOLD_RECLAIMED) then return nil, had_nothing end
  return hold, {hold.key_tpm >= 0 and hold.key_tpm, has(hold.flags, HOLD_USER) and hold.user_tpm, hold.tenant_tpm, hold.organization_tpm >= 0 and hold.organization_tpm},
    hold.service_id ~= 0 and hold.service_id ~= service_id, packed
end

local function copied(account) return {values(account)} end

local NO_BUDGETS = HOLD.span('quota_tokens', '', {quota_tokens = -1})

-- Takes a hold for one call, whose arguments begin at `a`; returns the answer. If many calls share its part, the places of its
-- accounts begin at `first` in the shape.
local function reserve_one(keys, hold_key, account_count, argv, a, count, at_tenant, at_organization, at_key, at_user, shape, first, group)
  local batch, run_id, catalogue, need, quota_tokens, ceiling, least, credits_least, credits, units, ttl, service_id, plan_id, flags, request_id =
    RESERVE.read(argv[a])
  local with_user, one_time, counts, uses = has(flags, FLAG_USER), has(flags, FLAG_ONE_TIME), has(flags, FLAG_COUNTS), has(flags, FLAG_USES)
  local plain, given = 3 + (with_user and 1 or 0) + ((one_time or uses) and 1 or 0), uses and 3 or 2
  if account_count < plain or count < given or (account_count > plain) ~= (count > given) then
    return redis.error_reply('ERR reserve takes a key and an argument for each flag')
  end
  if byte(hold_key, KIND_AT) ~= HOLD_KIND then return redis.error_reply('ERR reserve takes a hold as its last key') end
  local base = places_before
  local marker, epoch, version = raw_of[base + 1], marked_epoch, marked_version
  if marker ~= last_marker or run_id ~= marked_by then epoch, version = verified(marker, run_id) end
  if not epoch then return CODE.pack{code = VERDICT_UNVERIFIED} end
  if catalogue < version then return CODE.pack{code = VERDICT_STALE} end
  local now = shared_now or clock(batch)
  shared_now = now
  local user_id, tiers = argv[a + 1], argv[a + 2]
  local at_activation = (one_time or uses) and base + (shape and byte(shape, first + plain - 1) or 1 + plain)
  if not (raw_of[at_tenant] and raw_of[at_organization] and raw_of[at_key]) then return CODE.pack{code = VERDICT_UNKNOWN_ACCOUNT} end
  local raises, raised_hold, held_before, unlike, raised_packed = flags >= FLAG_RAISES, nil, had_nothing, false, nil
  if raises then raised_hold, held_before, unlike, raised_packed = hold_to_raise(hold_key, service_id, shape) end
  local api_key = account_of[at_key]
  if not api_key and (api_key == nil or held_before[SCOPE_KEY]) then api_key = limited_account(at_key, SCOPE_KEY, keys[at_key + keys_before], held_before[SCOPE_KEY]) end
  local tenant = account_of[at_tenant] or open_tenant(at_tenant, keys[at_tenant + keys_before], now, epoch)
  local organization = account_of[at_organization]
  if not organization then
    local whole = held_before[SCOPE_ORGANIZATION] or at_activation or credits > 0 or raised_hold and raised_hold.credits > 0
    if whole or organization == nil then organization = limited_account(at_organization, SCOPE_ORGANIZATION, keys[at_organization + keys_before], whole) end
  end
  local user = with_user and account_of[at_user]
  if user == nil then user = limited_user(at_user, keys[at_user + keys_before], tenant, now) end
  local activation, reset = at_activation and open_activation(at_activation, keys[at_activation + keys_before]), reset_of[at_tenant]
  -- amounts that change before the last check are changed on copies
  if activation or raises then tenant, organization, activation = copied(tenant), organization and copied(organization), activation and copied(activation) end
  scopes[SCOPE_KEY], scopes[SCOPE_USER], scopes[SCOPE_TENANT], scopes[SCOPE_ORGANIZATION] = api_key, user, tenant, organization

  local accounts = account_count > plain and accounts_at(keys, shape, group, shape and first + plain or base + plain + 2,
    shape and first + account_count - 1 or base + account_count + 1, argv, a + given + 1, now, raises)
  if accounts and count ~= given + 1 + #accounts then return redis.error_reply('ERR reserve takes a definition for each budget account') end

  local key_id, expires
  if api_key then key_id, expires = api_key.key_id, has(api_key.flags, REVOKED) and LONG_AGO or api_key.expires
  else key_id, expires = key_of_state(raw_of[at_key]) end
  if expires > 0 and now >= expires then return refused(VERDICT_REVOKED, now, SCOPE_KEY) end
  if has(tenant.flags, MANUAL_BLOCK) then
    return refused(VERDICT_TENANT_BLOCKED, now, SCOPE_TENANT, 0, floor(tenant.flags / BLOCK_CAUSE))
  end
  if plan_id >= 0 and plan_id ~= tenant.plan_id then return refused(VERDICT_OTHER_PLAN, now, SCOPE_TENANT, KIND_QUOTA, 0, tenant.plan_id) end
  if unlike then return redis.error_reply('ERR reserve raises a hold of its own service, or of none') end
  local lacking, refusal, requests_scope, requests_limit, requests_used, tokens_scope, tokens_limit, tokens_used =
    take_rate_limits(scopes, now, need, held_before)
  if lacking then return lacking end
  if has(flags, FLAG_SUBSCRIPTION) and not has(tenant.flags, HAS_PLAN) then
    return roll_back(refused(VERDICT_NOT_INCLUDED, now, SCOPE_ORGANIZATION))
  end
  if refusal then return roll_back(refusal) end
  if raised_hold then put_back(tenant, organization, raised_hold.flags, raised_hold.tokens, raised_hold.credits) end
  local tokens, bounds
  tokens, refusal, bounds = quota_hold(tenant, now, counts, quota_tokens < 0 and need or quota_tokens, ceiling, least)
  if refusal then return roll_back(refusal) end
  if accounts then
    local enough
    enough, refusal = budget_needs(accounts, now, argv[a + given], raised_packed, tenant.admission == STRICT)
    if not enough then return roll_back(refusal) end
  elseif raised_hold and raised_hold.budgets > 0 then return roll_back(redis.error_reply('ERR a hold is raised with its budget accounts')) end
  if one_time then credits, flags = reserve_activation(activation, credits, flags, raised_hold) end
  if credits > 0 then credits, refusal = credit_hold(organization, now, credits, credits_least) end
  -- the amount held by units is stored with their service
  if uses and not refusal then credits, refusal = 0, spend_hold(organization, activation, raised_hold, tiers, units, now) end
  if refusal then return roll_back(refusal) end

  local tail, money, budget_tokens, told = '', 0, 0, ''
  if accounts then tail, money, budget_tokens, told = hold_windows(accounts, now) end
  tenant.held = tenant.held + tokens
  if credits > 0 then organization.credits_held = organization.credits_held + credits end
  -- The flags of the call, without the one that means reclaimed in a hold, and without the user's if nothing of it is stored.
  local kept = flags % FLAG_RAISES - (has(flags, FLAG_SUBSCRIPTION) and FLAG_SUBSCRIPTION or 0) - (with_user and not user and 1 or 0)
  local hold = HOLD.span('', 'observed', {flags = kept, tokens = tokens, key_tpm = takes[1], user_tpm = takes[2], tenant_tpm = takes[3],
    organization_tpm = takes[4], credits = credits}) .. hold_of_call(service_id, now, ttl, tenant, key_id, units)
    .. (quota_tokens < 0 and not accounts and NO_BUDGETS
      or HOLD.span('quota_tokens', '', {quota_tokens = min(quota_tokens, 0), money = money, budget_tokens = budget_tokens, budgets = #tail}))
    .. user_id .. (uses and '\0' .. tiers or '') .. tail
  write_of[write_count + 1], write_of[write_count + 2], member_of[member_count + 1], member_of[member_count + 2] = hold_key, hold, now + ttl, request_id
  write_count, member_count = write_count + 2, member_count + 2
  if reset then -- it comes with the first call that moves the tenant
    event_count, reset_of[at_tenant] = event_count + 1, nil
    event_of[event_count] = reset
    tenant_far = FAR_LEDGER
  end
  if uses then organization_far = FAR_LEDGER
  elseif (credits > 0 or raised_hold) and organization_far < FAR_HELD then organization_far = FAR_HELD end
  if activation or raises then account_of[at_tenant], account_of[at_organization] = tenant, organization end
  if shape or activation or accounts then
    moved_of[at_tenant], moved_of[at_organization], moved_of[at_key] = true, true, true
    if user then moved_of[at_user] = true end
    if activation then account_of[at_activation], moved_of[at_activation] = activation, true end
    if accounts then keep_accounts(accounts) end
    if shape then held_now[hold_key] = hold end
  else part_is = PART_ALONE end
  return admitted(now, tokens, tenant, organization and organization.credit_limit - organization.credits_used - organization.credits_held
    or credits_free_of(raw_of[at_organization]), credits, bounds,
    requests_scope, requests_limit, requests_used, tokens_scope, tokens_limit, tokens_used) .. told
end

-- The writes of a part that may fail, all or none; then the rest.
local function end_reserves(keys, places)
  local err = member_count > 0 and append_and(keys[own_before + 2], event_of, event_count, 'ZADD', keys[own_before + 1], member_of, member_count)
  if err then error(err) end
  leave_part(keys, places)
end

-- Takes a hold for one call. KEYS[1] d  KEYS[2] x  KEYS[3] m
local function reserve_alone(keys, argv)
  local places = #keys - RESERVE_SHARED
  look_up(keys, RESERVE_SHARED - 1, #keys - 1)
  enter_part(0, 0, FAR_HELD)
  local answer = reserve_one(keys, keys[#keys], places - 1, argv, 1, #argv, 2, 3, 4, 5)
  end_reserves(keys, places)
  write_all()
  return answer
end

-- Takes holds for the calls of a part, those after `done`, whose places come after `before`.
local function reserve_part(keys, argv, part, before, done, answers)
  local many, places, holds = calls_of[part] > 1, places_of[part], #keys - call_count
  enter_part((part - 1) * (RESERVE_SHARED - 1), before, FAR_HELD)
  if many then held_now = {} end
  if not many then -- it names its accounts in their order
    local i = done + 1
    answers[i] = reserve_one(keys, keys[holds + i], own_of[i], argv, argument_of[i], count_of[i], before + 2, before + 3, before + 4, before + 5)
    return end_reserves(keys, places)
  end
  local api_keys, users, tenants, organizations = values(scope_places)
  local own, at_tenant, at_organization, at_key, at_user, group
  for i = done + 1, done + calls_of[part] do
    if not group or group_of[i] ~= group then -- else its accounts are those of the call before
      own, at_tenant, at_organization, at_key, at_user, group = own_of[i], tenants[i], organizations[i], api_keys[i], users[i], group_of[i]
    end
    answers[i] = reserve_one(keys, keys[holds + i], own, argv, argument_of[i], count_of[i], at_tenant, at_organization, at_key, at_user,
      argv[1], first_of[i], group)
  end
  end_reserves(keys, places)
end

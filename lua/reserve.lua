-- reserve: take a hold on every limit of one request, or on none.
-- A call with only its head known holds a request and slots; once its body is read the hold is raised: what it took already is not
-- taken twice. A hold that is gone is taken as new; a refused raise leaves it unchanged.
-- needs: accounts batch bucket budget_accounts budgets quota spend state
-- sets: account_of event_count event_of member_count member_of organization_far reset_of scopes shared_now tenant_far write_count write_of
-- KEYS[1] d deadlines (ZSET)  KEYS[2] x outbox (due reset)  KEYS[3] m marker
-- then  t tenant  o organization  k API key  u user, if flags has USER  a activation and month, if flags has ONE_TIME or 16
--   b each budget account, written here; each account of one owner is followed by its index (ZSET)
-- KEYS[last] h hold, written here
-- ARGV[1] packed: batch (lib/state.lua), run id (40), catalogue version, need, the part of need that counts toward the quota (-1: all,
--         if no plan weighs kinds), ceiling (the most), least and credits' least (the amounts they may be cut to; 0 if the
--         call states its maximum; -1: nothing is cut, under no plan); ceiling and least are those of the quota, too; credits, units,
--         ttl ms, service, the plan whose weights these use (-1: any),
--         flags (1 user, 2 One-Time, 4 counts tokens, 8 Subscription meter,
--         16 usage, 32 credits, 64 credits by token, 128 raises the existing hold), request id (36)
-- ARGV[2] the caller's own user id, up to 128 characters  ARGV[3] the service's tiers, if flags has 16
-- ARGV[last] with budget accounts, packed: money, its most (what a strict plan holds), its least (what it may be
--         cut to), tokens, their most, their least, and any steps of these budgets that have another model for the call (budget, millionths of
--         its limit, 0 if it is only told, 1 if the call stops where it is reached, 2 if it stops, 3 if it stops where it is not); then the definition of each account
-- Of many calls, 2 to 64, of one partition or several: ARGV[1] their shape (lib/batch.lua), then their arguments one after another; keys
--   by the shape. Returns a list: each call's own answer or error
-- Returns packed: verdict, now, then
--   admitted (1; 2 if a strict plan makes the hold the call's limit; 2 more if the plan lets calls go on while Redis
--     is away, so that a lease is wanted): tokens held, the cycle's total,
--     tokens free (both -1: unlimited), next reset, credits free, credits held, requests {scope, limit, used, reset},
--     tokens {scope, limit, used, reset} (scope 0: none); with budgets money and tokens they hold, and the
--     tightest that enforces {id (0: none), limit, used, reset, unit}
--   refused: scope, kind, used, limit, until (0: unknown); for a budget its id and unit, the amount that calls in flight
--     hold of it, and the amount that this one needs
--   -15 a step of a budget sends the call as another model: a byte for each step, 1 if it is reached
--   0 unverified, -1 stale catalogue, -2 unknown account: nothing more
--   -12 the tenant has another plan: like refused, with its id as the limit
--   -14 accounts of single owners cannot be made, as there are too many: like refused, with a bit for each such account as used
-- Verdicts of a refusal: -3 key revoked or expired, -4 tenant blocked, -5 not included, -6 rate limited, -7 too many at once,
--   -8 quota exceeded, -9 held by calls in flight, -10 too few credits, -11 spend cap reached, -13 budget exceeded
-- Example: 10 a minute, 10 taken a second ago -> {-6, now, 3, 1, 10, 10, now + 5000}
if #KEYS < 7 or #ARGV < 2 then return redis.error_reply('ERR reserve takes 7 or more keys and 2 or more arguments') end
if #ARGV[1] == RESERVE_BYTES then return run_call(reserves, KEYS, ARGV) end
if not fits(ARGV[1], KEYS, ARGV, RESERVE_SHARED) then return redis.error_reply('ERR reserve takes many calls as their shape has them') end
return answer_each(reserves, KEYS, ARGV)

-- functions: a hold for one call by steps, then the writes of all calls. Upvalues of lib/accounts.lua have the places of the call's accounts.
local RESERVE_SHARED = 3
local had_nothing, held_now = {}, {}

-- The part of a hold with a call's accounts and times; the last one is cached.
local service_held_for, now_held_for, ttl_held_for, tenant_held_for, key_held_for, units_held_for, said_of_call
local function hold_of_call(service_id, now, ttl, tenant, key_id, units)
  if now ~= now_held_for or key_id ~= key_held_for or tenant ~= tenant_held_for or service_id ~= service_held_for or ttl ~= ttl_held_for or units ~= units_held_for then
    service_held_for, now_held_for, ttl_held_for, tenant_held_for, key_held_for, units_held_for = service_id, now, ttl, tenant, key_id, units
    said_of_call = HOLD.span('observed', 'quota_tokens', {service_id = service_id, deadline = now + ttl, organization_id = tenant.organization_id,
      tenant_id = tenant.tenant_id, key_id = key_id, units = units, created = now})
  end
  return said_of_call
end

-- An API key's id and expiry (0: never; a revoked key expired long ago), from its packed state; the last result is cached, since
-- calls that come together mostly have the same key.
local LONG_AGO = 1
local asked_key, id_asked, expires_asked
local function key_of_state(raw)
  if raw ~= asked_key then
    local key_flags = KEY.field(raw, 'flags')
    local expires, key_id = KEY.read(raw)
    asked_key, id_asked, expires_asked = raw, key_id, has(key_flags, REVOKED) and LONG_AGO or expires
  end
  return id_asked, expires_asked
end

-- The hold to raise, opened; the tokens it took by scope; whether it is of another service; and packed. nil and nothing if it is
-- gone, or none is to be raised: then everything is taken.
local function hold_to_raise(name, service_id)
  local packed = shape and held_now[name] or call('GET', name)
  packed = packed and today(packed, name)
  local hold = packed and HOLD.opened(packed)
  if not hold or has(hold.flags, HOLD_RECLAIMED) then return nil, had_nothing end
  return hold, {hold.key_tpm >= 0 and hold.key_tpm, has(hold.flags, HOLD_USER) and hold.user_tpm, hold.tenant_tpm, hold.organization_tpm >= 0 and hold.organization_tpm},
    hold.service_id ~= 0 and hold.service_id ~= service_id, packed
end

local NO_BUDGETS = HOLD.span('quota_tokens', '', {quota_tokens = -1})
local NO_BUCKETS = ADMITTED.span('requests_scope', '', {
  requests_scope = 0, requests_limit = 0, requests_used = 0, requests_reset = 0, tokens_scope = 0, tokens_limit = 0, tokens_used = 0, tokens_reset = 0})

-- Takes a hold for one call, whose arguments begin at `a`; returns the answer. Accounts change as they are checked; a refusal behind
-- that rolls them back, or they are copies.
local function reserve_one(keys, hold_key, _, argv, a, count)
  --> verify: the call's shape, its partition, and that all its accounts are there
  --> open: the hold that it raises, and its accounts
  --> authorize: what refuses the caller, however much is free
  --> decide: takes from buckets and slots, asks all windows; a refusal puts back all that was taken
  --> hold: in the windows where decide did not yet
  --> write: the hold, and what else the function call has to write
  --> answer: what it holds, and its tightest limits
end

-- step verify of reserve_one: the call has a key and an argument for each flag, in a partition that this program may write.
-- reads: argv a count hold_key
-- sets: now epoch need quota_tokens ceiling least credits_least credits units ttl service_id plan_id flags request_id
-- sets: with_user one_time counts uses accounts_before_budgets arguments_before_budgets
do
  local batch, run_id, catalogue, need, quota_tokens, ceiling, least, credits_least, credits, units, ttl, service_id, plan_id, flags, request_id =
    RESERVE.read(argv[a])
  local with_user, one_time, counts, uses = has(flags, FLAG_USER), has(flags, FLAG_ONE_TIME), has(flags, FLAG_COUNTS), has(flags, FLAG_USES)
  local accounts_before_budgets, arguments_before_budgets = 3 + (with_user and 1 or 0) + ((one_time or uses) and 1 or 0), uses and 3 or 2
  if account_count < accounts_before_budgets or count < arguments_before_budgets or (account_count > accounts_before_budgets) ~= (count > arguments_before_budgets) then
    return redis.error_reply('ERR reserve takes a key and an argument for each flag')
  end
  if byte(hold_key, KIND_AT) ~= HOLD_KIND then return redis.error_reply('ERR reserve takes a hold as its last key') end
  local epoch, version = verified(raw_of[places_before + 1], run_id)
  if not epoch then return CODE.pack{code = VERDICT_UNVERIFIED} end
  if catalogue < version then return CODE.pack{code = VERDICT_STALE} end
  local now = shared_now or clock(batch)
  shared_now = now
  if not (raw_of[at_tenant] and raw_of[at_organization] and raw_of[at_key]) then return CODE.pack{code = VERDICT_UNKNOWN_ACCOUNT} end
end

-- step open of reserve_one: accounts that change before the last check are copies.
-- reads: keys hold_key argv a count now epoch service_id flags credits with_user one_time uses accounts_before_budgets arguments_before_budgets
-- sets: raises raised_hold held_before is_other_service raised_packed api_key tenant organization user at_activation activation reset accounts
do
  local raises, raised_hold, held_before, is_other_service, raised_packed = flags >= FLAG_RAISES, nil, had_nothing, false, nil
  if raises then raised_hold, held_before, is_other_service, raised_packed = hold_to_raise(hold_key, service_id) end
  local api_key = account_of[at_key]
  if not api_key and (api_key == nil or held_before[SCOPE_KEY]) then api_key = limited_account(at_key, SCOPE_KEY, keys[at_key + keys_before], held_before[SCOPE_KEY]) end
  local tenant = account_of[at_tenant] or open_tenant(at_tenant, keys[at_tenant + keys_before], now, epoch)
  local at_activation = (one_time or uses) and places_before + (shape and byte(shape, named_from + accounts_before_budgets - 1) or 1 + accounts_before_budgets)
  local organization = account_of[at_organization]
  if not organization then
    local must_open = held_before[SCOPE_ORGANIZATION] or at_activation or credits > 0 or raised_hold and raised_hold.credits > 0
    if must_open or organization == nil then organization = limited_account(at_organization, SCOPE_ORGANIZATION, keys[at_organization + keys_before], must_open) end
  end
  local user = with_user and account_of[at_user]
  if user == nil then user = limited_user(at_user, keys[at_user + keys_before], tenant, now) end
  local activation, reset = at_activation and open_activation(at_activation, keys[at_activation + keys_before]), reset_of[at_tenant]
  if activation or raises then
    tenant, organization = {values(tenant)}, organization and {values(organization)}
    activation = activation and {values(activation)}
  end
  scopes[SCOPE_KEY], scopes[SCOPE_USER], scopes[SCOPE_TENANT], scopes[SCOPE_ORGANIZATION] = api_key, user, tenant, organization
  local accounts = account_count > accounts_before_budgets and accounts_at(keys, accounts_before_budgets, argv, a + arguments_before_budgets + 1, now, raises)
  if accounts and count ~= arguments_before_budgets + 1 + #accounts then return redis.error_reply('ERR reserve takes a definition for each budget account') end
end

-- step authorize of reserve_one: a revoked or expired key, a blocked tenant, another plan, a raise of another service's hold.
-- reads: now plan_id is_other_service api_key tenant
-- sets: key_id
do
  local key_id, expires
  if api_key then key_id, expires = api_key.key_id, has(api_key.flags, REVOKED) and LONG_AGO or api_key.expires
  else key_id, expires = key_of_state(raw_of[at_key]) end
  if expires > 0 and now >= expires then return refused(VERDICT_REVOKED, now, SCOPE_KEY) end
  if has(tenant.flags, MANUAL_BLOCK) then
    return refused(VERDICT_TENANT_BLOCKED, now, SCOPE_TENANT, 0, floor(tenant.flags / BLOCK_CAUSE))
  end
  if plan_id >= 0 and plan_id ~= tenant.plan_id then return refused(VERDICT_OTHER_PLAN, now, SCOPE_TENANT, KIND_QUOTA, 0, tenant.plan_id) end
  if is_other_service then return redis.error_reply('ERR reserve raises a hold of its own service, or of none') end
end

-- step decide of reserve_one: the limits of a minute, the plan, the quota, budgets, credits and the cap; a raised hold is given back first.
-- Windows of a call that nothing behind them refuses are held at once (`is_held`).
-- reads: argv a now need quota_tokens ceiling least credits_least credits units flags one_time counts uses arguments_before_budgets
-- reads: raised_hold held_before raised_packed tenant organization activation accounts
-- sets: requests_scope requests_limit requests_used tokens_scope tokens_limit tokens_used tokens bounds is_held held_names money budget_tokens budgets_answer
do
  local lacking, refusal, requests_scope, requests_limit, requests_used, tokens_scope, tokens_limit, tokens_used =
    take_rate_limits(scopes, now, need, held_before)
  if lacking then return lacking end
  if has(flags, FLAG_SUBSCRIPTION) and not has(tenant.flags, HAS_PLAN) then
    return roll_back(refused(VERDICT_NOT_INCLUDED, now, SCOPE_ORGANIZATION))
  end
  if refusal then return roll_back(refusal) end
  if raised_hold then give_back_amounts(tenant, organization, raised_hold.flags, raised_hold.tokens, raised_hold.credits) end
  local tokens, bounds
  tokens, refusal, bounds = quota_hold(tenant, now, counts, quota_tokens < 0 and need or quota_tokens, ceiling, least)
  if refusal then return roll_back(refusal) end
  local is_held, held_names, money, budget_tokens, budgets_answer
  if accounts then
    local strict = tenant.admission == STRICT
    if not (raised_hold or one_time or uses or credits > 0) then
      is_held, held_names, money, budget_tokens, budgets_answer = hold_at_once(accounts, argv[a + arguments_before_budgets], strict)
    end
    refusal = not is_held and refusal_by_budgets(accounts, now, argv[a + arguments_before_budgets], raised_packed, strict)
    if refusal then return roll_back(refusal) end
  elseif raised_hold and raised_hold.budgets > 0 then return roll_back(redis.error_reply('ERR a hold is raised with its budget accounts')) end
  if one_time then credits, flags = reserve_activation(activation, credits, flags, raised_hold) end
  if credits > 0 then credits, refusal = credit_hold(organization, now, credits, credits_least) end
  -- the amount held by units is stored with their service
  if uses and not refusal then credits, refusal = 0, spend_hold(organization, activation, raised_hold, argv[a + 2], units, now) end
  if refusal then return roll_back(refusal) end
end

-- step hold of reserve_one: from here on nothing refuses the call. For units their cap is held already (`spend_hold`).
-- reads: accounts held_names money budget_tokens budgets_answer is_held now tenant tokens credits organization
do
  if not accounts then held_names, money, budget_tokens, budgets_answer = '', 0, 0, ''
  elseif not is_held then held_names, money, budget_tokens, budgets_answer = hold_windows(accounts, now) end
  tenant.held = tenant.held + tokens
  if credits > 0 then organization.credits_held = organization.credits_held + credits end
end

-- step write of reserve_one: a due reset comes with the first call that moves the tenant. The flags of a hold are those of the call without
-- the one that means reclaimed there, and without the user's if nothing of it is stored.
-- reads: hold_key argv a now quota_tokens credits units ttl service_id flags request_id with_user uses raises raised_hold api_key tenant
-- reads: organization user at_activation activation reset accounts key_id tokens held_names money budget_tokens
do
  local hold_flags = flags % FLAG_RAISES - (has(flags, FLAG_SUBSCRIPTION) and FLAG_SUBSCRIPTION or 0) - (with_user and not user and 1 or 0)
  local hold = HOLD.span('', 'observed', {flags = hold_flags, tokens = tokens, key_tpm = takes[SCOPE_KEY], user_tpm = takes[SCOPE_USER],
    tenant_tpm = takes[SCOPE_TENANT], organization_tpm = takes[SCOPE_ORGANIZATION], credits = credits}) .. hold_of_call(service_id, now, ttl, tenant, key_id, units)
    .. (quota_tokens < 0 and not accounts and NO_BUDGETS
      or HOLD.span('quota_tokens', '', {quota_tokens = min(quota_tokens, 0), money = money, budget_tokens = budget_tokens, budgets = #held_names}))
    .. argv[a + 1] .. (uses and '\0' .. argv[a + 2] or '') .. held_names
  write_of[write_count + 1], write_of[write_count + 2], member_of[member_count + 1], member_of[member_count + 2] = hold_key, hold, now + ttl, request_id
  write_count, member_count = write_count + 2, member_count + 2
  if reset then
    event_count, reset_of[at_tenant] = event_count + 1, nil
    event_of[event_count] = reset
    tenant_far = FAR_LEDGER
  end
  if uses then organization_far = FAR_LEDGER
  elseif (credits > 0 or raised_hold) and organization_far < FAR_HELD then organization_far = FAR_HELD end
  if activation or raises then account_of[at_tenant], account_of[at_organization] = tenant, organization end
  if activation then account_of[at_activation] = activation end
  mark_moved(api_key, user, at_activation, accounts)
  if shape then held_now[hold_key] = hold end
end

-- step answer of reserve_one: quotients are rounded up without a function call: (a + -a % b) / b
-- reads: now credits tenant organization requests_scope requests_limit requests_used tokens_scope tokens_limit tokens_used tokens bounds budgets_answer
do
  local verdict, total, free = bounds and BOUNDED or VERDICT_ADMITTED, tenant.total, -1
  if tenant.on_store_failure == STORE_ALLOW then verdict = verdict + LEASES end
  if total >= 0 then
    free = tenant.limit - tenant.used - tenant.held
    if free < 0 then free = 0 end
  end
  local credits_free = organization and organization.credit_limit - organization.credits_used - organization.credits_held or credits_free_of(raw_of[at_organization])
  if requests_scope + tokens_scope == 0 then
    return ADMITTED.span('', 'requests_scope', {
      verdict = verdict, now = now, tokens = tokens, total = total, tokens_free = free, next_reset = tenant.next_reset, credits_free = credits_free,
      credits = credits}) .. NO_BUCKETS .. budgets_answer
  end
  return ADMITTED.span('', '', {
    verdict = verdict, now = now, tokens = tokens, total = total, tokens_free = free, next_reset = tenant.next_reset, credits_free = credits_free,
    credits = credits,
    requests_scope = requests_scope, requests_limit = requests_limit, requests_used = (requests_used + -requests_used % UNIT) / UNIT,
    requests_reset = requests_limit > 0 and (requests_used + -requests_used % requests_limit) / requests_limit or 0,
    tokens_scope = tokens_scope, tokens_limit = tokens_limit, tokens_used = (tokens_used + -tokens_used % UNIT) / UNIT,
    tokens_reset = tokens_limit > 0 and (tokens_used + -tokens_used % tokens_limit) / tokens_limit or 0,
  }) .. budgets_answer
end

local function begin_reserves(many)
  if many then held_now = {} end
end

-- Its deadlines come with the outbox' entries, or neither.
local function end_reserves(keys)
  local err = member_count > 0 and append_and(keys[own_before + 2], event_of, event_count, 'ZADD', keys[own_before + 1], member_of, member_count)
  if err then error(err) end
end

local reserves = {shared = RESERVE_SHARED, moves = FAR_HELD, begin = begin_reserves, run = reserve_one, finish = end_reserves}

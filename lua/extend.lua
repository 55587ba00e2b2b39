-- extend: keep many running calls of one partition: renew their deadlines, store the use observed so far, and hold more for streams
-- that have used up their holds.
-- needs: budget_accounts budgets entry quota state wide
-- allows: oom
-- KEYS[1] m  KEYS[2] d  KEYS[3] x  then for each call: h hold, t tenant, o organization, b each budget account
--   (all except h may repeat)
-- ARGV[1] run id  ARGV[2] ttl ms  then packed for each call: tokens observed, the same as weighed by the plan (-1: the plan does
--   not weigh), quota tokens wanted,
--   credits observed (-1) and credits wanted (0) if tokens do not set the price, for budgets the money observed, money and
--   tokens wanted and the number of accounts, whole (1: all that is wanted, or nothing; 2: and by the definitions of now, one for each
--   account, empty where it has none, which follow), request id (36)
-- A hold is raised to the wanted amount, as far as the accounts have it free.
-- Returns one packed string: now, then for each call its hold in tokens (-1: gone), in credits, exhausted
--   (0 no, 1 yes: the call may finish, 2 yes: its plan or a budget stops it, 3: refused, nothing was taken, and the
--   amounts are those that it could have held), for budgets in money and in tokens;
--   only 0 if the partition is unverified
-- Example: hold 100, observed 90, wanted 140, free 30 -> hold 130, exhausted 1; whole -> hold 100, answered 130, exhausted 3
if #KEYS < 6 or #ARGV < 3 or keys_of_calls(ARGV) ~= #KEYS - 3 then
  return redis.error_reply('ERR extend takes 3 keys and 3 a call and its budgets, 2 arguments and 1 a call')
end
local raw = stored(KEYS, 1)
local epoch = verified(raw[1], ARGV[1])
if not epoch then return CODE.pack{code = 0} end
local now = clock(NO_BATCH)
local deadline, events, renewals = now + tonumber(ARGV[2]), {}, {}
local writes, answer = {}, {CODE.pack{code = now}}
local tenant_at, tenants = account_opener(TENANT_FORM)
local organization_at, organizations = account_opener(ORGANIZATION_FORM)
local budget_at, budgets = budget_opener(now)
local at, call_at = 4, 3

while call_at <= #ARGV do
  local observed, quota_tokens, wanted, seen, worth, money_seen, money_wanted, budget_tokens_wanted, accounts, whole, request_id = EXTEND.read(ARGV[call_at])
  local known = #tenants
  local hold, tenant, organization = raw[at] and HOLD.opened(raw[at]), tenant_at(KEYS[at + 1], raw[at + 1]), nil
  if #tenants > known then events[#events + 1] = due(tenant, now, epoch) end
  if not hold or not tenant or has(hold.flags, HOLD_RECLAIMED) then
    answer[#answer + 1] = EXTENDED.pack{tokens = -1, credits = 0, exhausted = 0, money = 0, budget_tokens = 0}
  else
    if worth > 0 then organization = organization_at(KEYS[at + 2], raw[at + 2]) end
    local tokens, credits, exhausted = free_for(hold, tenant, organization, wanted, worth)
    local windows, money, budget_tokens, spent = no_windows, 0, 0, 0
    local in_budgets = budgets_of(budget_at, KEYS, raw, at + 3, accounts, ARGV, whole > 1 and call_at)
    if accounts > 0 then windows, money, budget_tokens, spent = free_in_windows(hold, raw[at], in_budgets, money_wanted, budget_tokens_wanted) end
    exhausted = max(exhausted, spent)
    if whole > 0 and exhausted > 0 then exhausted = 3 end
    answer[#answer + 1] = EXTENDED.pack{
      tokens = hold.tokens + tokens, credits = hold.credits + credits, exhausted = exhausted, money = hold.money + money,
      budget_tokens = hold.budget_tokens + budget_tokens,
    }
    if exhausted < 3 then
      if tokens > 0 then hold_more(tenant, QUOTA_AT, tokens) end
      if credits > 0 then hold_more(organization, CREDITS_AT, credits) end
      move_held(in_budgets, windows, {money, budget_tokens, 0, 0})
      hold.tokens, hold.credits = hold.tokens + tokens, hold.credits + credits
      hold.money, hold.budget_tokens = hold.money + money, hold.budget_tokens + budget_tokens
    end
    hold.observed, hold.quota_tokens, hold.seen = max(observed, hold.observed), max(quota_tokens, hold.quota_tokens), max(seen, hold.seen)
    hold.money_seen = max(money_seen, hold.money_seen)
    hold.deadline = deadline
    renewals[#renewals + 1] = format('%.0f', deadline)
    renewals[#renewals + 1] = request_id
    writes[#writes + 1] = KEYS[at]
    writes[#writes + 1] = HOLD.written(hold) .. HOLD.behind(raw[at])
  end
  at, call_at = at + 3 + accounts, call_at + 1 + max(0, whole - 1) * accounts
end
call('ZCARD', KEYS[2]) -- fails now, before anything is written, if it is no sorted set
local err = append(KEYS[3], events)
if err then return err end
if #renewals > 0 then call('ZADD', KEYS[2], 'XX', values(renewals)) end
for _, name in ipairs(tenants) do
  writes[#writes + 1] = name
  writes[#writes + 1] = TENANT.written(tenant_at(name))
end
for _, name in ipairs(organizations) do
  writes[#writes + 1] = name
  writes[#writes + 1] = ORGANIZATION.written(organization_at(name))
end
if #writes > 0 then call('MSET', values(all_as_written(writes, 1, #writes))) end
for _, account in ipairs(budgets) do write_budget(account, nil, now) end
return table.concat(answer)

-- functions: the changes to a hold and its accounts by extending one call
-- The tokens and credits that a hold lacks of the wanted amounts, as far as they are free; then exhausted: 0 no, 1 yes and the plan
-- lets the call finish, 2 yes and the plan stops it.
local function free_for(hold, tenant, organization, tokens, credits)
  local refusal, lacks = false, false
  tokens = has(hold.flags, HOLD_COUNTS) and max(0, tokens - hold.tokens) or 0
  if is_limited(tenant) then tokens, refusal = free_part(tenant, QUOTA_AT, tenant.limit, tokens) end
  credits = organization and has(hold.flags, HOLD_BY_TOKEN) and max(0, credits - hold.credits) or 0
  if credits > 0 then credits, lacks = free_part(organization, CREDITS_AT, organization.credit_limit, credits) end
  return tokens, credits, (refusal or lacks) and 1 + tenant.on_exhausted or 0
end

-- Returns a function that opens states, each name once, and the list of opened names.
local function account_opener(form)
  local opened, order = {}, {}
  return function(name, raw)
    local account = opened[name]
    if account == nil then
      account = raw and open(form, raw) or false
      opened[name] = account
      if account then order[#order + 1] = name end
    end
    return account
  end, order
end

-- The number of keys that the calls have, including their budget accounts; nil for an argument of the wrong size, or missing.
local function keys_of_calls(argv)
  local found, at = 0, 3
  while at <= #argv do
    if #argv[at] ~= EXTEND_BYTES then return nil end
    local accounts = EXTEND.field(argv[at], 'accounts')
    found, at = found + 3 + accounts, at + 1 + max(0, EXTEND.field(argv[at], 'whole') - 1) * accounts
  end
  return at == #argv + 1 and found or nil
end

-- Like `account_opener`, for budget accounts as of now, by the definition that a call brings for an existing one.
local function budget_opener(now)
  local opened, order = {}, {}
  return function(name, raw, defined)
    local account = opened[name]
    if not account then
      account = account_at(name, raw, now, defined ~= '' and defined)
      opened[name], order[#order + 1] = account, account
    end
    return account
  end, order
end

-- The budget accounts of a call; their definitions follow the argument at `defined_after`, or are those stored.
local function budgets_of(budget_at, keys, raw, first, count, argv, defined_after)
  local accounts = {}
  for i = 1, count do
    local at = first + i - 1
    accounts[i] = budget_at(keys[at], raw[at], defined_after and argv[defined_after + i])
  end
  return accounts
end

-- The free amount of a unit in windows that enforce, and whether the first one with too little stops its calls.
local function free_in(accounts, held, unit, more)
  local free, cuts = more, false
  for i in ipairs(held) do
    local meters, definition = accounts[i][METERS], accounts[i][DEFINITION]
    for place = 1, definition and definition[LIVE_COUNT] or 0 do
      local fields, at = definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE
      local flags = fields[at + WINDOW_FLAGS_AT]
      if flags < FLAG_CARRIES and flags % WINDOW_ENFORCES == unit and has(flags, WINDOW_ENFORCES) then
        local left = max(0, free_of(meters, place * 2 - 1, fields[at + WINDOW_LIMIT_AT]))
        if left < more and has(flags, WINDOW_CUTS) then cuts = true end
        free = min(free, left)
      end
    end
    for _, window in ipairs(unit == FLAG_MONEY and definition and definition[WIDES] or wide.none) do
      local flags, _, left = window[WIDE_FLAGS], wide.left(meters, window)
      if window[WIDE_PLACE] <= definition[LIVE_COUNT] and has(flags, WINDOW_ENFORCES) then
        left = max(0, left)
        if left < more and has(flags, WINDOW_CUTS) then cuts = true end
        free = min(free, left)
      end
    end
  end
  return free, cuts
end

-- The windows of a hold, the money and tokens that it lacks of the wanted amounts as far as these are free, and exhausted: 0 no, 1 yes,
-- 2 yes and a window with too little stops its calls.
local function free_in_windows(hold, packed_hold, accounts, money_wanted, budget_tokens_wanted)
  local size, exhausted = HOLD.field(packed_hold, 'budgets'), 0
  local held = size == 0 and no_windows or held_in(accounts, packed_hold, size)
  if not held then return no_windows, 0, 0, 0 end -- of other accounts: it is kept as it is, and keeps no other call from being kept
  local money, budget_tokens = max(0, money_wanted - hold.money), max(0, budget_tokens_wanted - hold.budget_tokens)
  for unit, more in pairs({[FLAG_MONEY] = money, [FLAG_TOKENS] = budget_tokens}) do
    if more > 0 then
      local free, cuts = free_in(accounts, held, unit, more)
      if free < more then exhausted = max(exhausted, cuts and 2 or 1) end
      if unit == FLAG_MONEY then money = free else budget_tokens = free end
    end
  end
  return held, money, budget_tokens, exhausted
end

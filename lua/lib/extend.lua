-- extend: the changes to a hold and its accounts by extending one call. Needs state, account.

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

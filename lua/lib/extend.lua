-- extend: what renewing one call does to its hold and accounts. Needs state.

-- tops up a hold until it covers what is wanted, as far as tokens and credits are free; answers exhausted:
-- 0 no, 1 yes and the plan lets the call finish, 2 yes and the plan cuts it
local function cover(hold, tenant, organization, tokens, credits)
  local short, more = false, tokens - hold.tokens
  if more > 0 and has(hold.flags, HOLD_COUNTS) then
    if tenant.total >= 0 and tenant.overage_policy ~= POLICY_BILL then
      local free = max(0, tenant.remaining - tenant.held)
      if more > free then short, more = true, free end
    end
    hold.tokens, tenant.held = hold.tokens + more, tenant.held + more
  end
  more = credits - hold.credits
  if more > 0 and organization and has(hold.flags, HOLD_BY_TOKEN) then
    local free = max(0, organization.balance + organization.credit_limit - organization.credits_held)
    if more > free then short, more = true, free end
    hold.credits, organization.credits_held = hold.credits + more, organization.credits_held + more
  end
  return short and 1 + tenant.on_exhausted or 0
end

-- one reader of states: each name once, whoever names it again
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

-- window: a limit, and its used and held amounts. The used amount of a window is at `at` of its meters, and the amount held by calls
-- in flight after it. Windows of budgets have meters of their own (account.lua); a tenant's quota, and an organization's credits and
-- spend, are in the opened account, at QUOTA_AT, CREDITS_AT and SPEND_AT. Needs state.
local POLICY_CARRY, STRICT = 1, 1

local function free_of(meters, at, limit) return limit - meters[at] - meters[at + 1] end

local function hold_more(meters, at, amount)
  local held = meters[at + 1] + amount
  if held < 0 then held, unheld = 0, true end
  meters[at + 1] = held > INTEGER_MAX and INTEGER_MAX or held
end

-- The part of an amount that a window has free, and whether that is too little.
local function free_part(meters, at, limit, more)
  local part = min(more, max(0, free_of(meters, at, limit)))
  return part, part < more
end

-- The free amount of a window that has less than needed, if it is at least `least`; or nil and the refusal: `exceeded`, if it would
-- be refused even with no call in flight.
local function cut(left, free, least, exceeded)
  if least <= free then return free end
  return nil, least > left and exceeded or VERDICT_QUOTA_HELD
end

-- Whether a tenant's tokens are limited, not only counted.
local function is_limited(tenant) return tenant.total >= 0 and tenant.overage_policy ~= POLICY_BILL end

-- The remaining tokens, as the ledger has them.
local function remaining_of(tenant) return tenant.total < 0 and tenant.limit or tenant.limit - tenant.used end

-- Gives back the amounts of a hold to the tenant and the organization.
local function put_back(tenant, organization, flags, tokens, credits)
  if tokens ~= 0 then hold_more(tenant, QUOTA_AT, -tokens) end
  if credits > 0 and not has(flags, HOLD_ONE_TIME) then hold_more(organization, has(flags, HOLD_USES) and SPEND_AT or CREDITS_AT, -credits) end
end

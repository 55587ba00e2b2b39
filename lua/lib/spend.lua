-- spend: the cost of Pay-Per-Use, in millionths of the currency, by the tiers of a calendar month. Needs state, calendar, take,
-- tiers.
-- The number of a month: year × 12 + month.
local function month_of(now)
  local year, month = civil(floor(now / DAY_MS))
  return year * 12 + month
end

-- The units used in the given month.
local function settled_of(activation, month) return month > activation.month and 0 or activation.quantity end

-- Updates the hold on the cap for a service: the cost of all its units in flight if they settled together now, so that their order
-- does not matter. An organization's hold is the sum over its services.
local function spend_keep(organization, activation, tiers, now)
  local capped = organization.cap >= 0 and activation.held > 0
  local price = capped and price_of(tiers, settled_of(activation, month_of(now)), activation.held) or 0
  organization.spend_held = max(0, organization.spend_held - activation.held_price + price)
  activation.held_price = price
end

-- Holds units, and of the cap what they add to the cost of those held; or returns the refusal: -11 the cap does not cover this, -9
-- calls in flight hold the rest, or there would be more units than can be counted. It has the spend of this month and the start of
-- the next. Without a cap nothing is refused, and the held units end at the largest number.
local function spend_hold(organization, activation, raised_hold, tiers, units, now)
  if raised_hold and has(raised_hold.flags, HOLD_USES) and raised_hold.credits == 0 then
    activation.held = held_after(activation.held, raised_hold.units)
  end
  local before = activation.held
  activation.held = before + units
  local most = min(activation.held, INTEGER_MAX)
  if organization.cap < 0 then
    activation.held = most
    return
  end
  local month = month_of(now)
  local settled, spent = settled_of(activation, month), month > organization.month and 0 or organization.spent
  if activation.held > most then return refused(VERDICT_QUOTA_HELD, now, SCOPE_ORGANIZATION, KIND_SPEND, spent, organization.cap, boundary(3, 1, now)) end
  spend_keep(organization, activation, tiers, now)
  if spent + organization.spend_held <= organization.cap or price_of(tiers, settled + before, units) <= 0 then return end
  local verdict = spent + price_of(tiers, settled, units) > organization.cap and VERDICT_SPEND_CAP_REACHED or VERDICT_QUOTA_HELD
  return refused(verdict, now, SCOPE_ORGANIZATION, KIND_SPEND, spent, organization.cap, boundary(3, 1, now))
end

-- Moves the month's quantity and the spend account; returns the cost of the units, and packed its basis: the month's units before
-- them, and the tiers.
local function spend_pay(organization, activation, tiers, units, now)
  local month = month_of(now)
  local price = price_of(tiers, settled_of(activation, month), units)
  if month > activation.month then activation.month, activation.quantity = month, 0 end
  if month > organization.month then organization.month, organization.spent = month, 0 end
  local before = activation.quantity
  activation.quantity, organization.spent, organization.spend_seq = folded(tiers, before + units), organization.spent + price, organization.spend_seq + 1
  return price, PRICED.pack{before = before} .. tiers
end

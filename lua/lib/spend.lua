-- spend: what an organization pays: credits, units of a calendar month by tiers under a cap, and prices paid once.
-- needs: calendar quota state
local MILLION = 1000000

-- The cost of a month's first units, rounded up once. Each packed tier has its last unit (-1: no end), and the price of a unit in
-- whole millionths and in millionths of one: twelve decimals, in integers throughout. Units given back beyond a month's first are
-- worth as much as the first ones.
local function cost_of(tiers, units)
  if units < 0 then return -cost_of(tiers, -units) end
  local cost, parts, below = 0, 0, 0
  for at = 1, #tiers, TIER_BYTES do
    if below >= units then break end
    local up_to, whole, part = TIER.read(tiers, at)
    local last = up_to < 0 or at + TIER_BYTES > #tiers
    local reached = last and units or min(units, up_to)
    local quantity = reached - below
    local millions = floor(quantity / MILLION)
    cost = cost + quantity * whole + millions * part
    parts = parts + (quantity - millions * MILLION) * part
    below = reached
  end
  return cost + ceil(parts / MILLION)
end

-- A month's units as stored: whole FOLDs beyond the second are omitted, since in the last tier a further FOLD costs the same to the
-- millionth. So units that are money have no upper bound.
local FOLD = 1000000000000000
local function folded(tiers, units)
  if units < 2 * FOLD then return units end
  if #tiers > TIER_BYTES then
    local up_to = TIER.read(tiers, #tiers - 2 * TIER_BYTES + 1)
    if up_to > FOLD then return units end
  end
  return FOLD + units % FOLD
end

-- The cost of `more` units after `before` others.
local function price_of(tiers, before, more) return cost_of(tiers, before + more) - cost_of(tiers, before) end

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

-- Stamps a movement of credits and adds it to the facts; `carried` is the change of the amount paid ahead.
local function move_credits(organization, now, amount, facts, carried)
  organization.credits_used, organization.credit_seq = organization.credits_used - amount, organization.credit_seq + 1
  organization.credit_at = max(now, organization.credit_at)
  facts.flags = facts.flags + ENTRY_CREDITS
  facts.credit_seq, facts.credits, facts.balance = organization.credit_seq, abs(amount), 0 - organization.credits_used
  if organization.ahead ~= 0 or carried ~= 0 then facts.carried = CARRIED.pack{ahead = organization.ahead, carried = carried} end
end

local PENDING = 1

-- The credits to hold, or nil and the refusal: -10 too few, -9 enough but held by calls in flight. All of them; or the free amount,
-- as the call's limit, if tokens set the price and the call states no maximum (`least` is not 0).
local function credit_hold(organization, now, credits, least)
  local left = organization.credit_limit - organization.credits_used
  local free = left - organization.credits_held
  if credits <= free then return credits end
  local bound, verdict = cut(left, free, least > 0 and least or credits, VERDICT_INSUFFICIENT_CREDITS)
  return bound, bound == nil and refused(verdict, now, SCOPE_ORGANIZATION, KIND_CREDITS, organization.credits_held, left, 0)
end

-- The stored use of an organization's service; an early layout ends with the month's quantity.
local function activation_of(raw)
  if not raw then return ACTIVATION.fresh() end
  return ACTIVATION.opened(#raw < ACTIVATION_BYTES and raw .. ZERO .. ZERO or raw)
end

-- One-Time: the first call holds the price, and others are not charged while it is pending. Returns the price to hold, and the flags
-- of the hold: ONE_TIME means that the call waits for the first. A call whose price is still unknown waits for nothing.
local function reserve_activation(activation, price, flags, raised_hold)
  if raised_hold and has(raised_hold.flags, HOLD_ONE_TIME) then return 0, flags end
  if price == 0 then return 0, flags - HOLD_ONE_TIME end
  if activation.flags == ACTIVE then return 0, flags end
  activation.waiting = activation.waiting + 1
  if activation.flags == PENDING then return 0, flags end
  activation.flags, activation.price = PENDING, price
  return price, flags
end

-- The free credits of a packed organization that no call has opened; the last result is cached.
local asked_organization, credits_asked
local function credits_free_of(raw)
  if raw ~= asked_organization then
    local credits_used, credits_held, credit_limit = ORGANIZATION.read(raw)
    asked_organization, credits_asked = raw, credit_limit - credits_used - credits_held
  end
  return credits_asked
end

-- One-Time: the first successful call charges and activates the service, the last failed one (`is_uncharged`) releases the price. Returns
-- the credits that activate it, or false.
local function release_activation(activation, organization, credits, is_uncharged, calls)
  activation.waiting = held_after(activation.waiting, calls)
  if activation.flags == ACTIVE or (is_uncharged and activation.waiting > 0) then return false end
  if activation.flags == PENDING then
    organization.credits_held = held_after(organization.credits_held, activation.price)
    credits = activation.price
  end
  activation.flags = is_uncharged and 0 or ACTIVE
  activation.price = is_uncharged and 0 or credits
  return not is_uncharged and credits
end

-- The credits to charge, if they are `over` the call's cost by some nano-credits: whole credits paid ahead are deducted. A charge is
-- never below 0: what cannot be deducted now waits for the next one.
local function carry(organization, credits, over)
  local ahead = organization.ahead + over
  local back = ahead < NANO and 0 or min(credits, floor(ahead / NANO))
  organization.ahead = ahead - back * NANO
  return credits - back
end

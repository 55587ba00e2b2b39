-- spend: what Pay-Per-Use costs, in millionths of the currency, by the tiers of a calendar month. Needs state, cycle.
local MILLION = 1000000

-- year × 12 + month
local function month_of(now)
  local year, month = civil(floor(now / DAY_MS))
  return year * 12 + month
end

-- what a month's first units cost, rounded up once. Packed a tier: up to (-1: no end), whole millionths
-- a unit, and millionths of one: a price of twelve decimals, in integers throughout. Units given back
-- beyond a month's first are worth what the first ones cost
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

-- the units of the month it is
local function settled_of(a, month) return month > a[A_MONTH] and 0 or a[A_QUANTITY] end

-- what `more` units cost behind `before` others
local function price_of(tiers, before, more) return cost_of(tiers, before + more) - cost_of(tiers, before) end

-- What is held of the cap for a service is what all its units in flight would cost if they settled now, all together:
-- so it is the same in whatever order they do. An organization's is the sum over its services.
local function spend_keep(o, a, tiers, now)
  local capped = o[O_CAP] >= 0 and a[A_HELD] > 0
  local price = capped and price_of(tiers, settled_of(a, month_of(now)), a[A_HELD]) or 0
  o[O_SPEND_HELD] = max(0, o[O_SPEND_HELD] - a[A_HELD_PRICE] + price)
  a[A_HELD_PRICE] = price
end

-- holds units, and of the cap what they add to the price of those held; or answers the refusal (-11 the cap does not
-- cover this, -9 calls in flight hold what would), what is spent this month and when the next one begins
local function spend_hold(o, a, tiers, units, now)
  local before = a[A_HELD]
  a[A_HELD] = before + units
  if o[O_CAP] < 0 then return end
  local month = month_of(now)
  local settled, spent = settled_of(a, month), month > o[O_MONTH] and 0 or o[O_SPENT]
  spend_keep(o, a, tiers, now)
  if spent + o[O_SPEND_HELD] <= o[O_CAP] or price_of(tiers, settled + before, units) <= 0 then return end
  return spent + price_of(tiers, settled, units) > o[O_CAP] and VERDICT_SPEND_CAP_REACHED or VERDICT_QUOTA_HELD, spent, boundary(3, 1, now)
end

-- moves the month's quantity and the spend account; answers what the units cost, and packed what by:
-- the month's units before them, and the tiers
local function spend_pay(o, a, tiers, units, now)
  local month = month_of(now)
  local price = price_of(tiers, settled_of(a, month), units)
  if month > a[A_MONTH] then a[A_MONTH], a[A_QUANTITY] = month, 0 end
  if month > o[O_MONTH] then o[O_MONTH], o[O_SPENT] = month, 0 end
  local before = a[A_QUANTITY]
  a[A_QUANTITY], o[O_SPENT], o[O_SPEND_SEQ] = before + units, o[O_SPENT] + price, o[O_SPEND_SEQ] + 1
  return price, PRICED.pack{before = before} .. tiers
end

-- begins with what is in flight: gives back the units of a hold, if there is one of a service of units. A hold made
-- before units were counted has a price of its own
local function spend_back(a, hold, packed)
  if hold and has(hold[H_FLAGS], HOLD_USES) and hold[H_CREDITS] == 0 then
    a[A_HELD] = max(0, a[A_HELD] - (hold[H_UNITS] or HOLD.field(packed, 'units')))
  end
end

-- tiers: what units of a calendar month cost, in millionths of the currency. Needs state.
local MILLION = 1000000

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

-- a month's units as they are kept: all FOLDs beyond the second are left out, since a FOLD further on in the last tier costs the
-- same to the millionth. So units that are money have no end
local FOLD = 1000000000000000
local function folded(tiers, units)
  if units < 2 * FOLD then return units end
  if #tiers > TIER_BYTES then
    local up_to = TIER.read(tiers, #tiers - 2 * TIER_BYTES + 1)
    if up_to > FOLD then return units end
  end
  return FOLD + units % FOLD
end

-- what `more` units cost after `before` others
local function price_of(tiers, before, more) return cost_of(tiers, before + more) - cost_of(tiers, before) end

-- tiers: the cost of a calendar month's units, in millionths of the currency. Needs state.
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

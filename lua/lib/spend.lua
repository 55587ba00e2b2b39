-- spend: what Pay-Per-Use costs, in millionths of the currency, by the tiers of a calendar month. Needs state, cycle.
local A_MONTH, A_QUANTITY, TIER_BYTES, MILLION = 4, 5, 24, 1000000

-- Made on demand, as the calendar is: calls that pay otherwise do not pay for it.
local function spending()
  local boundary, _, civil = calendar()

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
      local up_to, whole, part = parse('<ddd', tiers, at)
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

  -- what more units cost in the month it is
  local function price_of(a, tiers, units, month)
    if #tiers == 0 then return 0 end
    local before = month > a[A_MONTH] and 0 or a[A_QUANTITY]
    return cost_of(tiers, before + units) - cost_of(tiers, before)
  end

  -- what to hold of the cap, or nil, the refusal (-11 it does not cover this, -9 calls in flight hold what
  -- would), what is spent this month and when the next one begins
  local function hold(o, a, tiers, units, now)
    if o[CAP] < 0 or #tiers == 0 then return 0 end
    local month = month_of(now)
    local price = price_of(a, tiers, units, month)
    local spent = month > o[MONTH] and 0 or o[SPENT]
    if price <= 0 or spent + o[SPEND_HELD] + price <= o[CAP] then return price end
    return nil, spent + price > o[CAP] and -11 or -9, spent, boundary(3, 1, now)
  end

  -- moves the month's quantity and the spend account; answers what the units cost, and packed what by:
  -- the month's units before them, and the tiers
  local function pay(o, a, tiers, units, now)
    local month = month_of(now)
    local price = price_of(a, tiers, units, month)
    if month > a[A_MONTH] then a[A_MONTH], a[A_QUANTITY] = month, 0 end
    if month > o[MONTH] then o[MONTH], o[SPENT] = month, 0 end
    local priced = pack('<d', a[A_QUANTITY]) .. tiers
    a[A_QUANTITY] = a[A_QUANTITY] + units
    o[SPENT], o[SSEQ] = o[SPENT] + price, o[SSEQ] + 1
    return price, priced
  end
  return hold, pay
end

-- cycle: UTC boundaries and the reset that is due. Needs state, event.
-- Intervals: 0 none, 1 daily (00:00), 2 weekly (Monday), 3 monthly (anchor day, clamped).
local DAY_MS = 86400000

local function civil(days)
  local shifted = days + 719468
  local era = floor(shifted / 146097)
  local doe = shifted - era * 146097
  local yoe = floor((doe - floor(doe / 1460) + floor(doe / 36524) - floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + floor(yoe / 4) - floor(yoe / 100))
  local mp = floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return yoe + era * 400 + (month <= 2 and 1 or 0), month
end

local function month_start(year, month)
  if month > 12 then year, month = year + 1, month - 12 end
  if month <= 2 then year = year - 1 end
  local era = floor(year / 400)
  local yoe = year - era * 400
  local doy = floor((153 * (month > 2 and month - 3 or month + 9) + 2) / 5)
  return era * 146097 + yoe * 365 + floor(yoe / 4) - floor(yoe / 100) + doy - 719468
end

local function anchored(year, month, anchor)
  local start = month_start(year, month)
  return (start + min(anchor, month_start(year, month + 1) - start) - 1) * DAY_MS
end

local function boundary(interval, anchor, now)
  local days = floor(now / DAY_MS)
  if interval == 1 then return (days + 1) * DAY_MS end
  if interval == 2 then return (days - (days + 3) % 7 + 7) * DAY_MS end
  if interval ~= 3 then return 0 end
  local year, month = civil(days)
  local at = anchored(year, month, anchor)
  if at > now then return at end
  return anchored(year, month + 1, anchor)
end

local function cycles_between(interval, from, to)
  if interval == 1 then return floor((to - from) / DAY_MS) end
  if interval == 2 then return floor((to - from) / (7 * DAY_MS)) end
  local y1, m1 = civil(floor(from / DAY_MS))
  local y2, m2 = civil(floor(to / DAY_MS))
  return (y2 - y1) * 12 + m2 - m1
end

-- What the ledger goes by: 0 while unlimited. What remains is then what was granted beyond the plan, by recharges,
-- adjusts and what was carried over: it waits there for a plan with a total.
local function balance_of(tenant) return tenant.total < 0 and 0 or tenant.remaining end

-- starts a new cycle under the plan in force; answers the event
local function renew(tenant, now, epoch, passed, next_reset, facts)
  local before, left = balance_of(tenant), tenant.remaining
  local carried = 0
  if left > 0 then carried = min(left, tenant.rollover_max, INTEGER_MAX - max(0, tenant.total_amount))
  elseif tenant.overage_policy == POLICY_CARRY then carried = left end
  tenant.total = tenant.total_amount
  tenant.remaining = max(0, tenant.total) + carried
  tenant.used, tenant.cycle, tenant.next_reset = 0, tenant.cycle + passed, next_reset
  local packed = movement(tenant, now, epoch, EVENT_RESET, balance_of(tenant) - before, facts)
  tenant.last_reset = tenant.ledger_at
  return packed
end

-- the reset event that is due now, or nil; several missed cycles are one event
local function due(tenant, now, epoch)
  local at = tenant.next_reset
  if at <= 0 or now < at then return nil end
  local next_reset = boundary(tenant.reset_interval, tenant.anchor, now)
  local passed = next_reset > 0 and max(1, cycles_between(tenant.reset_interval, at, next_reset)) or 1
  local facts = {}
  if passed > 1 then facts.metadata = format('{"cycles":%.0f}', passed) end
  return renew(tenant, now, epoch, passed, next_reset, facts)
end

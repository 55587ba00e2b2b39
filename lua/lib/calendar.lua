-- calendar: the ends of cycles, by the local time of a plan's zone.
-- needs: state
-- Intervals: 0 none, 1 daily (00:00), 2 weekly (Monday, or the plan's day), 3 monthly (anchor day, clamped). The local time of a zone
-- is exact until its clocks change for the second time; the keeper sends the next change before that.
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
  return start + min(anchor, month_start(year, month + 1) - start) - 1
end

-- The first day after `day` on which a cycle begins; days count from 1970.
local function day_after(interval, anchor, day)
  if interval == 1 then return day + 1 end
  if interval == 2 then return day + 7 - (day + 4 - min(anchor, 7)) % 7 end
  local year, month = civil(day)
  local first = anchored(year, month, anchor)
  return first > day and first or anchored(year, month + 1, anchor)
end

-- The first end of a cycle after now, for days in UTC.
local function boundary(interval, anchor, now) return day_after(interval, anchor, floor(now / DAY_MS)) * DAY_MS end

-- The day in a tenant's local time.
local function day_of(tenant, at)
  return floor((at + ((tenant.turns_at > 0 and at >= tenant.turns_at) and tenant.offset_after or tenant.offset)) / DAY_MS)
end

-- The first moment of a day. If clocks are set back over midnight, a day begins twice: the first time counts. If they skip midnight,
-- the day begins when they do.
local function start_of_day(tenant, day)
  local at, after = day * DAY_MS - tenant.offset, day * DAY_MS - tenant.offset_after
  local turned = tenant.turns_at > 0 and at >= tenant.turns_at and after >= tenant.turns_at
  return turned and after or at
end

-- The plan's anchor day; otherwise Monday, or the tenant's own day of the month.
local function anchor_of(tenant)
  if tenant.anchor_day > 0 then return tenant.anchor_day end
  return tenant.reset_interval == 2 and 1 or tenant.anchor
end

-- The first end of a cycle after now.
local function next_reset_of(tenant, now)
  if tenant.reset_interval == 0 then return 0 end
  local anchor = anchor_of(tenant)
  local day = day_after(tenant.reset_interval, anchor, day_of(tenant, now))
  local at = start_of_day(tenant, day)
  if at > now then return at end -- clocks set back have shown that day for a minute
  return start_of_day(tenant, day_after(tenant.reset_interval, anchor, day))
end

-- The number of cycles between two ends; a day has 24 hours, give or take one.
local function cycles_between(tenant, from, to)
  local days = floor((to - from) / DAY_MS + 0.5)
  if tenant.reset_interval == 1 then return days end
  if tenant.reset_interval == 2 then return floor(days / 7 + 0.5) end
  local y1, m1 = civil(floor((from + tenant.offset) / DAY_MS + 0.5))
  local y2, m2 = civil(floor((to + tenant.offset) / DAY_MS + 0.5))
  return (y2 - y1) * 12 + m2 - m1
end

-- bucket: requests and tokens a minute, exact in integers. Needs state.
-- A level counts what was taken, UNIT a request or token; it drains by `limit` a millisecond,
-- so one unit drains in 60000 / limit ms. A full bucket is level 0; debt is level > limit * UNIT.
local UNIT, FUTURE_MS = 60000, 2000

-- sets limits; where one changes, what was used before fills the new one at most
local function limit(a, rpm, tpm, concurrency)
  if rpm ~= a[RPM] then a[RUSED] = min(a[RUSED], rpm * UNIT) end
  if tpm ~= a[TPM] then a[TUSED] = min(a[TUSED], tpm * UNIT) end
  a[RPM], a[TPM], a[CONC] = rpm, tpm, concurrency
end

local function drain(a, now)
  local at = a[AT]
  if now <= at and at <= now + FUTURE_MS then return end
  if now > at then
    local passed = now - at
    if a[RUSED] > 0 then a[RUSED] = max(0, a[RUSED] - a[RPM] * passed) end
    if a[TUSED] > 0 then a[TUSED] = max(0, a[TUSED] - a[TPM] * passed) end
  end
  a[AT] = now
end

-- nil where one more request fits, else kind, used, limit, until
local function full(a, now)
  local limit = a[RPM]
  if limit > 0 then
    local over = a[RUSED] + UNIT - limit * UNIT
    if over > 0 then return 1, ceil(a[RUSED] / UNIT), limit, now + ceil(over / limit) end
  end
  limit = a[TPM]
  if limit > 0 then
    local over = a[TUSED] + UNIT - limit * UNIT
    if over > 0 then return 2, ceil(a[TUSED] / UNIT), limit, now + ceil(over / limit) end
  end
  limit = a[CONC]
  if limit > 0 and a[INFLIGHT] >= limit then return 3, a[INFLIGHT], limit, now + 1000 end
  return nil
end

-- takes one request and up to `need` tokens; answers the tokens taken
local function take(a, need)
  a[INFLIGHT] = a[INFLIGHT] + 1
  if a[RPM] > 0 then a[RUSED] = a[RUSED] + UNIT end
  if a[TPM] == 0 then return 0 end
  local taken = min(need, floor((a[TPM] * UNIT - a[TUSED]) / UNIT))
  a[TUSED] = a[TUSED] + taken * UNIT
  return taken
end

-- gives back the slots held (1, or 0 where there is no hold) and replaces the tokens taken by the tokens used
local function give(a, now, slots, taken, used)
  drain(a, now)
  a[INFLIGHT] = max(0, a[INFLIGHT] - slots)
  if a[TPM] > 0 then a[TUSED] = max(0, a[TUSED] + (used - taken) * UNIT) end
end

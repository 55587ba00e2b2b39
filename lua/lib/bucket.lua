-- bucket: requests and tokens a minute, exact in integers. Needs state.
-- A level counts what was taken, UNIT a request or token; it drains by `limit` a millisecond,
-- so one unit drains in 60000 / limit ms. A full bucket is level 0; debt is level > limit * UNIT.
local UNIT, FUTURE_MS = 60000, 2000

-- How long a user's state is kept that has only its tenant's user limits, ms: an hour while a call is in flight, else past
-- the longest window; and until what it took has drained, a day at most: whoever has a key names as many users as he likes.
-- One with limits of its own stays as it was defined.
local IN_FLIGHT_MS, IDLE_MS, LIFE_MS_MAX = 3600000, 120000, 86400000
local function user_life(raw)
  local rpm, tpm, _, requests, tokens, _, in_flight = parse('<ddddddd', raw, 10)
  local debt = max(rpm > 0 and ceil(requests / rpm) or 0, tpm > 0 and ceil(tokens / tpm) or 0)
  return min(LIFE_MS_MAX, max(in_flight > 0 and IN_FLIGHT_MS or IDLE_MS, debt))
end

-- writes a user's state, if there is one; or answers it, where it stays for ever, for the MSET that comes then
local function keep_user(name, raw)
  if not raw or has(byte(raw), OVERRIDE) then return raw end
  call('SET', name, raw, 'PX', user_life(raw))
end

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

-- the head of a packed state with the slots held given back (1, or 0 where there is no hold) and the tokens taken
-- replaced by the tokens used
local function give(raw, now, slots, taken, used)
  local rpm, tpm, _, requests, tokens, at, in_flight = parse('<ddddddd', raw, 10)
  if now > at then
    local passed = now - at
    requests, tokens, at = requests - rpm * passed, tokens - tpm * passed, now
    if requests < 0 then requests = 0 end
    if tokens < 0 then tokens = 0 end
  elseif at > now + FUTURE_MS then
    at = now
  end
  if tpm > 0 then
    tokens = tokens + (used - taken) * UNIT
    if tokens < 0 then tokens = 0 end
  end
  in_flight = in_flight - slots
  if in_flight < 0 then in_flight = 0 end
  return pack(HEAD_FORM, raw, requests, tokens, at, in_flight)
end

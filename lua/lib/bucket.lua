-- bucket: requests and tokens a minute, exact in integers. Needs state.
-- A level counts what was taken, UNIT a request or token; it drains by `limit` a millisecond,
-- so one unit drains in 60000 / limit ms. A full bucket is level 0; debt is level > limit * UNIT.
local UNIT, FUTURE_MS = 60000, 2000

-- How long a user's state is kept that has only its tenant's user limits, ms: an hour while a call is in flight, else past
-- the longest window; and until what it took has drained, a day at most: whoever has a key names as many users as he likes.
-- One with limits of its own stays as it was defined.
local IN_FLIGHT_MS, IDLE_MS, LIFE_MS_MAX = 3600000, 120000, 86400000
local function user_life(raw)
  local rpm, tpm, requests_used, tokens_used, inflight = ACCOUNT.read(raw)
  local debt = max(rpm > 0 and ceil(requests_used / rpm) or 0, tpm > 0 and ceil(tokens_used / tpm) or 0)
  return min(LIFE_MS_MAX, max(inflight > 0 and IN_FLIGHT_MS or IDLE_MS, debt))
end

-- writes a user's state, if there is one; or answers it, where it stays for ever, for the MSET that comes then
local function keep_user(name, raw)
  if not raw or has(ACCOUNT.field(raw, 'flags'), OVERRIDE) then return raw end
  call('SET', name, raw, 'PX', user_life(raw))
end

-- sets limits; where one changes, what was used before fills the new one at most
local function set_limits(account, rpm, tpm, concurrency)
  if rpm ~= account.rpm then account.requests_used = min(account.requests_used, rpm * UNIT) end
  if tpm ~= account.tpm then account.tokens_used = min(account.tokens_used, tpm * UNIT) end
  account.rpm, account.tpm, account.concurrency = rpm, tpm, concurrency
end

-- both levels and their time once they have drained till now; a time far ahead was another clock's
local function drained(requests_used, tokens_used, at, rpm, tpm, now)
  if now <= at and at <= now + FUTURE_MS then return requests_used, tokens_used, at end
  if now > at then
    requests_used, tokens_used = requests_used - rpm * (now - at), tokens_used - tpm * (now - at)
    if requests_used < 0 then requests_used = 0 end
    if tokens_used < 0 then tokens_used = 0 end
  end
  return requests_used, tokens_used, now
end

local function drain(account, now)
  account.requests_used, account.tokens_used, account.at =
    drained(account.requests_used, account.tokens_used, account.at, account.rpm, account.tpm, now)
end

-- the head of a packed state with the slots held given back (1, or 0 where there is no hold) and the tokens taken
-- replaced by the tokens used
local function give(raw, now, slots, taken, used)
  local rpm, tpm, requests_used, tokens_used, at, inflight = ACCOUNT.read(raw)
  requests_used, tokens_used, at = drained(requests_used, tokens_used, at, rpm, tpm, now)
  if tpm > 0 then
    tokens_used = tokens_used + (used - taken) * UNIT
    if tokens_used < 0 then tokens_used = 0 end
  end
  inflight = inflight - slots
  if inflight < 0 then inflight = 0 end
  return ACCOUNT.replaced(raw, {requests_used = requests_used, tokens_used = tokens_used, at = at, inflight = inflight})
end

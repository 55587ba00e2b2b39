-- bucket: requests and tokens a minute, exact in integers. Needs state, batch.
-- A level counts what was taken, UNIT a request or token; it drains by `limit` a millisecond,
-- so one unit drains in 60000 / limit ms. A full bucket is level 0; debt is level > limit * UNIT.
local UNIT, FUTURE_MS = 60000, 2000

-- How long a user's state is kept that has only its tenant's user limits, ms: as long as a call is in flight, which always
-- ends, then past the longest window; and until its tokens have drained, a day at most: a key may name any number of users. One
-- with limits of its own stays as it was defined.
local IDLE_MS, LIFE_MS_MAX = 120000, 86400000

-- writes a user's state that goes by itself; or answers it, where it stays, for the MSET that comes then
local function keep_user(name, packed, user, now)
  if user.inflight > 0 or has(user.flags, OVERRIDE) then return packed end
  local rpm, tpm, life = user.rpm, user.tpm, IDLE_MS
  if rpm > 0 then life = max(life, ceil(user.requests_used / rpm)) end
  if tpm > 0 then life = max(life, ceil(user.tokens_used / tpm)) end
  call('SET', name, as_written(name, packed), 'PXAT', now + min(LIFE_MS_MAX, life))
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

-- the slots held given back (1, or 0 where there is no hold), and the tokens taken replaced by the tokens used; of neither there is any
-- where the hold took nothing of the account (`UNCOUNTED`)
local function give(account, now, slots, taken, used)
  local at, tpm, inflight = account.at, account.tpm, account.inflight
  if taken < 0 then taken = 0 else inflight = inflight - slots end
  local tokens_used = account.tokens_used
  if now > at then -- as `drained` has it
    local requests_used, passed = account.requests_used, now - at
    requests_used, tokens_used = requests_used - account.rpm * passed, tokens_used - tpm * passed
    if tokens_used < 0 then tokens_used = 0 end
    account.requests_used, account.at = requests_used < 0 and 0 or requests_used, now
  elseif at > now + FUTURE_MS then account.at = now end
  if tpm > 0 then
    tokens_used = tokens_used + (used - taken) * UNIT
    if tokens_used < 0 then tokens_used = 0 end
  end
  account.tokens_used, account.inflight = tokens_used, inflight < 0 and 0 or inflight
end

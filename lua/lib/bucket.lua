-- bucket: requests and tokens a minute, exact in integers. Needs state, batch.
-- A level counts what was taken, UNIT for each request or token. It drains by `limit` a millisecond, so one unit drains in 60000 /
-- limit ms. A full bucket is level 0; debt is level > limit * UNIT.
local UNIT, FUTURE_MS = 60000, 2000

-- How long a user's state is stored, in ms, if it has only its tenant's user limits: while a call is in flight, which always ends;
-- then beyond the longest window, and until its tokens have drained, a day at most, since a key may name any number of users. A user
-- with limits of its own is stored as defined.
local IDLE_MS, LIFE_MS_MAX = 120000, 86400000

-- Writes a user's state with an expiry; or returns it, if it is to be kept, for the later MSET.
local function keep_user(name, packed, user, now)
  if user.inflight > 0 or has(user.flags, OVERRIDE) then return packed end
  local rpm, tpm, life = user.rpm, user.tpm, IDLE_MS
  if rpm > 0 then life = max(life, ceil(user.requests_used / rpm)) end
  if tpm > 0 then life = max(life, ceil(user.tokens_used / tpm)) end
  call('SET', name, as_written(name, packed), 'PXAT', now + min(LIFE_MS_MAX, life))
end

-- Sets limits; if one changes, the level is at most the new limit.
local function set_limits(account, rpm, tpm, concurrency)
  if rpm ~= account.rpm then account.requests_used = min(account.requests_used, rpm * UNIT) end
  if tpm ~= account.tpm then account.tokens_used = min(account.tokens_used, tpm * UNIT) end
  account.rpm, account.tpm, account.concurrency = rpm, tpm, concurrency
end

-- Both levels and their time, drained until now; a time far in the future came from another clock.
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

-- Gives back the held slots (1, or 0 without a hold), and replaces the taken tokens by the used ones. There are none if the hold took
-- nothing of the account (`UNCOUNTED`).
local function give_back_rate(account, now, slots, taken, used)
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
  if inflight < 0 then inflight, unheld = 0, true end
  account.tokens_used, account.inflight = tokens_used, inflight
end

-- capacity: what an upstream can take, as an account that shares draw from. Two levels, of requests and of tokens, are refilled
-- evenly, and hold a second of that; below zero they are debt. Needs nothing.
-- A share's own levels are its guaranteed part, and hold five seconds of that. All it has beyond is its use: of those
-- that wait the one with the least use by its weight is next. An account's `use` is that of who was next last: others begin there.
-- A minute is paced so that what flows in and what a level held before are together no more than the limit.
local PACE, BURST_MS, GUARANTEED_MS, DEBT_MS, MINUTE_MS = 0.983, 1000, 5000, 10000, 60000
-- who was refused is waited for so long, and who is silent for so long is forgotten
local WAITED_FOR_MS, SILENT_MS, CAPACITY_SHARES_MAX = 500, 10000, 256
local OTHER_SHARES = '*'
-- Lua takes 200 names in one place: these are one
local capacity = {}

-- a level that flows in at `a_minute` and holds as much as in so many ms, or one; a limit of 0 is none
function capacity.filled(level, a_minute, holds, passed)
  local most = max(1, a_minute * holds / MINUTE_MS)
  return level and min(most, level + passed * a_minute / MINUTE_MS) or most
end

-- the account as it is now; a clock that was set back lets nothing flow in
function capacity.at_time(packed, limits, now)
  local one = packed and cmsgpack.unpack(packed) or {at = now, use = 0, shares = {}}
  local passed = min(max(0, now - one.at), MINUTE_MS)
  one.requests = capacity.filled(one.requests, limits.requests * PACE, BURST_MS, passed)
  one.tokens = capacity.filled(one.tokens, limits.tokens * PACE, BURST_MS, passed)
  one.at, one.count = now, 0
  for name, share in pairs(one.shares) do
    if abs(now - share.seen) > SILENT_MS then one.shares[name] = nil else one.count = one.count + 1 end
  end
  return one
end

-- the share that a call is of; of too many the last ones are one together
function capacity.share_of(one, asked, now)
  local name = asked.share
  if not one.shares[name] and one.count >= CAPACITY_SHARES_MAX then name = OTHER_SHARES end
  local share = one.shares[name]
  if not share then
    share, one.count = {use = one.use, filled = now, waits = 0, batch = 0}, one.count + 1
    one.shares[name] = share
  end
  local passed = min(max(0, now - share.filled), MINUTE_MS)
  share.requests = capacity.filled(share.requests, asked.requests, GUARANTEED_MS, passed)
  share.tokens = capacity.filled(share.tokens, asked.tokens, GUARANTEED_MS, passed)
  share.filled, share.seen = now, now
  return share
end

-- what requests and tokens are of a minute: the larger part
function capacity.part_of(limits, requests, tokens)
  if tokens < 0 then return limits.tokens > 0 and tokens / limits.tokens or 0 end
  local part = limits.requests > 0 and requests / limits.requests or 0
  return max(part, limits.tokens > 0 and tokens / limits.tokens or 0, limits.requests + limits.tokens == 0 and 0.001 * requests or 0)
end

-- calls that ended give back all they did not use, or take more
function capacity.return_unused(one, limits, gone)
  for _, left in ipairs(gone) do
    one.requests, one.tokens = one.requests + left.requests, one.tokens + left.tokens
    local share = one.shares[left.share]
    if share and left.by == 1 then share.use = share.use - capacity.part_of(limits, left.requests, left.tokens) / left.weight end
    if share and left.by == 2 then share.requests, share.tokens = share.requests + left.requests, share.tokens + left.tokens end
  end
  one.requests = capacity.filled(one.requests, limits.requests * PACE, BURST_MS, 0)
  one.tokens = capacity.filled(one.tokens, limits.tokens * PACE, BURST_MS, 0)
end

-- ms until an account has room for a call that draws from what is left, 0 now; one that is larger than a level needs a full one
function capacity.room_in(one, limits, need)
  local wait = 0
  if limits.requests > 0 then wait = (1 - one.requests) * MINUTE_MS / limits.requests / PACE end
  if limits.tokens > 0 then
    local full = max(1, limits.tokens * PACE * BURST_MS / MINUTE_MS)
    wait = max(wait, (min(need, full) - one.tokens) * MINUTE_MS / limits.tokens / PACE)
  end
  return max(0, ceil(wait - 0.001))
end

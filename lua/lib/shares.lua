-- shares: the capacity of an upstream, as an account that shares draw from. Two levels, of requests and of tokens, are refilled
-- evenly, and hold one second's worth; below zero they are debt. Needs nothing.
-- A share has levels of its own for its guaranteed part, which hold five seconds' worth. What it takes beyond that is its use: the
-- waiting share with the least use for its weight is next. An account's `use` is that of the last one let in: new shares begin there.
-- A minute is paced so that the inflow and the former levels together are at most the limit.
local PACE, BURST_MS, GUARANTEED_MS, DEBT_MS, MINUTE_MS = 0.983, 1000, 5000, 10000, 60000
-- How long a refused share is waited for, and after how long a silent one is forgotten.
local WAITED_FOR_MS, SILENT_MS, CAPACITY_SHARES_MAX = 500, 10000, 256
local OTHER_SHARES = '*'
-- Lua allows 200 local names in one scope: this table is one.
local capacity = {}

-- A level refilled at `a_minute`, which holds as much as flows in within `holds` ms, or 1; a limit of 0 is none.
function capacity.filled(level, a_minute, holds, passed)
  local most = max(1, a_minute * holds / MINUTE_MS)
  return level and min(most, level + passed * a_minute / MINUTE_MS) or most
end

-- The account as of now; while the clock is behind the stored time, nothing flows in.
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

-- The share of a call; beyond the maximum of shares, further ones share one.
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

-- The larger of the parts that requests and tokens are of a minute's limit.
function capacity.part_of(limits, requests, tokens)
  if tokens < 0 then return limits.tokens > 0 and tokens / limits.tokens or 0 end
  local part = limits.requests > 0 and requests / limits.requests or 0
  return max(part, limits.tokens > 0 and tokens / limits.tokens or 0, limits.requests + limits.tokens == 0 and 0.001 * requests or 0)
end

-- Gives back what ended calls did not use, or takes what they used beyond.
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

-- The ms until the account has room for a call beyond guarantees, 0 for now; a call larger than a level needs a full one.
function capacity.room_in(one, limits, need)
  local wait = 0
  if limits.requests > 0 then wait = (1 - one.requests) * MINUTE_MS / limits.requests / PACE end
  if limits.tokens > 0 then
    local full = max(1, limits.tokens * PACE * BURST_MS / MINUTE_MS)
    wait = max(wait, (min(need, full) - one.tokens) * MINUTE_MS / limits.tokens / PACE)
  end
  return max(0, ceil(wait - 0.001))
end

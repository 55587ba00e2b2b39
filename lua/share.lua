-- share: let calls in within an upstream's capacity and their shares, and give back what ended calls left.
-- needs: state
-- allows: oom (one short string an account, gone within two minutes; of calls at once an id each)
-- KEYS[1] the account (cmsgpack), written only here  KEYS[2] its calls in flight, by when they are given up (ZSET)
-- ARGV[1] limits as JSON: requests and tokens a minute, concurrency; 0 is none
-- ARGV[2] calls to let in, as JSON: id, share, weight, guaranteed amounts a minute (requests, tokens), batch 0 or 1, need of tokens,
--   more: whether others of its share wait after it
-- ARGV[3] ended calls, as JSON: share, how they were let in, weight, requests and tokens to give back (below 0: used beyond)
-- ARGV[4] ids of calls that ended, as JSON  ARGV[5] those that go on
-- Returns ms until the next one may have room, then for each call 0 it waits, 1 let in, 2 let in by what is guaranteed
-- Example: 60 requests a minute, one let in a moment ago, another asks -> {1000, 0}
if #KEYS ~= 2 or #ARGV ~= 5 then return redis.error_reply('ERR share takes 2 keys and 5 arguments') end
local SLOT_MS, KEPT_MS = 30000, 120000
local now, limits, asks = clock(NO_BATCH), cjson.decode(ARGV[1]), cjson.decode(ARGV[2])
local capacity = capacity_at_time(call('GET', KEYS[1]), limits, now)
return_unused(capacity, limits, cjson.decode(ARGV[3]))
local free = INTEGER_MAX
if limits.concurrency > 0 then
  for _, id in ipairs(cjson.decode(ARGV[4])) do call('ZREM', KEYS[2], id) end
  for _, id in ipairs(cjson.decode(ARGV[5])) do call('ZADD', KEYS[2], now + SLOT_MS, id) end
  call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  call('ZREMRANGEBYSCORE', KEYS[2], now + 2 * SLOT_MS, '+inf') -- of before the clock was set back
  free = limits.concurrency - call('ZCARD', KEYS[2])
end
local answer, wait, letting = {0}
for at, asked in ipairs(asks) do
  asked.own, answer[at + 1] = share_of(capacity, asked, now), 0
  asked.own.use, asked.own.waits = max(asked.own.use, capacity.use), 0
end
wait, letting = take_turns(capacity, limits, asks, answer, free, now)
for at, asked in ipairs(asks) do
  if answer[at + 1] == 0 or asked.more == 1 then
    asked.own.batch = asked.own.waits > 0 and min(asked.own.batch, asked.batch) or asked.batch
    asked.own.waits = now + WAITED_FOR_MS
  end
end
if limits.concurrency > 0 then
  for _, id in ipairs(letting) do call('ZADD', KEYS[2], now + SLOT_MS, id) end
  call('EXPIRE', KEYS[2], KEPT_MS / 1000)
end
answer[1] = wait
call('SET', KEYS[1], cmsgpack.pack(capacity), 'PX', KEPT_MS)
return answer

-- functions: the capacity of an upstream, as an account that shares draw from. Two levels, of requests and of tokens, are refilled
-- evenly, and hold one second's worth; below zero they are debt.
-- A share has levels of its own for its guaranteed part, which hold five seconds' worth. What it takes beyond that is its use: the
-- waiting share with the least use for its weight is next. An account's `use` is that of the last one let in: new shares begin there.
-- A minute is paced so that the inflow and the former levels together are at most the limit.
local PACE, BURST_MS, GUARANTEED_MS, DEBT_MS, MINUTE_MS = 0.983, 1000, 5000, 10000, 60000
-- How long a refused share is waited for, and after how long a silent one is forgotten.
local WAITED_FOR_MS, SILENT_MS, CAPACITY_SHARES_MAX = 500, 10000, 256
local OTHER_SHARES = '*'

-- A level refilled at `a_minute`, which holds as much as flows in within `holds` ms, or 1; a limit of 0 is none.
local function level_after(level, a_minute, holds, passed)
  local most = max(1, a_minute * holds / MINUTE_MS)
  return level and min(most, level + passed * a_minute / MINUTE_MS) or most
end

-- The account as of now; while the clock is behind the stored time, nothing flows in.
local function capacity_at_time(packed, limits, now)
  local capacity = packed and cmsgpack.unpack(packed) or {at = now, use = 0, shares = {}}
  local passed = min(max(0, now - capacity.at), MINUTE_MS)
  capacity.requests = level_after(capacity.requests, limits.requests * PACE, BURST_MS, passed)
  capacity.tokens = level_after(capacity.tokens, limits.tokens * PACE, BURST_MS, passed)
  capacity.at, capacity.count = now, 0
  for name, share in pairs(capacity.shares) do
    if abs(now - share.seen) > SILENT_MS then capacity.shares[name] = nil else capacity.count = capacity.count + 1 end
  end
  return capacity
end

-- The share of a call; beyond the maximum of shares, further ones share capacity.
local function share_of(capacity, asked, now)
  local name = asked.share
  if not capacity.shares[name] and capacity.count >= CAPACITY_SHARES_MAX then name = OTHER_SHARES end
  local share = capacity.shares[name]
  if not share then
    share, capacity.count = {use = capacity.use, filled = now, waits = 0, batch = 0}, capacity.count + 1
    capacity.shares[name] = share
  end
  local passed = min(max(0, now - share.filled), MINUTE_MS)
  share.requests = level_after(share.requests, asked.requests, GUARANTEED_MS, passed)
  share.tokens = level_after(share.tokens, asked.tokens, GUARANTEED_MS, passed)
  share.filled, share.seen = now, now
  return share
end

-- The larger of the parts that requests and tokens are of a minute's limit.
local function part_of_minute(limits, requests, tokens)
  if tokens < 0 then return limits.tokens > 0 and tokens / limits.tokens or 0 end
  local part = limits.requests > 0 and requests / limits.requests or 0
  return max(part, limits.tokens > 0 and tokens / limits.tokens or 0, limits.requests + limits.tokens == 0 and 0.001 * requests or 0)
end

-- Gives back what ended calls did not use, or takes what they used beyond.
local function return_unused(capacity, limits, gone)
  for _, left in ipairs(gone) do
    capacity.requests, capacity.tokens = capacity.requests + left.requests, capacity.tokens + left.tokens
    local share = capacity.shares[left.share]
    if share and left.by == 1 then share.use = share.use - part_of_minute(limits, left.requests, left.tokens) / left.weight end
    if share and left.by == 2 then share.requests, share.tokens = share.requests + left.requests, share.tokens + left.tokens end
  end
  capacity.requests = level_after(capacity.requests, limits.requests * PACE, BURST_MS, 0)
  capacity.tokens = level_after(capacity.tokens, limits.tokens * PACE, BURST_MS, 0)
end

-- The ms until the account has room for a call beyond guarantees, 0 for now; a call larger than a level needs a full capacity.
local function room_in(capacity, limits, need)
  local wait = 0
  if limits.requests > 0 then wait = (1 - capacity.requests) * MINUTE_MS / limits.requests / PACE end
  if limits.tokens > 0 then
    local full = max(1, limits.tokens * PACE * BURST_MS / MINUTE_MS)
    wait = max(wait, (min(need, full) - capacity.tokens) * MINUTE_MS / limits.tokens / PACE)
  end
  return max(0, ceil(wait - 0.001))
end

-- Whether the guaranteed part of its share covers a call; for that the account may be in debt, by ten seconds of its flow.
local function is_guaranteed(capacity, limits, share, asked)
  if asked.requests == 0 and asked.tokens == 0 then return false end
  if asked.requests > 0 and share.requests < 1 or asked.tokens > 0 and share.tokens <= 0 then return false end
  local debt = DEBT_MS / MINUTE_MS
  return (limits.requests == 0 or capacity.requests > 0 - debt * limits.requests)
    and (limits.tokens == 0 or capacity.tokens > 0 - debt * limits.tokens)
end

-- Whether a call goes before another: interactive calls before batches, then the share with the least use.
local function goes_before(batch, use, other_batch, other_use)
  if batch ~= other_batch then return batch < other_batch end
  return use < other_use
end

-- The index of the next call without an answer; nil if all have capacity.
local function next_waiting(asks, answer)
  local found
  for at, asked in ipairs(asks) do
    local other = asks[found]
    if answer[at + 1] == 0 and (not other or goes_before(asked.batch, asked.own.use, other.batch, other.own.use)) then found = at end
  end
  return found
end

-- Whether a share that waits at another gateway goes before a call.
local function waits_before(capacity, asked, now)
  for _, share in pairs(capacity.shares) do
    local waits = share ~= asked.own and share.waits > now and share.waits <= now + WAITED_FOR_MS
    if waits and goes_before(share.batch, share.use, asked.batch, asked.own.use) then return true end
  end
  return false
end

-- Lets calls in: first those that their shares' guaranteed parts cover, then by turns, while there is room and a free slot.
-- Stores the answer to each; returns the ms until the next one may have room, and the ids of those let in.
local BUSY_MS = 50
local function take_turns(capacity, limits, asks, answer, free, now)
  local letting = {}
  local function let_in(at, by)
    local asked, share = asks[at], asks[at].own
    capacity.requests, capacity.tokens = capacity.requests - 1, capacity.tokens - asked.need
    if by == 2 then
      share.requests, share.tokens = share.requests - 1, share.tokens - asked.need
    else
      capacity.use = share.use
      share.use = share.use + part_of_minute(limits, 1, asked.need) / asked.weight
    end
    answer[at + 1], free, letting[#letting + 1] = by, free - 1, asked.id
  end
  for at, asked in ipairs(asks) do
    if free > 0 and is_guaranteed(capacity, limits, asked.own, asked) then let_in(at, 2) end
  end
  local at = next_waiting(asks, answer)
  while at do
    local wait = free > 0 and room_in(capacity, limits, asks[at].need) or BUSY_MS
    if waits_before(capacity, asks[at], now) then wait = max(wait, BUSY_MS) end
    if wait > 0 then return wait, letting end
    let_in(at, 1)
    at = next_waiting(asks, answer)
  end
  return 0, letting
end

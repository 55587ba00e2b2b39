-- turns: the order in which calls draw from an account of an upstream's capacity. Needs shares.
-- Whether the guaranteed part of its share covers a call; for that the account may be in debt, by ten seconds of its flow.
function capacity.is_guaranteed(one, limits, share, asked)
  if asked.requests == 0 and asked.tokens == 0 then return false end
  if asked.requests > 0 and share.requests < 1 or asked.tokens > 0 and share.tokens <= 0 then return false end
  local debt = DEBT_MS / MINUTE_MS
  return (limits.requests == 0 or one.requests > 0 - debt * limits.requests)
    and (limits.tokens == 0 or one.tokens > 0 - debt * limits.tokens)
end

-- Whether a call goes before another: interactive calls before batches, then the share with the least use.
function capacity.goes_before(batch, use, other_batch, other_use)
  if batch ~= other_batch then return batch < other_batch end
  return use < other_use
end

-- The index of the next call without an answer; nil if all have one.
function capacity.next_of(asks, answer)
  local found
  for at, asked in ipairs(asks) do
    local other = asks[found]
    if answer[at + 1] == 0 and (not other or capacity.goes_before(asked.batch, asked.own.use, other.batch, other.own.use)) then found = at end
  end
  return found
end

-- Whether a share that waits at another gateway goes before a call.
function capacity.waits_before(one, asked, now)
  for _, share in pairs(one.shares) do
    local waits = share ~= asked.own and share.waits > now and share.waits <= now + WAITED_FOR_MS
    if waits and capacity.goes_before(share.batch, share.use, asked.batch, asked.own.use) then return true end
  end
  return false
end

-- Lets calls in: first those that their shares' guaranteed parts cover, then by turns, while there is room and a free slot.
-- Stores the answer to each; returns the ms until the next one may have room, and the ids of those let in.
local BUSY_MS = 50
function capacity.take_turns(one, limits, asks, answer, free, now)
  local letting = {}
  local function let_in(at, by)
    local asked, share = asks[at], asks[at].own
    one.requests, one.tokens = one.requests - 1, one.tokens - asked.need
    if by == 2 then
      share.requests, share.tokens = share.requests - 1, share.tokens - asked.need
    else
      one.use = share.use
      share.use = share.use + capacity.part_of(limits, 1, asked.need) / asked.weight
    end
    answer[at + 1], free, letting[#letting + 1] = by, free - 1, asked.id
  end
  for at, asked in ipairs(asks) do
    if free > 0 and capacity.is_guaranteed(one, limits, asked.own, asked) then let_in(at, 2) end
  end
  local at = capacity.next_of(asks, answer)
  while at do
    local wait = free > 0 and capacity.room_in(one, limits, asks[at].need) or BUSY_MS
    if capacity.waits_before(one, asks[at], now) then wait = max(wait, BUSY_MS) end
    if wait > 0 then return wait, letting end
    let_in(at, 1)
    at = capacity.next_of(asks, answer)
  end
  return 0, letting
end

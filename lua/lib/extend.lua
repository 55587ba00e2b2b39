-- extend: what renewing one call does to its hold and tenant, and how all of it is written. Needs state.

-- raises a hold until it covers observed + margin, as far as tokens are free; answers exhausted (0 or 1)
local function cover(h, t, observed, margin)
  local want = observed + margin - h[H_TOKENS]
  if want <= 0 or not has(h[1], HOLD_COUNTS) then return 0 end
  local more = want
  if t[TOTAL] >= 0 and t[POLICY] ~= POLICY_BILL then
    more = math.min(want, math.max(0, t[REMAINING] - t[HELD]))
  end
  h[H_TOKENS], t[HELD] = h[H_TOKENS] + more, t[HELD] + more
  return more < want and 1 or 0
end

-- the fallible writes, undone together: due resets, deadlines
local function renewed(stream, events, deadlines, renewals)
  local added, failed = {}, nil
  local function attempt(...)
    local reply = not failed and redis.pcall(...)
    if type(reply) == 'table' and reply.err then failed = reply end
    return reply
  end
  for i = 1, #events do added[i] = attempt('XADD', stream, '*', 'e', events[i]) end
  if #renewals > 0 then attempt('ZADD', deadlines, 'XX', unpack(renewals)) end
  for i = 1, failed and #added or 0 do
    if type(added[i]) == 'string' then redis.call('XDEL', stream, added[i]) end
  end
  return failed
end

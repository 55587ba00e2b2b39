-- extend: keep many live calls of one partition: renew deadlines, note what was observed,
-- and take more where a stream outgrew its hold.
-- needs: state event cycle append extend
-- allows: oom
-- KEYS[1] m  KEYS[2] d  KEYS[3] x  then per call: h hold, t tenant (the same t may come twice)
-- ARGV[1] run id  ARGV[2] ttl ms  then per call packed: observed, margin, request id (36)
-- A hold is raised until it covers observed + margin, as far as the account has tokens free.
-- Returns one packed string: now, then per call its hold in tokens (-1: gone), exhausted
--   (0 no, 1 yes: the plan lets the call finish, 2 yes: the plan cuts it);
--   only 0 where the partition is unverified
-- Example: hold 100, observed 90, margin 50, free 30 -> hold 130, exhausted 1
if #KEYS < 5 or #KEYS % 2 == 0 or #ARGV ~= 2 + (#KEYS - 3) / 2 then
  return redis.error_reply('ERR extend takes 3 keys and 2 a call, 2 arguments and 1 a call')
end
local raw = redis.call('MGET', unpack(KEYS))
local epoch = verified(raw[1], ARGV[1])
if not epoch then return struct.pack('<d', 0) end
local now = clock()
local deadline, tenants, order, events, renewals = now + tonumber(ARGV[2]), {}, {}, {}, {}
local writes, answer = {}, {struct.pack('<d', now)}

local function tenant(at)
  local name = KEYS[at]
  if tenants[name] == nil then
    local t = raw[at] and open(TENANT_FORM, raw[at]) or false
    tenants[name] = t
    if t then
      order[#order + 1] = name
      events[#events + 1] = due(t, now, epoch)
    end
  end
  return tenants[name]
end

for at = 4, #KEYS, 2 do
  local observed, margin, request = struct.unpack('<ddc36', ARGV[1 + at / 2])
  local h, t = raw[at] and open(HOLD_FORM, raw[at]), tenant(at + 1)
  if not h or not t or has(h[1], HOLD_RECLAIMED) then
    answer[#answer + 1] = struct.pack('<dd', -1, 0)
  else
    local exhausted = cover(h, t, observed, margin)
    h[H_OBSERVED], h[H_DEADLINE] = math.max(observed, h[H_OBSERVED]), deadline
    renewals[#renewals + 1] = string.format('%.0f', deadline)
    renewals[#renewals + 1] = request
    writes[#writes + 1] = KEYS[at]
    writes[#writes + 1] = write(HOLD_FORM, HOLD_SIZE, h) .. string.sub(raw[at], HOLD_BYTES + 1)
    answer[#answer + 1] = struct.pack('<dd', h[H_TOKENS], exhausted)
  end
end
redis.call('ZCARD', KEYS[2]) -- fails now, before anything is written, if it is no sorted set
local err = append(KEYS[3], events)
if err then return err end
if #renewals > 0 then redis.call('ZADD', KEYS[2], 'XX', unpack(renewals)) end
for _, name in ipairs(order) do
  writes[#writes + 1] = name
  writes[#writes + 1] = write(TENANT_FORM, TENANT_SIZE, tenants[name])
end
if #writes > 0 then redis.call('MSET', unpack(writes)) end
return table.concat(answer)

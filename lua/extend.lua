-- extend: keep many live calls of one partition: renew deadlines, note what was observed,
-- and take more where a stream outgrew its hold.
-- needs: state event cycle
-- allows: oom
-- KEYS[1] m  KEYS[2] d  KEYS[3] x  then per call: h hold, t tenant (the same t may come twice)
-- ARGV[1] run id  ARGV[2] ttl ms  then per call packed: observed, margin, request id (36)
-- A hold is raised until it covers observed + margin, as far as the account has tokens free.
-- Returns one packed string: now, then per call its hold in tokens (-1: gone), exhausted (0 or 1);
--   only 0 where the partition is unverified
-- Example: hold 100, observed 90, margin 50, free 30 -> hold 130, exhausted 1
if #KEYS < 5 or #KEYS % 2 == 0 or #ARGV ~= 2 + (#KEYS - 3) / 2 then
  return redis.error_reply('ERR extend takes 3 keys and 2 a call, 2 arguments and 1 a call')
end
local raw = redis.call('MGET', unpack(KEYS))
local epoch = verified(raw[1], ARGV[1])
if not epoch then return struct.pack('<d', 0) end
local now = clock()
local ttl, tenants, events, writes, answer = tonumber(ARGV[2]), {}, {}, {}, {struct.pack('<d', now)}
local deadlines = {}

local function tenant(at)
  local name = KEYS[at]
  if tenants[name] == nil then
    local t = raw[at] and open(TENANT_FORM, raw[at]) or false
    tenants[name] = t
    if t then
      events[#events + 1] = due(t, now, epoch)
      writes[#writes + 1] = name
      writes[#writes + 1] = t
    end
  end
  return tenants[name]
end

for at = 4, #KEYS, 2 do
  local observed, margin, request = struct.unpack('<ddc36', ARGV[1 + at / 2])
  local h = raw[at] and open(HOLD_FORM, raw[at])
  local t = tenant(at + 1)
  if not h or not t or has(h[1], HOLD_RECLAIMED) then
    answer[#answer + 1] = struct.pack('<dd', -1, 0)
  else
    local want, exhausted = observed + margin - h[H_TOKENS], 0
    if want > 0 and has(h[1], HOLD_COUNTS) then
      local free = want
      if t[TOTAL] >= 0 and t[POLICY] ~= POLICY_BILL then free = math.max(0, t[REMAINING] - t[HELD]) end
      local more = math.min(want, free)
      h[H_TOKENS], t[HELD] = h[H_TOKENS] + more, t[HELD] + more
      if more < want then exhausted = 1 end
    end
    h[H_OBSERVED], h[H_DEADLINE] = math.max(observed, h[H_OBSERVED]), now + ttl
    deadlines[#deadlines + 1] = string.format('%.0f', now + ttl)
    deadlines[#deadlines + 1] = request
    writes[#writes + 1] = KEYS[at]
    writes[#writes + 1] = write(HOLD_FORM, HOLD_SIZE, h) .. string.sub(raw[at], HOLD_BYTES + 1)
    answer[#answer + 1] = struct.pack('<dd', h[H_TOKENS], exhausted)
  end
end
if #deadlines > 0 then redis.call('ZADD', KEYS[2], 'XX', unpack(deadlines)) end
local ids = {}
for i = 1, #events do
  local id = redis.pcall('XADD', KEYS[3], '*', 'e', events[i])
  if type(id) == 'table' and id.err then
    for _, added in ipairs(ids) do redis.call('XDEL', KEYS[3], added) end
    return id
  end
  ids[i] = id
end
for i = 2, #writes, 2 do
  if type(writes[i]) == 'table' then writes[i] = write(TENANT_FORM, TENANT_SIZE, writes[i]) end
end
if #writes > 0 then redis.call('MSET', unpack(writes)) end
return table.concat(answer)

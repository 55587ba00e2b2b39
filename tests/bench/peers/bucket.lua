-- Take `need` tokens from one bucket and append a ledger entry, or refuse.
-- KEYS[1] bucket (hash: level, at), KEYS[2] ledger (stream)
-- ARGV need, capacity, refill per second, request id, tenant
-- Returns {1, remaining} or {0, remaining}
local need, capacity, refill = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local state = redis.call('HMGET', KEYS[1], 'level', 'at')
local level, at = tonumber(state[1]) or capacity, tonumber(state[2]) or now
level = math.min(capacity, level + math.max(0, now - at) * refill)
if level < need then
    return {0, string.format('%.0f', level)}
end
level = level - need
redis.call('HSET', KEYS[1], 'level', string.format('%.0f', level), 'at', string.format('%.6f', now))
redis.call('XADD', KEYS[2], '*', 'request', ARGV[4], 'tenant', ARGV[5], 'amount', ARGV[1],
    'remaining', string.format('%.0f', level))
return {1, string.format('%.0f', level)}

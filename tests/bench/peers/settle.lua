-- Replace an estimate by the actual use and append the correction to the ledger.
-- KEYS[1] bucket (hash: level, at), KEYS[2] ledger (stream)
-- ARGV held, used, request id, tenant
-- Returns {1, remaining}
local difference = tonumber(ARGV[1]) - tonumber(ARGV[2])
local level = redis.call('HINCRBYFLOAT', KEYS[1], 'level', string.format('%.0f', difference))
redis.call('XADD', KEYS[2], '*', 'request', ARGV[3], 'tenant', ARGV[4], 'used', ARGV[2], 'remaining', level)
return {1, level}

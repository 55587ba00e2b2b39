-- throttle: take one from a bucket that belongs to no account, or return how long it is empty.
-- needs: state
-- allows: oom (one short string a key, gone within a minute)
-- KEYS[1] q string: the ms at which the bucket has drained; expires then (PX), written only here
-- ARGV[1] the number a minute, 1 to 60000: all at once, then refilled evenly
-- Returns 0 if one was taken, else the ms until one is left
-- Example: 60 a minute, 60 taken a moment ago -> 1000
if #KEYS ~= 1 or #ARGV ~= 1 then return redis.error_reply('ERR throttle takes 1 key and 1 argument') end
local now, each = clock(NO_BATCH), ceil(60000 / ARGV[1])
-- a clock that was set back delays no call by more than a whole bucket
local level = min(max(0, (tonumber(call('GET', KEYS[1])) or now) - now), each * ARGV[1])
local over = level + each - each * ARGV[1]
if over > 0 then return over end
call('SET', KEYS[1], format('%d', now + level + each), 'PX', format('%d', level + each))
return 0

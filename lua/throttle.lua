-- throttle: take one of a bucket that belongs to no account, or tell how long it has none left.
-- needs: state batch
-- allows: oom (one short string a key, gone within a minute)
-- KEYS[1] q string: the ms at which the bucket has drained; gone by then (PX), written here alone
-- ARGV[1] how many a minute, 1 to 60000: so many at once, then refilled evenly
-- Returns 0 where one was taken, else the ms until one is left
-- Example: 60 a minute, 60 taken a moment ago -> 1000
if #KEYS ~= 1 or #ARGV ~= 1 then return redis.error_reply('ERR throttle takes 1 key and 1 argument') end
local now, each = clock(NO_BATCH), ceil(60000 / ARGV[1])
-- a clock that was set back keeps nobody waiting for longer than a whole bucket
local level = min(max(0, (tonumber(call('GET', KEYS[1])) or now) - now), each * ARGV[1])
local over = level + each - each * ARGV[1]
if over > 0 then return over end
call('SET', KEYS[1], format('%d', now + level + each), 'PX', format('%d', level + each))
return 0

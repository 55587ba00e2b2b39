-- share: let calls in within an upstream's capacity and their shares, and give back what ended calls left.
-- needs: state batch shares turns
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
local one = capacity.at_time(call('GET', KEYS[1]), limits, now)
capacity.return_unused(one, limits, cjson.decode(ARGV[3]))
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
  asked.own, answer[at + 1] = capacity.share_of(one, asked, now), 0
  asked.own.use, asked.own.waits = max(asked.own.use, one.use), 0
end
wait, letting = capacity.take_turns(one, limits, asks, answer, free, now)
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
call('SET', KEYS[1], cmsgpack.pack(one), 'PX', KEPT_MS)
return answer

-- grow: note that objects of an organization are there until an end, and how many tokens of text their upstream keeps of each
-- needs: state
-- KEYS[1] own or told sorted set: digests of objects, by when they end (s); the fraction times 2,097,152 is the tokens
-- KEYS[2] told or own sorted set likewise; an object on neither list is added to the first one
-- ARGV[1] end (s)  ARGV[2] tokens that an answer was charged with, 0 without one  ARGV[3] tokens that were added at most
-- ARGV[4…] for each of at most 1,024 objects: its digest, and its score as the call of that answer found it, '' where no call did
-- Returns nothing
-- Example: items of 50 come to a conversation of 900 tokens while it is answered with 960, 40 of them new: 990. Answered alone: 960
if #KEYS ~= 2 or #ARGV < 5 or #ARGV % 2 == 0 then return redis.error_reply('ERR grow takes 2 keys, 3 arguments and pairs') end
local upto, tokens, added = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
for at = 4, #ARGV, 2 do
  local digest, found = ARGV[at], tonumber(ARGV[at + 1])
  local first, second = tonumber(call('ZSCORE', KEYS[1], digest)), tonumber(call('ZSCORE', KEYS[2], digest))
  if not second then first = first or 0 end
  for list, score in pairs({first or false, second}) do
    if score then
      -- each write has a later end, so where the score is the same nothing was added since
      local grown = score == found and tokens or max(tokens, score % 1 * TEXT_TOKENS_MAX + added)
      local ends = max(upto, floor(score) + 1) + min(grown, TEXT_TOKENS_MAX - 1) / TEXT_TOKENS_MAX
      call('ZADD', KEYS[list], format('%.17g', ends), digest)
    end
  end
end

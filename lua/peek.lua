-- peek: states as of now, with due resets applied; changes nothing.
-- needs: bucket quota state
-- allows: nothing (read only)
-- KEYS[1] m  then states, all of one kind
-- ARGV[1] run id  ARGV[2] kind (1 k, 2 u, 3 t, 4 o)
-- Returns the packed states in order, false for a missing one; {0} if the partition is unverified
-- Example: a tenant whose reset was due a minute ago shows its new cycle, while the ledger has no row yet
if #KEYS < 2 or #ARGV ~= 2 then return redis.error_reply('ERR peek takes 2 or more keys and 2 arguments') end
local raw = stored(KEYS, 1)
if not verified(raw[1], ARGV[1]) then return {0} end
local now, kind = clock(NO_BATCH), tonumber(ARGV[2])
local answer = {}
for i = 2, #KEYS do
  local account = raw[i] and open(forms[kind], raw[i])
  if account then
    if kind == KIND_TENANT then due(account, now, 0) end
    drain(account, now)
    answer[i - 1] = write(forms[kind], sizes[kind], account)
  else
    answer[i - 1] = false
  end
end
return answer

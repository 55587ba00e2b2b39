-- peek: states as they stand now, a due reset included; changes nothing.
-- needs: state batch bucket event cycle
-- allows: nothing (read only)
-- KEYS[1] m  then states of any kind, all of the kind named
-- ARGV[1] run id  ARGV[2] kind (1 k, 2 u, 3 t, 4 o)
-- Returns the packed states in order, false where there is none; {0} where the partition is unverified
-- Example: a tenant whose reset was due a minute ago shows its new cycle, and the ledger no row yet
if #KEYS < 2 or #ARGV ~= 2 then return redis.error_reply('ERR peek takes 2 or more keys and 2 arguments') end
local raw = stored(KEYS, 1, any_size)
if not verified(raw[1], ARGV[1]) then return {0} end
local now, kind = clock(NO_BATCH), tonumber(ARGV[2])
local form, size = KEY_FORM, KEY_SIZE
if kind == 2 then form, size = USER_FORM, USER_SIZE end
if kind == 3 then form, size = TENANT_FORM, TENANT_SIZE end
if kind == 4 then form, size = ORGANIZATION_FORM, ORGANIZATION_SIZE end
local answer = {}
for i = 2, #KEYS do
  local a = raw[i] and open(form, raw[i])
  if a then
    if kind == 3 then due(a, now, 0) end
    drain(a, now)
    answer[i - 1] = write(form, size, a)
  else
    answer[i - 1] = false
  end
end
return answer

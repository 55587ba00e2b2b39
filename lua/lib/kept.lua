-- kept: writes accounts of budgets, and decides when a single owner's expires. Needs state, batch, accounts, account.
-- How long such an account is stored after its last window; how many expired ones one write removes from the index.
local EACH_AFTER_MS, STALE_MOST = 86400000, 2

-- Sets the expiry of a single owner's account, in its index too, and removes some expired ones there. An account with an endless
-- window never expires (below 0): the index has the time until which it has a place.
local function keep_each(account, now)
  local index, definition = account[INDEX], account[DEFINITION]
  local last, unused = definition[LAST_END], (floor(now / DAY_MS) + EACH_UNUSED_DAYS + 1) * DAY_MS
  local expires = last == HUGE and -unused or max(last + EACH_AFTER_MS, definition[UNUSED_ENDS] and unused or 0)
  if expires == account[EXPIRES] then return end
  account[EXPIRES], account[HEAD] = expires, false
  call('ZADD', index, abs(expires), sub(account[KEY_NAME], COLON_AT + 1))
  local stale = expires > 0 and call('ZRANGE', index, '-inf', now, 'BYSCORE', 'LIMIT', 0, STALE_MOST) or {}
  if #stale > 0 then call('ZREM', index, values(stale)) end
end

-- Whether a single owner's account is unused, with no call in flight that may use it: then it takes no place. A new account is about
-- to be used.
local function is_unused(account)
  if not account[INDEX] or account[IS_NEW] or account[CALLS] > 0 then return false end
  for _, amount in ipairs(account[METERS]) do
    if amount ~= 0 then return false end
  end
  return true
end

-- Writes an account in place if its length is unchanged, or deletes it; nothing here can fail.
local function write_budget(account, raw, now)
  local key, definition, ends = account[KEY_NAME], account[DEFINITION], account[EXPIRES]
  if definition and is_unused(account) then
    call('ZREM', account[INDEX], sub(key, COLON_AT + 1))
    definition = false
  end
  if not definition then
    account[PACKED] = false
    if not account[IS_NEW] then call('DEL', key) end
    return
  end
  if account[INDEX] then keep_each(account, now) end
  local packed, expires = packed_budget(account), account[EXPIRES]
  account[IS_NEW] = false
  remember(key, account, packed, PACKED)
  local state = as_written(key, packed)
  if expires <= 0 then call('MSET', key, state)
  elseif raw and expires == ends and #raw == #state then call('SETRANGE', key, 0, state) -- it ends when it did, for less
  else call('SET', key, state, 'PXAT', expires) end
end

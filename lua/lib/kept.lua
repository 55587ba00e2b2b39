-- kept: how accounts of budgets are written, and when somebody's is forgotten. Needs state, batch, accounts, account.
-- How long an account for each is kept after the last window that it is in; how many forgotten ones leave the index at a time.
local EACH_AFTER_MS, STALE_MOST = 86400000, 2

-- notes until when an account for each is kept, in its index too; some forgotten ones leave. One that has an amount without end
-- is kept (below 0): the index says until when it has a place
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

-- whether nothing is used of an account for each, and no call is in flight that may: then it takes nobody's place. A new one is
-- about to be used
local function is_unused(account)
  if not account[INDEX] or account[IS_NEW] or account[CALLS] > 0 then return false end
  for _, amount in ipairs(account[METERS]) do
    if amount ~= 0 then return false end
  end
  return true
end

-- writes an account with its stored length, or says that it is forgotten; nothing can keep it from that any more
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

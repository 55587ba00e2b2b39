-- reset: sets the use in a budget's window to 0, or takes a part of it away, in each account. Needs state, event, wide, definition, windows, account.
local RESET_ACCOUNTS_MAX, NO_ID = 256, '000000000000000000000000000000000000'

-- Takes an amount of money from what is used, but no more than that, or all of it; below 0 it is added. Returns the rest and the
-- taken amount, each in two numbers.
local function take_used(used, used_rest, amount)
  local left, left_rest = 0, 0
  if amount then
    left, left_rest = wide.added(used, used_rest, wide.split(-amount))
    if left < 0 and amount > 0 then left, left_rest = min(used, 0), used < 0 and used_rest or 0 end
  end
  return left, left_rest, wide.added(used, used_rest, -left, -left_rest)
end

-- Returns the changed accounts; each has an entry with the amount taken from the window, or from each part of one that rolls. There is
-- always an entry, which records the control write. `parts` has an AMENDED for each account, or nothing: then all that is used is taken.
local function reset_windows(events, keys, raw, first, before, budget_id, now, epoch, organization_id, source, metadata, parts)
  local accounts, known, part_at = {}, #events, 1
  if #keys - first >= 2 * RESET_ACCOUNTS_MAX then error({err = 'ERR a reset is of up to 256 accounts'}) end
  local at = first
  while at <= #keys do
    local account = account_at(keys[at], raw[at - before], now)
    if byte(keys[at], COLON_AT) == COLON then account[INDEX], at = keys[at + 1], at + 1 end
    at = at + 1
    local start, amount
    if parts ~= '' then
      start, amount = AMENDED.read(parts, part_at)
      part_at = part_at + AMENDED_BYTES
    end
    local definition, told = account[DEFINITION], #events
    local opened = kinds.listed(definition, account[METERS])
    for _, window in ipairs(opened) do
      local unit, is_wide = window.flags % WINDOW_ENFORCES, definition[UNITS][window.place] == WIDE
      local money = is_wide or unit == FLAG_MONEY
      local function take(began, used, used_rest)
        if start and start ~= began then return used, used_rest end
        local left, left_rest, taken, taken_rest = take_used(used, used_rest, start and amount)
        if taken == 0 and taken_rest == 0 then return used, used_rest end
        events[#events + 1] = event(nil, organization_id, {
          kind = EVENT_BUDGET, flags = 0, at = now, epoch = epoch, source = source, metadata = metadata,
          amount = is_wide and not start and taken or 0, -- of money in two numbers an entry has the whole units as its amount
          money = money and (is_wide and not start and taken_rest or wide.joined(taken, taken_rest)) or 0,
          raw_tokens = unit == FLAG_TOKENS and taken or 0, requests = unit == FLAG_REQUESTS and taken or 0,
          budgets = BUDGETED.pack{budget_id = budget_id, start = began, value = value_of(account) or NOBODY},
        })
        return left, left_rest
      end
      if window.budget_id == budget_id then
        if window.ring then rings.change(window, take) else window.used, window.used_rest = take(window.start, window.used, window.used_rest) end
      end
    end
    if #events > told then
      account[DEFINITION], account[METERS] = wide.gathered(opened)
      account[HEAD] = false
      accounts[#accounts + 1] = account
    end
  end
  if #events == known and source ~= '' then
    events[known + 1] = event(nil, organization_id, {kind = EVENT_BUDGET, flags = 0, at = now, epoch = epoch, source = source, metadata = metadata})
  end
  return accounts
end

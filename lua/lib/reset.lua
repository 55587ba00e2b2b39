-- reset: sets the use in a budget's window to 0, in each account. Needs state, event, wide, definition, windows, account.
local RESET_ACCOUNTS_MAX, NO_ID = 256, '000000000000000000000000000000000000'

-- Returns the changed accounts; each has an entry with the amount taken from the window. There is always an entry, which records the
-- control write.
local function reset_windows(events, keys, raw, first, before, budget_id, now, epoch, organization_id, source, metadata)
  local accounts, known = {}, #events
  if #keys - first >= 2 * RESET_ACCOUNTS_MAX then error({err = 'ERR a reset is of up to 256 accounts'}) end
  local at = first
  while at <= #keys do
    local account = account_at(keys[at], raw[at - before], now)
    if byte(keys[at], COLON_AT) == COLON then account[INDEX], at = keys[at + 1], at + 1 end
    at = at + 1
    local meters, definition = account[METERS], account[DEFINITION]
    for place = 1, definition and definition[COUNT] or 0 do
      local fields, field_at = definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE
      local used = meters[place * 2 - 1]
      local unit, below = definition[UNITS][place], nil
      for _, window in ipairs(definition[WIDES] or wide.none) do
        if window[WIDE_PLACE] == place then below = window[WIDE_BELOW] end
      end
      if fields[field_at + WINDOW_BUDGET_ID_AT] == budget_id and (used ~= 0 or below and meters[below] ~= 0) then
        local facts = {kind = EVENT_BUDGET, flags = 0, at = now, epoch = epoch}
        facts.source, facts.metadata = source, metadata
        facts.money, facts.raw_tokens, facts.requests = unit == FLAG_MONEY and used or 0, unit == FLAG_TOKENS and used or 0, unit == FLAG_REQUESTS and used or 0
        if below then -- of money in two numbers an entry has the whole units as its amount
          facts.amount, facts.money, meters[below] = used, meters[below], 0
        end
        facts.budgets = told_of(fields, place, place, value_of(account) or NOBODY)
        meters[place * 2 - 1] = 0
        accounts[#accounts + 1] = account
        events[#events + 1] = event(nil, organization_id, facts)
      end
    end
  end
  if #events == known and source ~= '' then
    events[known + 1] = event(nil, organization_id, {kind = EVENT_BUDGET, flags = 0, at = now, epoch = epoch, source = source, metadata = metadata})
  end
  return accounts
end

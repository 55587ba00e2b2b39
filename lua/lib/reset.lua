-- reset: sets the use in a budget's window to 0, or takes a part of it away, in each account. Needs state, event, wide, definition, windows, account.
local RESET_ACCOUNTS_MAX, NO_ID = 256, '000000000000000000000000000000000000'

-- Takes an amount of money from what a window has used, but no more than that; below 0 it is added. Returns what was taken.
local function take_used(meters, at, below, amount)
  local used = meters[at]
  if not below then
    meters[at] = min(INTEGER_MAX, max(min(used, 0), used - amount))
    return used - meters[at]
  end
  wide.move(meters, at, below, -amount)
  if meters[at] >= 0 then return amount end
  local missing = wide.joined(meters[at], meters[below])
  meters[at], meters[below] = 0, 0
  return amount + missing
end

-- Returns the changed accounts; each has an entry with the amount taken from the window. There is always an entry, which records the
-- control write. `parts` has an AMENDED for each account, or nothing: then all that is used is taken.
local function reset_windows(events, keys, raw, first, before, budget_id, now, epoch, organization_id, source, metadata, parts)
  local accounts, known, part_at = {}, #events, 1
  if #keys - first >= 2 * RESET_ACCOUNTS_MAX then error({err = 'ERR a reset is of up to 256 accounts'}) end
  local at = first
  while at <= #keys do
    local account = account_at(keys[at], raw[at - before], now)
    if byte(keys[at], COLON_AT) == COLON then account[INDEX], at = keys[at + 1], at + 1 end
    at = at + 1
    local meters, definition = account[METERS], account[DEFINITION]
    local start, amount
    if parts ~= '' then
      start, amount = AMENDED.read(parts, part_at)
      part_at = part_at + AMENDED_BYTES
    end
    for place = 1, definition and definition[COUNT] or 0 do
      local fields, field_at = definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE
      local used = meters[place * 2 - 1]
      local unit, below = definition[UNITS][place], nil
      for _, window in ipairs(definition[WIDES] or wide.none) do
        if window[WIDE_PLACE] == place then below = window[WIDE_BELOW] end
      end
      local is_ours = fields[field_at + WINDOW_BUDGET_ID_AT] == budget_id
      local taken = is_ours and start == fields[field_at + WINDOW_START_AT] and take_used(meters, place * 2 - 1, below, amount) or 0
      if is_ours and (taken ~= 0 or not start and (used ~= 0 or below and meters[below] ~= 0)) then
        local facts = {kind = EVENT_BUDGET, flags = 0, at = now, epoch = epoch}
        facts.source, facts.metadata = source, metadata
        facts.money, facts.raw_tokens, facts.requests = unit == FLAG_MONEY and used or 0, unit == FLAG_TOKENS and used or 0, unit == FLAG_REQUESTS and used or 0
        if start then facts.money, facts.raw_tokens, facts.requests = taken, 0, 0
        elseif below then -- of money in two numbers an entry has the whole units as its amount
          facts.amount, facts.money, meters[below] = used, meters[below], 0
        end
        facts.budgets = told_of(fields, place, place, value_of(account) or NOBODY)
        if not start then meters[place * 2 - 1] = 0 end
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

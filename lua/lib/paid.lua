-- paid: counts a call in the windows of its budgets, for the entry too.
-- Needs state, cycle, wide, definition, account, held.

-- The amounts that budgets count.
local function paid_of(packed)
  local money, budget_tokens, requests = PAID.read(packed)
  return money, budget_tokens, requests
end

-- The windows of an account that are not gone, for an entry.
local function windows_in_entry(account, definition)
  local told, value = account[TOLD_AS], value_of(account)
  if not told then
    told = value and told_of(definition[FIELDS], 1, definition[LIVE_COUNT], value) or definition[TOLD]
    account[TOLD_AS] = told
  end
  return told
end

-- Counts a use in every window, and in windows that are gone if the call held there; returns the windows, for an entry. Of a past use
-- (`since`), only windows that had begun by then count.
local told_parts, amounts_paid = {}, {0, 0, 0, 0}
-- The windows in the last entry, if none of the accounts' windows is gone.
local told_accounts, told_last
local function pay_windows(accounts, held, money, budget_tokens, requests, since)
  local told, is_told, all_live = 0, not since and accounts == told_accounts, not since
  amounts_paid[FLAG_MONEY], amounts_paid[FLAG_TOKENS], amounts_paid[FLAG_REQUESTS] = money, budget_tokens, requests
  for i = 1, #accounts do
    local account = accounts[i]
    local meters, definition = account[METERS], account[DEFINITION]
    if definition then
      local units, live, count, passed = definition[UNITS], definition[LIVE_COUNT], definition[COUNT], nil
      if not since then
        if not is_told then
          told = told + 1
          told_parts[told] = account[TOLD_AS] or windows_in_entry(account, definition)
        end
        for place = 1, live do
          local used = meters[place * 2 - 1] + amounts_paid[units[place]]
          if used > INTEGER_MAX then used, passed = wide.passing(meters, units, place, passed) end
          meters[place * 2 - 1] = used
        end
        if definition[WIDES] then wide.use_some(definition, meters, money, 1, live) end
      end
      if since or count > live then
        local fields = definition[FIELDS]
        all_live = false
        for place = since and 1 or live + 1, count do
          local at = (place - 1) * DEFINED_WINDOW_SIZE
          local counts = place <= live and fields[at + WINDOW_START_AT] <= since
          if counts or (held[i] and is_among(held[i], fields[at + WINDOW_BUDGET_ID_AT])) then
            local used = meters[place * 2 - 1] + amounts_paid[units[place]]
            if used > INTEGER_MAX then used, passed = wide.passing(meters, units, place, passed) end
            meters[place * 2 - 1] = used
            if definition[WIDES] then wide.use_some(definition, meters, money, place, place) end
            told = told + 1
            told_parts[told] = told_of(fields, place, place, value_of(account) or NOBODY)
          end
        end
      end
      if passed then wide.widen(account, listed(definition, meters), passed, money) end
    end
  end
  if is_told then return told_last end
  local packed = table.concat(told_parts, '', 1, told)
  if all_live then told_accounts, told_last = accounts, packed end
  return packed
end

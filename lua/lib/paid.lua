-- paid: counts a call in the windows of its budgets, for the entry too.
-- Needs state, cycle, wide, definition, rings, windows, account, held.

-- A request's id that begins with its time.
local TIMED_ID = '^(%x+)-(%x+)-7'
-- The amounts that budgets count.
local function paid_of(packed)
  local money, budget_tokens, requests = PAID.read(packed)
  return money, budget_tokens, requests
end

-- The windows of an account that are not gone, for an entry.
local function windows_in_entry(account, definition)
  local told, value = account[TOLD_AS], value_of(account)
  if not told then
    told = value and kinds.told_of(definition[FIELDS], 1, definition[LIVE_COUNT], value) or definition[TOLD]
    account[TOLD_AS] = told
  end
  return told
end

-- When a call was admitted: by its hold, or a tombstone; else as its id says that it began.
local function admission_at(packed_hold, request_id, now)
  if packed_hold then return HOLD.field(packed_hold, 'created') end
  local first, second = string.match(request_id, TIMED_ID)
  return first and min(tonumber(first .. second, 16), now) or now
end

-- Counts a use in every window, and in windows that are gone if the call held there; returns the windows, for an entry. Of a past use
-- (`since`), only windows that had begun by then count. A call counts in the parts of windows that roll as of when it was admitted: by its
-- hold, or as its id says.
local told_parts, amounts_paid = {}, {0, 0, 0, 0}
-- The windows in the last entry, if none of the accounts' windows is gone, and all count by now.
local told_accounts, told_last
local function pay_windows(accounts, held, money, budget_tokens, requests, since, now, packed_hold, request_id)
  local told, is_told, all_live, admission = 0, not since and accounts == told_accounts, not since, nil
  amounts_paid[FLAG_MONEY], amounts_paid[FLAG_TOKENS], amounts_paid[FLAG_REQUESTS] = money, budget_tokens, requests
  for i = 1, #accounts do
    local account = accounts[i]
    local definition = account[DEFINITION]
    if definition then
      local special, rolls, early = definition[SPECIAL], false, false
      if special then
        all_live = false
        if definition[WAITS] or definition[UNTOLD] then kinds.begin(account, amounts_paid, min(since or now, now), now, true) end
        definition = account[DEFINITION]
        rolls, account[FREED] = definition[RINGS], nil
        admission = admission or since or admission_at(packed_hold, request_id, now)
        early = rolls and admission < definition[PART_BEGAN]
      end
      local meters, units, live, count, passed = account[METERS], definition[UNITS], definition[LIVE_COUNT], definition[COUNT], nil
      if not since then
        if not is_told then
          told = told + 1
          told_parts[told] = early and rings.told(definition, admission, now, 1, live, value_of(account) or NOBODY) or account[TOLD_AS] or windows_in_entry(account, definition)
        end
        for place = 1, live do
          local used = meters[place * 2 - 1] + amounts_paid[units[place]]
          if used > INTEGER_MAX then used, passed = wide.passing(meters, units, place, passed) end
          meters[place * 2 - 1] = used
        end
        if definition[WIDES] then wide.use_some(definition, meters, money, 1, live) end
        if rolls then rings.count(definition, meters, amounts_paid, admission, now, 1, live, passed) end
      end
      if since or count > live then
        local fields = definition[FIELDS]
        all_live = false
        for place = since and 1 or live + 1, count do
          local at = (place - 1) * DEFINED_WINDOW_SIZE
          local counts = place <= live and (fields[at + WINDOW_START_AT] <= since and fields[at + WINDOW_START_AT] >= (kinds.of(fields[at + WINDOW_FLAGS_AT]) == FLAG_FIRST_USE and 1 or 0)
            or rings.at_place(definition, place))
          if counts or (held[i] and is_among(held[i], fields[at + WINDOW_BUDGET_ID_AT])) then
            local used = meters[place * 2 - 1] + amounts_paid[units[place]]
            if used > INTEGER_MAX then used, passed = wide.passing(meters, units, place, passed) end
            meters[place * 2 - 1] = used
            if definition[WIDES] then wide.use_some(definition, meters, money, place, place) end
            if rolls then rings.count(definition, meters, amounts_paid, admission, now, place, place, passed) end
            told = told + 1
            told_parts[told] = rolls and rings.told(definition, admission, now, place, place, value_of(account) or NOBODY)
              or kinds.told_of(fields, place, place, value_of(account) or NOBODY)
          end
        end
      end
      if passed then wide.widen(account, kinds.listed(definition, meters), passed, money, admission, now) end
      if special and definition[WAITS] then kinds.empty(account[DEFINITION], account[METERS]) end
    end
  end
  if is_told then return told_last end
  local packed = table.concat(told_parts, '', 1, told)
  if all_live then told_accounts, told_last = accounts, packed end
  return packed
end

-- Adds an entry for what each window carries that was used for the first time in its interval; returns how many entries there are then.
function carries.told(events, count, organization_id, now, epoch)
  for _, begun in ipairs(carries.begun) do
    local account, budget_id, start, unit, carried, carried_rest, end_limit = values(begun)
    local money, is_left = unit ~= FLAG_TOKENS and unit ~= FLAG_REQUESTS, carried >= 0
    count = count + 1
    if not is_left then carried, carried_rest = wide.added(-carried, 0, 0, -carried_rest) end
    events[count] = event(nil, organization_id, {
      kind = EVENT_CARRY, flags = is_left and ENTRY_IN or 0, at = now, epoch = epoch, amount = money and carried or 0, money = money and carried_rest or 0,
      raw_tokens = unit == FLAG_TOKENS and carried or 0, requests = unit == FLAG_REQUESTS and carried or 0, metadata = end_limit,
      budgets = BUDGETED.pack{budget_id = budget_id, start = start, value = value_of(account) or NOBODY},
    })
  end
  carries.begun = false
  return count
end

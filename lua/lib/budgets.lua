-- budgets: what calls hold and use in the windows of their budgets, by accounts. Amounts are by unit, as in the flags of windows.
-- needs: accounts budget_accounts carries entry quota rings state steps wide windows
-- sets: unheld
local OTHERS = 'other'

-- The accounts of single owners that cannot be made, a bit for each: they do not exist, and the most that may have a place, or may be
-- stored, exist already. The calls then use the shared account instead.
local function too_many(accounts, now)
  local found = 0
  for place, account in ipairs(accounts) do
    local index = account[INDEX]
    if index and account[IS_NEW] == true and sub(account[KEY_NAME], COLON_AT + 1) ~= OTHERS then
      local made = made_of[index] or 0
      if call('ZCOUNT', index, now, '+inf') + made >= EACH_ACCOUNTS_MAX or call('ZCARD', index) + made >= EACH_KEPT_MAX then
        found = found + 2 ^ (place - 1)
      end
    end
  end
  return found
end

-- The refusal by a window, if it is stronger than a former one: the latest end of a used-up window, then amounts held by calls. It has
-- that end and the packed answer. A window that rolls ends for a call once the call fits. Of a wide window amounts below a whole unit are
-- told, too.
local function stronger_refusal(refusal, now, verdict, account, place, need, least)
  local meters, definition = account[METERS], account[DEFINITION]
  local fields, at, ring = definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE, rings.at_place(definition, place)
  local limit, used, held, limit_rest, used_rest, held_rest = definition[LIMITS][place], meters[place * 2 - 1], meters[place * 2], 0, 0, 0
  local wide_window = wide.at_place(definition, place)
  if wide_window then
    local below = wide_window[WIDE_BELOW]
    limit, limit_rest, used_rest, held_rest = wide_window[WIDE_WHOLE], wide_window[WIDE_REST], meters[below], meters[below + 1]
  end
  local ends, carried, carried_rest = fields[at + WINDOW_NEXT_AT], carries.of(definition, meters, place)
  if ring then ends = rings.fits_at(definition, meters, ring, limit - used - held, limit_rest - used_rest - held_rest, held, held_rest, least) end
  local till = verdict == VERDICT_QUOTA_HELD and -1 or ends == 0 and HUGE or ends
  if refusal and till <= refusal[1] then return refusal end
  if wide_window then
    limit, limit_rest = wide.added(limit, limit_rest, carried, carried_rest)
    used, used_rest = wide.added(used, used_rest, carried, carried_rest)
  else limit, used = limit + carried, used + carried end
  return {till, REFUSED.pack{
    verdict = verdict, now = now, scope = SCOPE_BUDGET, kind = KIND_BUDGET, used = used, limit = limit, till = ends,
    budget = fields[at + WINDOW_BUDGET_ID_AT], unit = definition[UNITS][place], held = held, need = need,
    limit_rest = limit_rest, used_rest = used_rest, held_rest = held_rest,
  }}
end

-- Cuts the needs of a call to the free amount of every window that enforces, if it states no maximum (`leasts` not 0), and not below
-- `leasts`; or returns the refusal: -13 used up, -9 held.
local function budgets_short(accounts, now, needs, leasts)
  local refusal
  for i = 1, #accounts do
    local account = accounts[i]
    local meters, definition = account[METERS], account[DEFINITION]
    local units, limits = definition[UNITS], definition[LIMITS]
    for place = 1, definition[LIVE_COUNT] do
      local unit, limit = units[place], limits[place]
      local need = needs[unit]
      if limit and need > 0 then
        local used = meters[place * 2 - 1]
        local left = limit - used
        local free = left - meters[place * 2]
        if need > free then
          local least = leasts[unit] > 0 and min(leasts[unit], need) or need
          local bound, verdict = cut(left, free, least, VERDICT_BUDGET_EXCEEDED)
          if bound then needs[unit] = bound else refusal = stronger_refusal(refusal, now, verdict, account, place, need, least) end
        end
      end
    end
    if definition[WIDES] then refusal = wide.short(stronger_refusal, refusal, account, now, needs, leasts) end
  end
  return refusal and refusal[2]
end

-- The bytes of the lengths of a name and of ids.
local LENGTHS_BYTES = 2
local no_windows = {}

-- The packed ids of a hold's windows in each account; nil if it took from other accounts.
local function held_in(accounts, packed_hold, size)
  local held, at = {}, #packed_hold - size + 1
  local is_all = sub(packed_hold, at) == held_as(accounts)
  for i = 1, #accounts do
    local account = accounts[i]
    if is_all then held[i] = account[DEFINITION] and account[DEFINITION][IDS] or ''
    else
      if at > #packed_hold then return nil end
      local name, ids = HELD.read(packed_hold, at)
      if name ~= sub(account[KEY_NAME], NAME_AT) then return nil end
      held[i], at = ids, at + LENGTHS_BYTES + #name + #ids
    end
  end
  return (is_all or at > #packed_hold) and held or nil
end

local function is_among(ids, id)
  for at = 1, #ids, BUDGET_ID_BYTES do
    local budget_id = BUDGET_ID.read(ids, at)
    if budget_id == id then return true end
  end
end

-- Changes the held amounts in the windows of a hold.
local function move_held(accounts, held_windows, amounts)
  for i, ids in ipairs(held_windows) do
    local meters, definition = accounts[i][METERS], accounts[i][DEFINITION]
    local units, fields, all = definition and definition[UNITS], definition and definition[FIELDS], definition and ids == definition[IDS]
    for place = 1, definition and (all and definition[LIVE_COUNT] or definition[COUNT]) or 0 do
      if all or is_among(ids, fields[(place - 1) * DEFINED_WINDOW_SIZE + WINDOW_BUDGET_ID_AT]) then
        hold_more(meters, place * 2 - 1, amounts[units[place]])
      end
    end
    if definition and definition[WIDES] then wide.hold_some(definition, meters, amounts[FLAG_MONEY], not all and ids, is_among) end
  end
end

-- Gives back the amounts of a hold, in its windows; returns these (`held_windows`): of each account their packed ids.
local function give_back_windows(accounts, packed_hold)
  if not packed_hold then return no_windows end
  local money, budget_tokens, budgets = HOLD.read(packed_hold)
  if budgets == 0 then return no_windows end
  local held_windows = held_in(accounts, packed_hold, budgets)
  if not held_windows then error({err = 'ERR a hold ends with the budget accounts it took from'}) end
  for i = 1, #accounts do
    local account = accounts[i]
    if account[IS_EACH] then account[CALLS] = held_after(account[CALLS], 1) end
  end
  move_held(accounts, held_windows, {-money, -budget_tokens, 0, -1})
  return held_windows
end

-- The needs of the present call, and the least amounts they may be cut to; always one request.
local needs, leasts = {0, 0, 0, 1}, {0, 0, 0, 0}

-- Decides what to hold for a call (`needs`), in place of a former hold's; returns the refusal, if any. Under a strict plan that is all it
-- could use.
local function refusal_by_budgets(accounts, now, packed, raised_packed, strict)
  local money, money_most, money_least, budget_tokens, budget_tokens_most, budget_tokens_least = NEED.read(packed)
  if strict then money, budget_tokens = max(money, money_most), max(budget_tokens, budget_tokens_most) end
  local full = too_many(accounts, now)
  if full > 0 then return refused(VERDICT_OTHER_ACCOUNT, now, SCOPE_BUDGET, KIND_BUDGET, full) end
  if raised_packed then give_back_windows(accounts, raised_packed) end
  needs[FLAG_MONEY], needs[FLAG_TOKENS], leasts[FLAG_MONEY], leasts[FLAG_TOKENS] = money, budget_tokens, money_least, budget_tokens_least
  local refusal = budgets_short(accounts, now, needs, leasts)
  if not refusal and #packed > NEED_BYTES then return stopped_by_steps(accounts, packed) end
  return refusal
end

-- The answer about a wide window that is the tightest one.
local function answer_of_wide(definition, meters, wanted, window)
  local place, below = window[WIDE_PLACE], window[WIDE_BELOW]
  local carried, carried_rest = carries.of(definition, meters, place)
  local used, used_rest = wide.added(meters[place * 2 - 1] + meters[place * 2] + carried, meters[below] + meters[below + 1], 0, carried_rest)
  local limit, limit_rest = wide.added(window[WIDE_WHOLE] + carried, window[WIDE_REST], 0, carried_rest)
  local fields, at = definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE
  return BUDGETS.pack{
    money = wanted[FLAG_MONEY], budget_tokens = wanted[FLAG_TOKENS], budget = fields[at + WINDOW_BUDGET_ID_AT], limit = limit,
    used = used, reset = rings.resets_at(definition, meters, place) or fields[at + WINDOW_NEXT_AT], unit = WIDE, limit_rest = limit_rest,
    used_rest = used_rest,
  }
end

-- Holds `needs` in every window; returns the part of the hold about them, money and tokens, and the tightest window that enforces,
-- packed, as it is then.
local function hold_windows(accounts, now)
  local least_left, tightest, tight_place, tight_used, tight_meters = HUGE, nil, 0, 0, nil
  local wide_left, tight_wide, wide_account, rolls = HUGE, nil, nil, false
  for i = 1, #accounts do
    local account = accounts[i]
    local meters, definition = account[METERS], account[DEFINITION]
    if definition[SPECIAL] then
      if definition[WAITS] then begin_windows(account, needs, now, now) end
      meters, definition = account[METERS], account[DEFINITION]
      rolls = rolls or definition[RINGS]
    end
    local units, limits = definition[UNITS], definition[LIMITS]
    if account[IS_EACH] then account[CALLS] = account[CALLS] + 1 end
    for place = 1, definition[LIVE_COUNT] do
      local held, limit = meters[place * 2] + needs[units[place]], limits[place]
      if held > INTEGER_MAX then held = INTEGER_MAX end
      meters[place * 2] = held
      if limit then
        local used = meters[place * 2 - 1] + held
        local left = limit > 0 and (limit - used) / limit or 0
        if left < least_left then least_left, tightest, tight_place, tight_used, tight_meters = left, definition, place, used, meters end
      end
    end
    if definition[WIDES] then
      local found
      least_left, found = wide.hold_all(definition, meters, needs, least_left)
      if found then wide_left, tight_wide, wide_account = least_left, found, account end
    end
  end
  local money, budget_tokens = needs[FLAG_MONEY], needs[FLAG_TOKENS]
  local answer
  if tight_wide and wide_left == least_left then
    answer = answer_of_wide(wide_account[DEFINITION], wide_account[METERS], needs, tight_wide)
    return held_as(accounts), money, budget_tokens, rolls and answer .. rings.told_frees(accounts) or answer
  end
  if not tightest then answer = BUDGETS.span('', 'limit_rest', {money = money, budget_tokens = budget_tokens})
  else
    local fields, at, limit, reset = tightest[FIELDS], (tight_place - 1) * DEFINED_WINDOW_SIZE, tightest[LIMITS][tight_place], nil
    if tightest[CARRIES] then
      local carried = carries.of(tightest, tight_meters, tight_place)
      limit, tight_used = limit + carried, tight_used + carried
    end
    if rolls then reset = rings.resets_at(tightest, tight_meters, tight_place) end
    answer = BUDGETS.span('', 'limit_rest', {
      money = money, budget_tokens = budget_tokens, budget = fields[at + WINDOW_BUDGET_ID_AT], limit = limit,
      used = tight_used, reset = reset or fields[at + WINDOW_NEXT_AT], unit = tightest[UNITS][tight_place],
    })
  end
  -- behind what is below a whole unit of a wide window
  if rolls then answer = answer .. ZERO .. ZERO .. rings.told_frees(accounts) end
  return held_as(accounts), money, budget_tokens, answer
end

-- Most calls have no loop over windows: it is written out for their accounts, by the structure of definitions alone (of each window its
-- unit, and whether it enforces), never by amounts. Where a window has too little, or passes the largest number, this text
-- changes nothing and answers nothing: then the loops of this file do the call. While the cache is full they do the calls of further
-- structures too, since a parse costs more than it saves. It is emptied once so many lookups have found no place in it.
-- Each line stands once in a call, or for each account, each account of one owner (`owned`), each window, each one that enforces. In it
-- i is the account's number, w the window's among all, used and held its places in the meters.
-- docs/internals/scripts.md has an example.
local FORMS_MAX, FORMS_MISSED_MAX, WRITTEN_WINDOWS_MAX = 128, 100000, 24
local OPEN_ACCOUNT = {'account', 'local a$i = accounts[$i] local m$i, l$i = a$i[' .. METERS .. '], a$i[' .. DEFINITION .. '][' .. LIMITS .. ']'}
local HOLD_LINES = {
  {'call', 'return function(accounts, n1, n2) local n4, least, tight, used, left = 1, 2 ^ 53'}, OPEN_ACCOUNT,
  {'window', 'local u$w, h$w, x$w = m$i[$used], m$i[$held], l$i[$place]'},
  {'enforced', 'if n$unit > 0 and n$unit > x$w - u$w - h$w then return end'},
  {'window', 'h$w = h$w + n$unit if h$w > $most then return end'},
  {'window', 'm$i[$held] = h$w'},
  {'owned', 'a$i[' .. CALLS .. '] = a$i[' .. CALLS .. '] + 1'},
  {'enforced', 'left = x$w > 0 and (x$w - (u$w + h$w)) / x$w or 0 if left < least then least, tight, used = left, $w, u$w + h$w end'},
  {'call', 'return true, tight, used end'},
}
-- Gives back what a call held (b), and counts what it used (p); answers whether more was given back than held, too.
local SETTLE_LINES = {
  {'call', 'return function(accounts, b1, b2, p1, p2, p4) local b4, short = 1, false'}, OPEN_ACCOUNT,
  {'window', 'local u$w, h$w = m$i[$used] + p$unit, m$i[$held] - b$unit if u$w > $most then return end'},
  {'window', 'if h$w < 0 then h$w, short = 0, true end m$i[$used], m$i[$held] = u$w, h$w'},
  {'owned', 'a$i[' .. CALLS .. '] = a$i[' .. CALLS .. '] - 1 if a$i[' .. CALLS .. '] < 0 then a$i[' .. CALLS .. '], short = 0, true end'},
  {'call', 'return true, short end'},
}

-- The function of these lines for accounts of this structure.
local function written_out(lines, accounts)
  local text = {}
  for _, line in ipairs(lines) do
    local where, w = line[1], 0
    if where == 'call' then text[#text + 1] = line[2] end
    for i = 1, where == 'call' and 0 or #accounts do
      local account = accounts[i]
      local definition = account[DEFINITION]
      if where == 'account' or where == 'owned' and account[IS_EACH] then text[#text + 1] = string.gsub(line[2], '%$i', i) end
      for place = 1, definition[LIVE_COUNT] do
        w = w + 1
        if where == 'window' or where == 'enforced' and definition[LIMITS][place] then
          local names = {i = i, w = w, used = place * 2 - 1, held = place * 2, place = place, unit = definition[UNITS][place],
            most = format('%.0f', INTEGER_MAX)} -- as a number it would be rounded
          text[#text + 1] = string.gsub(line[2], '%$(%a+)', names)
        end
      end
    end
  end
  return loadstring(concat(text, '\n'))()
end

-- The functions for a call's accounts (`hold`, `settle`), with the account and place of each window by its number; false if they are not
-- all plain, one is new, or the cache has no place.
local written_forms, forms_count, forms_missed = {}, 0, 0
local function form_of(accounts)
  local form = accounts.form
  if form ~= nil then return form end
  form = written_forms
  for i = 1, #accounts do
    local account = accounts[i]
    local definition = account[DEFINITION]
    local structure = definition and definition[account[IS_EACH] and EACH_STRUCTURE or STRUCTURE]
    if not structure or account[IS_NEW] == true then return false end
    local following = form[structure]
    if not following then
      if forms_count == FORMS_MAX then
        forms_missed = forms_missed + 1
        if forms_missed > FORMS_MISSED_MAX then written_forms, forms_count, forms_missed = {}, 0, 0 end
        return false
      end
      following, forms_count = {account_of = {}, place_of = {}}, forms_count + 1
      form[structure] = following
    end
    form = following
  end
  if form.hold == nil then
    for i, account in ipairs(accounts) do
      for place = 1, account[DEFINITION][LIVE_COUNT] do form.account_of[#form.account_of + 1], form.place_of[#form.place_of + 1] = i, place end
    end
    form.hold = #form.place_of <= WRITTEN_WINDOWS_MAX and written_out(HOLD_LINES, accounts)
    form.settle = form.hold and written_out(SETTLE_LINES, accounts)
  end
  form = form.hold and form
  accounts.form = form
  return form
end

-- Decides and holds at once, for a call that nothing else refuses later. Returns whether it did, then as `hold_windows`.
local function hold_at_once(accounts, packed, strict)
  local form = #packed == NEED_BYTES and form_of(accounts)
  if not form then return false end
  local money, money_most, budget_tokens, budget_tokens_most = NEED.read(packed)
  if strict then money, budget_tokens = max(money, money_most), max(budget_tokens, budget_tokens_most) end
  local is_held, tight, used = form.hold(accounts, money, budget_tokens)
  if not is_held then return false end
  if not tight then return true, held_as(accounts), money, budget_tokens, BUDGETS.span('', 'limit_rest', {money = money, budget_tokens = budget_tokens}) end
  local definition, place = accounts[form.account_of[tight]][DEFINITION], form.place_of[tight]
  local fields, at = definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE
  return true, held_as(accounts), money, budget_tokens, BUDGETS.span('', 'limit_rest', {
    money = money, budget_tokens = budget_tokens, budget = fields[at + WINDOW_BUDGET_ID_AT], limit = definition[LIMITS][place], used = used,
    reset = fields[at + WINDOW_NEXT_AT], unit = definition[UNITS][place],
  })
end

-- A request's id that begins with its time.
local TIMED_ID = '^(%x+)-(%x+)-7'
-- The amounts that budgets count of the present call, by unit; returns money, tokens and requests.
local amounts_paid, nothing_paid = {0, 0, 0, 0}, {0, 0, 0, 0}
local function paid_of(packed)
  local money, budget_tokens, requests = PAID.read(packed)
  amounts_paid[FLAG_MONEY], amounts_paid[FLAG_TOKENS], amounts_paid[FLAG_REQUESTS] = money, budget_tokens, requests
  return money, budget_tokens, requests
end

-- The windows of an account that are not gone, for an entry.
local function windows_in_entry(account, definition)
  local told = account[TOLD_AS]
  if not told then
    local value = value_of(account)
    told = value and windows_of_entry(definition[FIELDS], 1, definition[LIVE_COUNT], value) or definition[TOLD]
    account[TOLD_AS] = told
  end
  return told
end

-- Gives a hold back. Where all windows are plain it counts the use in the same turn, none if the call `is_uncharged`, and returns nil;
-- else it returns the hold's windows.
local function end_hold(accounts, packed_hold, used_at, is_uncharged)
  local form = packed_hold and not used_at and form_of(accounts)
  if form then
    local money, budget_tokens, budgets = HOLD.read(packed_hold)
    if sub(packed_hold, #packed_hold - budgets + 1) == held_as(accounts) then
      local paid = is_uncharged and nothing_paid or amounts_paid
      local is_settled, short = form.settle(accounts, money, budget_tokens, paid[FLAG_MONEY], paid[FLAG_TOKENS], paid[FLAG_REQUESTS])
      unheld = unheld or short
      if is_settled then return nil end
    end
  end
  return give_back_windows(accounts, packed_hold)
end

-- When a call was admitted: by its hold, or a tombstone; else as its id says that it began.
local function admission_at(packed_hold, request_id, now)
  if packed_hold then return HOLD.field(packed_hold, 'created') end
  local first, second = string.match(request_id, TIMED_ID)
  return first and min(tonumber(first .. second, 16), now) or now
end

-- The windows of an account for an entry, where a call was admitted before their last part began.
local function windows_at_admission(definition, admission, now, first, last, value)
  local fields, parts, ring_of = definition[FIELDS], {}, {}
  for _, ring in ipairs(definition[RINGS]) do ring_of[ring[RING_PLACE]] = ring end
  for place = first, last do
    local at, ring = (place - 1) * DEFINED_WINDOW_SIZE, ring_of[place]
    local began = ring and rings.part_of(ring[RING_PART], fields[at + WINDOW_START_AT], admission, now)
    parts[#parts + 1] = ring and BUDGETED.pack{budget_id = fields[at + WINDOW_BUDGET_ID_AT], start = began, value = value} or windows_of_entry(fields, place, place, value)
  end
  return concat(parts)
end

-- The windows of accounts in an entry, if none of them is gone, and all count by now.
local told_parts = {}
local function windows_of_accounts(accounts)
  local told = accounts.told
  if told then return told end
  for i = 1, #accounts do told_parts[i] = windows_in_entry(accounts[i], accounts[i][DEFINITION]) end
  told = concat(told_parts, '', 1, #accounts)
  accounts.told = told
  return told
end

-- Counts a use in every window, and in windows that are gone if the call held there; returns the windows, for an entry. Of a past use
-- (`used_at`), only windows that had begun by then count. Where `held_windows` is nil, `end_hold` counted them already. A call counts in
-- the parts of windows that roll as of when it was admitted: by its hold, or as its id says.
local function pay_windows(accounts, held_windows, used_at, now, packed_hold, request_id)
  if not held_windows then return windows_of_accounts(accounts) end
  local told, admission, money = 0, nil, amounts_paid[FLAG_MONEY]
  for i = 1, #accounts do
    local account = accounts[i]
    local definition = account[DEFINITION]
    if definition then
      local special, rolls, early = definition[SPECIAL], false, false
      if special then
        if definition[WAITS] or definition[UNTOLD] then begin_windows(account, amounts_paid, min(used_at or now, now), now, true) end
        definition = account[DEFINITION]
        rolls, account[FREED] = definition[RINGS], nil
        admission = admission or used_at or admission_at(packed_hold, request_id, now)
        early = rolls and admission < definition[PART_BEGAN]
      end
      local meters, units, live, count, passed = account[METERS], definition[UNITS], definition[LIVE_COUNT], definition[COUNT], nil
      if not used_at then
        told = told + 1
        told_parts[told] = early and windows_at_admission(definition, admission, now, 1, live, value_of(account) or NOBODY) or windows_in_entry(account, definition)
        for place = 1, live do
          local used = meters[place * 2 - 1] + amounts_paid[units[place]]
          if used > INTEGER_MAX then used, passed = wide.passing(meters, units, place, passed) end
          meters[place * 2 - 1] = used
        end
        if definition[WIDES] then wide.use_some(definition, meters, money, 1, live) end
        if rolls then rings.count(definition, meters, amounts_paid, admission, now, 1, live, passed) end
      end
      if used_at or count > live then
        local fields = definition[FIELDS]
        for place = used_at and 1 or live + 1, count do
          local at = (place - 1) * DEFINED_WINDOW_SIZE
          local counts = place <= live and (fields[at + WINDOW_START_AT] <= used_at and fields[at + WINDOW_START_AT] >= (kind_of_window(fields[at + WINDOW_FLAGS_AT]) == FLAG_FIRST_USE and 1 or 0)
            or rings.at_place(definition, place))
          if counts or (held_windows[i] and is_among(held_windows[i], fields[at + WINDOW_BUDGET_ID_AT])) then
            local used = meters[place * 2 - 1] + amounts_paid[units[place]]
            if used > INTEGER_MAX then used, passed = wide.passing(meters, units, place, passed) end
            meters[place * 2 - 1] = used
            if definition[WIDES] then wide.use_some(definition, meters, money, place, place) end
            if rolls then rings.count(definition, meters, amounts_paid, admission, now, place, place, passed) end
            told = told + 1
            told_parts[told] = rolls and windows_at_admission(definition, admission, now, place, place, value_of(account) or NOBODY)
              or windows_of_entry(fields, place, place, value_of(account) or NOBODY)
          end
        end
      end
      if passed then
        widen_windows(account, opened_windows(definition, meters), passed, money, admission, now)
        accounts.form = nil
      end
      if special and definition[WAITS] then empty_windows(account[DEFINITION], account[METERS]) end
    end
  end
  return concat(told_parts, '', 1, told)
end

-- Adds an entry for what each window carries that was used for the first time in its interval; returns how many entries there are then.
local function carried_entries(events, count, organization_id, now, epoch)
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

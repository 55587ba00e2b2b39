-- windows: the windows of an account of budgets: their packed definition, and how time and a new definition change them. Every call brings a
-- definition, often the same, so the last ones are cached, decoded.
-- needs: carries rings state wide
local DEFINITIONS_MAX, WINDOWS_KEPT_MAX = 256, 32
-- Fields of a definition: its windows that are not gone, packed; their number; their ids, packed; the fields of all windows (each at
-- WINDOW_..._AT after the previous windows), their number, and all packed; when the first and the last of them end (HUGE: never); the
-- windows that are not gone, for an entry; the unit of each window, and its limit if it enforces; whether a window without end
-- expires when it is unused: one of a session, or one that is gone; its wide windows (false: none), and how many pairs of meters follow
-- those of its windows; the form of its account's state; its windows that roll, and those that carry (false: none); whether a window waits
-- for its first use; when the last part of its rolling windows began; whether what a window carries is to be told; whether calls look at any
-- of these but the second; and its structure, for an account of all and for one of each, by which loops over windows are written out
-- (budgets.lua): false where a window is wide, gone, or of a particular kind. The first field is as calls bring it.
local LIVE, LIVE_COUNT, IDS, FIELDS, COUNT, ALL, FIRST_END, LAST_END, TOLD, UNITS, LIMITS, UNUSED_ENDS, WIDES, FURTHER, STATE_FORM = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
local RINGS, CARRIES, WAITS, PART_BEGAN, UNTOLD, SPECIAL, STRUCTURE, EACH_STRUCTURE = 16, 17, 18, 19, 20, 21, 22, 23
-- A window that rolls: its place among the windows, the places of its parts and of their amounts below a whole unit among the meters (0: it
-- is not wide), and the length of a part. It has the running part and thirty whole ones. The number behind them is when the oldest one
-- with a use began, 0 without any.
local RING_PLACE, RING_AT, RING_REST, RING_PART = 1, 2, 3, 4
local WHOLE_PARTS, PARTS, PARTS_STORED = 30, 31, 32
-- A window that carries: its place, and the place of its carried amount.
local CARRY_PLACE, CARRIED_PLACE = 1, 2
local NOBODY = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
local WINDOWS_REFUSED = {err = 'ERR a budget account has 1 to 32 windows'}
local HOUR_MS = 3600000
local definitions, definitions_count, meter_forms = {}, 0, {}

local function repeated(head, form, count) return head .. string.rep((string.gsub(form, '<', '')), count) end

-- The format of this many pairs of meters.
local function meter_form(count)
  local form = meter_forms[count]
  if not form then
    form = repeated('<', METER_FORM, count)
    meter_forms[count] = form
  end
  return form
end

local function kind_of_window(flags) return flags - flags % FLAG_ROLLING end

-- The windows from one index to another, for an entry: one that rolls by the part that runs, none that waits for its first use.
local function windows_of_entry(fields, first, last, value)
  local packed = ''
  for place = first, last do
    local at = (place - 1) * DEFINED_WINDOW_SIZE
    local kind = kind_of_window(fields[at + WINDOW_FLAGS_AT])
    if kind ~= FLAG_CARRIES and not (kind == FLAG_FIRST_USE and fields[at + WINDOW_NEXT_AT] == 0) then
      packed = packed .. BUDGETED.pack{budget_id = fields[at + WINDOW_BUDGET_ID_AT], start = fields[at + WINDOW_START_AT], value = value}
    end
  end
  return packed
end

-- A window as calls bring it: without what only its account knows.
local function brought_as(packed, place, unit, kind, fields, at)
  local flags = fields[at + WINDOW_FLAGS_AT]
  if unit ~= FLAGS_OVERFLOWED and kind == 0 then return sub(packed, (place - 1) * DEFINED_WINDOW_BYTES + 1, place * DEFINED_WINDOW_BYTES) end
  if kind == FLAG_CARRIES then flags = kind + unit + (has(flags, CARRY_DEBT) and CARRY_DEBT or 0)
  elseif unit == FLAGS_OVERFLOWED then flags = flags - FLAGS_OVERFLOWED + FLAG_MONEY end
  local waits = kind == FLAG_ROLLING or kind == FLAG_FIRST_USE
  return DEFINED_WINDOW.pack{
    budget_id = fields[at + WINDOW_BUDGET_ID_AT], limit = fields[at + WINDOW_LIMIT_AT], start = waits and 0 or fields[at + WINDOW_START_AT],
    next = waits and 0 or fields[at + WINDOW_NEXT_AT], after = fields[at + WINDOW_AFTER_AT], flags = flags,
  }
end

-- Decodes a definition; its windows that are gone come last.
local function definition_of(packed)
  local definition = definitions[packed]
  if definition then return definition end
  local count = #packed / DEFINED_WINDOW_BYTES
  if count < 1 or count > 2 * WINDOWS_KEPT_MAX or count % 1 > 0 then error(WINDOWS_REFUSED) end
  local fields, ids, units, limits, live, first, last, unused_ends = {parse(repeated('<', DEFINED_WINDOW_FORM, count), packed)}, {}, {}, {}, 0, HUGE, 0, false
  local wides, rolling, carrying, brought, structures, waits, part_began, untold, is_live = {}, {}, {}, {}, {}, false, 0, false, true
  for at = 0, (count - 1) * DEFINED_WINDOW_SIZE, DEFINED_WINDOW_SIZE do
    local ends, flags, after = fields[at + WINDOW_NEXT_AT], fields[at + WINDOW_FLAGS_AT], fields[at + WINDOW_AFTER_AT]
    local unit, place, limit, kind = flags % WINDOW_ENFORCES, #units + 1, fields[at + WINDOW_LIMIT_AT], kind_of_window(flags)
    if kind == FLAG_CARRIES then
      last, units[place], limits[place], carrying[#carrying + 1] = HUGE, WIDE, false, {place - 1, place}
      untold = untold or not (has(flags, CARRY_TOLD) and has(flags, CARRY_BEGUN))
    else
      is_live = flags % FLAG_ROLLING < WINDOW_GONE
      if ends > 0 then first, last = min(first, ends), max(last, ends + (kind == FLAG_ROLLING and after or 0))
      elseif kind == FLAG_ROLLING then first = 0
      elseif not is_live or after > 0 then unused_ends = true else last = HUGE end
      waits = waits or kind == FLAG_FIRST_USE and ends == 0
      units[place], limits[place], structures[place] = unit, has(flags, WINDOW_ENFORCES) and limit, unit .. (has(flags, WINDOW_ENFORCES) and '!' or ' ')
      if wide.steps[unit] then
        local whole, rest = wide.limit(limit, unit)
        units[place], limits[place], wides[#wides + 1] = WIDE, false, {place, (count + #wides) * 2 + 1, whole, rest, flags}
      end
      if kind == FLAG_ROLLING then
        rolling[#rolling + 1], part_began = {place, 0, units[place] == WIDE and 1 or 0, after / WHOLE_PARTS}, max(part_began, fields[at + WINDOW_START_AT])
      end
    end
    if is_live then
      live = live + 1
      brought[live] = brought_as(packed, live, unit, kind, fields, at)
      if kind ~= FLAG_CARRIES then ids[#ids + 1] = BUDGET_ID.pack{budget_id = fields[at + WINDOW_BUDGET_ID_AT]} end
    end
  end
  if count - #carrying > WINDOWS_KEPT_MAX then error(WINDOWS_REFUSED) end
  local further = (count + #wides) * 2 + 1
  for _, ring in ipairs(rolling) do
    ring[RING_AT], ring[RING_REST], further = further, ring[RING_REST] > 0 and further + PARTS_STORED or 0, further + PARTS_STORED * (1 + ring[RING_REST])
  end
  further = (further - 1) / 2
  local is_special = #rolling > 0 or waits or untold
  local structure = not is_special and #wides + #carrying == 0 and count == live and concat(structures)
  definition = {concat(brought), live, concat(ids), fields, count, packed, first, last, windows_of_entry(fields, 1, live, NOBODY), units, limits, unused_ends, #wides > 0 and wides,
    further - count, repeated(BUDGET_FORM .. 'c' .. #packed, METER_FORM, further), #rolling > 0 and rolling, #carrying > 0 and carrying, waits, part_began, untold,
    is_special, structure, structure and ':' .. structure}
  if definitions_count == DEFINITIONS_MAX then definitions, definitions_count = {}, 0 end
  definitions[packed], definitions_count = definition, definitions_count + 1
  return definition
end

-- The windows of a definition, with their used and held amounts; where one carries, what it used is without that.
local function opened_windows(definition, meters)
  local windows, opened = {}, {}
  for place = 1, definition and definition[COUNT] or 0 do
    local window = {values(definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE + 1, place * DEFINED_WINDOW_SIZE)}
    window.used, window.held, window.used_rest, window.held_rest, window.place = meters[place * 2 - 1] or 0, meters[place * 2] or 0, 0, 0, place
    if definition[UNITS][place] == FLAG_MONEY then
      window.used, window.used_rest = wide.split(window.used)
      window.held, window.held_rest = wide.split(window.held)
    end
    windows[place] = window
  end
  for _, of_wide in ipairs(definition and definition[WIDES] or {}) do
    local window, below = windows[of_wide[WIDE_PLACE]], of_wide[WIDE_BELOW]
    window.used_rest, window.held_rest = meters[below] or 0, meters[below + 1] or 0
  end
  rings.attach(definition, windows, meters)
  carries.attach(definition, windows)
  for _, window in ipairs(windows) do
    if window.flags < FLAG_CARRIES then opened[#opened + 1] = window end
  end
  return opened
end

-- Rolls windows forward to now: the used amount ends with its interval, the held one stays. Returns them. Before a definition is brought
-- (`defined`) those that carry wait for it: it says what their intervals leave (`carries.inherit`).
local function roll_windows(windows, now, defined)
  for _, window in ipairs(windows) do
    local over = window.next > 0 and now >= window.next
    if window.ring then over = rings.roll(window, now)
    elseif over and kind_of_window(window.flags) == FLAG_FIRST_USE then window.start, window.next, window.used, window.used_rest = 0, 0, 0, 0 end
    local waits, passed = window.ring or defined and window.carry, 0
    -- The hour after the next one is known. In a window that waits, or never ends, `after` is a length.
    local follows = not waits and window.next > 0 and window.after - window.next == HOUR_MS and HOUR_MS or nil
    if follows and now >= window.after then
      passed = floor((now - window.next) / HOUR_MS)
      window.next, window.after = window.next + passed * HOUR_MS, window.after + passed * HOUR_MS
    end
    while not waits and window.next > 0 and now >= window.next do
      carries.renew(window, 1 + passed)
      window.start, window.next, window.after, window.used, window.used_rest = window.next, window.after, follows and window.after + follows or 0, 0, 0
    end
    window.is_over = over or window.is_over
  end
  return windows
end

-- The windows rolled forward to now. A window that is gone is removed after its interval and its last call.
local function rolled_windows(windows, now)
  local kept = {}
  for _, window in ipairs(roll_windows(windows, now)) do
    if not (window.is_over and window.held + window.held_rest == 0 and window.flags % FLAG_ROLLING >= WINDOW_GONE) then kept[#kept + 1] = window end
  end
  return gathered_windows(kept)
end

-- The windows of a new definition, which is brought to those that have rolled to now: known ones keep their used and held amounts, a new one
-- starts at 0. Time only moves forward: an older definition changes no interval, and one of a later interval begins when the present one
-- ends. An interval that begins within the present one is of another edition of the time zones: the present one goes on to its end, and
-- nobody knows yet what comes then. A window that the definition lacks is gone, and returns with the next call that has it.
local function redefined_windows(windows, wanted, now)
  local before, found = {}, {}
  for _, window in ipairs(windows) do before[window.budget_id] = window end
  for _, window in ipairs(opened_windows(wanted, found)) do
    local had_window, kind, begins = before[window.budget_id], kind_of_window(window.flags), window.start
    local early, begun, is_alike = begins > now, false, true
    before[window.budget_id] = nil
    if early then
      window.start, window.next, window.after = 0, window.start, window.next
      if window.carry then window.carry[WINDOW_START_AT] = window.carry[WINDOW_START_AT] - 1 end
    end
    if had_window then
      if window.carry and (early or begins > had_window.start and begins < had_window.next) then roll_windows({had_window}, now) end -- what runs is not in the definition
      window.held, window.held_rest = had_window.held, had_window.held_rest
      if kind ~= kind_of_window(had_window.flags) or kind > 0 and window.after ~= had_window.after then is_alike = false -- another window has its id
      elseif kind > 0 then window.start, window.next, window.ring, window.ring_rest = had_window.start, had_window.next, had_window.ring, had_window.ring_rest
      else
        begun = had_window.start == 0 and had_window.next > now -- nobody knew when: it is the one that runs
        local later, carry_window, former_window = begins > had_window.start, window.carry, had_window.carry
        if later and begins < had_window.next and not begun then window.start, window.next, window.after = had_window.start, had_window.next, 0
        elseif early or later and carry_window and former_window and carry_window.start <= former_window.start then window.start = had_window.start -- it runs
        elseif window.start < had_window.start or (begun and window.next > 0 and window.next <= now) then
          local following, after = had_window.next, had_window.after
          if following == 0 and window.next > had_window.start then following, after = window.next, window.after
          elseif following == 0 and window.after > had_window.start then following, after = window.after, 0 end
          window.start, window.next, window.after = had_window.start, following, after
        end
      end
      local is_same = is_alike and (begun or window.start == had_window.start)
      if is_same then window.used, window.used_rest = had_window.used, had_window.used_rest end
      if is_alike then carries.inherit(window, had_window, not is_same) end
    end
    found[#found + 1] = window
  end
  for _, window in ipairs(windows) do
    if before[window.budget_id] and #found < WINDOWS_KEPT_MAX then
      window.flags = window.flags % FLAG_ROLLING % WINDOW_GONE + WINDOW_GONE + kind_of_window(window.flags)
      found[#found + 1] = window
    end
  end
  return found
end

-- Begins those windows of an account that wait for their first use, if a call takes from them; `at` is when, now or before. Where it `uses`
-- them, those that carry are told.
local function begin_windows(account, amounts, at, now, uses)
  local opened = opened_windows(account[DEFINITION], account[METERS])
  for _, window in ipairs(opened) do
    local unit = window.flags % WINDOW_ENFORCES
    local amount = amounts[wide.steps[unit] and FLAG_MONEY or unit]
    if amount > 0 and window.flags % FLAG_ROLLING < WINDOW_GONE then
      if uses then carries.begin(window, account) end
      if kind_of_window(window.flags) == FLAG_FIRST_USE and window.next == 0 and at + window.after > now then
        window.start, window.next = at, at + window.after
      end
    end
  end
  account[DEFINITION], account[METERS] = gathered_windows(opened)
  account[TOLD_AS] = false
end

-- Takes from windows that wait for their first use what a call has counted there: it was given back, or it was used too long ago.
local function empty_windows(definition, meters)
  local fields = definition[FIELDS]
  local function waits(place)
    local at = (place - 1) * DEFINED_WINDOW_SIZE
    return kind_of_window(fields[at + WINDOW_FLAGS_AT]) == FLAG_FIRST_USE and fields[at + WINDOW_NEXT_AT] == 0
  end
  for place = 1, definition[COUNT] do
    if waits(place) then meters[place * 2 - 1] = 0 end
  end
  for _, window in ipairs(definition[WIDES] or wide.none) do
    if waits(window[WIDE_PLACE]) then meters[window[WIDE_BELOW]] = 0 end
  end
end

-- windows as an account has them: their definition, nil where there is none, and their meters
local function gathered_windows(windows)
  local parts, meters, rests = {}, {}, {}
  for _, window in ipairs(windows) do
    local unit, carry_window = window.flags % WINDOW_ENFORCES, window.carry
    if written_as ~= TODAY and (carry_window or window.flags >= FLAG_ROLLING) then error({err = 'ERR programs that run know no windows of this kind'}) end
    carries.fold(window, -1)
    if unit ~= FLAG_TOKENS and unit ~= FLAG_REQUESTS and wide.measure(window) then
      rests[#rests + 1] = window.used_rest
      rests[#rests + 1] = window.held_rest
    end
    parts[#parts + 1] = DEFINED_WINDOW.pack{
      budget_id = window.budget_id, limit = window.limit, start = window.start, next = window.next, after = window.after,
      flags = window.flags,
    }
    meters[#meters + 1] = window.used
    meters[#meters + 1] = window.held
    if carry_window then carries.gather(window, parts, meters) end
  end
  for _, rest in ipairs(rests) do meters[#meters + 1] = rest end
  rings.gather(windows, meters)
  return #parts > 0 and definition_of(concat(parts)) or nil, meters
end

-- makes those windows of money of an account wide that pass what one number counts, and counts what was used in them
local function widen_windows(account, windows, places, money, admission, now)
  for _, window in ipairs(windows) do
    if places[window.place] and (not window.ring or rings.use(window, money, admission, now)) then window.used, window.used_rest = wide.added(window.used, window.used_rest, wide.split(money)) end
  end
  account[DEFINITION], account[METERS] = gathered_windows(windows)
end

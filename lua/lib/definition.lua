-- definition: decodes a packed definition of budgets. Every call brings one, often the same, so the last ones are cached.
-- Needs state, wide.
local DEFINITIONS_MAX, WINDOWS_KEPT_MAX, FIRST_BYTE, HUGE = 256, 32, 1, 9007199254740992
-- Fields of a definition: its windows that are not gone, packed; their number; their ids, packed; the fields of all windows (each at
-- WINDOW_..._AT after the previous windows), their number, and all packed; when the first and the last of them end (HUGE: never); the
-- windows that are not gone, for an entry; the unit of each window, and its limit if it enforces; whether a window without end
-- expires when it is unused: one of a session, or one that is gone; its wide windows (false: none), and their number; the form of its
-- meters. The first field is as calls bring it.
local LIVE, LIVE_COUNT, IDS, FIELDS, COUNT, ALL, FIRST_END, LAST_END, TOLD, UNITS, LIMITS, UNUSED_ENDS, WIDES, WIDE_COUNT, FORM = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
local NOBODY = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
local definitions, definitions_count, meter_forms = {}, 0, {}

local function repeated(form, count) return '<' .. string.rep((string.gsub(form, '<', '')), count) end

-- The format of the used and held amounts of this many windows.
local function meter_form(count)
  local form = meter_forms[count]
  if not form then
    form = repeated(METER_FORM, count)
    meter_forms[count] = form
  end
  return form
end

-- The windows from one index to another, for an entry.
local function told_of(fields, first, last, value)
  local parts = {}
  for place = first, last do
    local at = (place - 1) * DEFINED_WINDOW_SIZE
    parts[#parts + 1] = BUDGETED.pack{budget_id = fields[at + WINDOW_BUDGET_ID_AT], start = fields[at + WINDOW_START_AT], value = value}
  end
  return table.concat(parts)
end

-- Decodes a definition; its windows that are gone come last.
local function definition_of(packed)
  local found = definitions[packed]
  if found then return found end
  local count = #packed / DEFINED_WINDOW_BYTES
  if count < 1 or count > WINDOWS_KEPT_MAX or count % 1 > 0 then error({err = 'ERR a budget account has 1 to 32 windows'}) end
  local fields, ids, units, limits, live, first, last, unused_ends = {parse(repeated(DEFINED_WINDOW_FORM, count), packed)}, {}, {}, {}, 0, HUGE, 0, false
  local wides, brought = {}, {}
  for at = 0, (count - 1) * DEFINED_WINDOW_SIZE, DEFINED_WINDOW_SIZE do
    local ends, flags = fields[at + WINDOW_NEXT_AT], fields[at + WINDOW_FLAGS_AT]
    if ends == 0 then
      if flags >= WINDOW_GONE or fields[at + WINDOW_AFTER_AT] > 0 then unused_ends = true else last = HUGE end
    else first, last = min(first, ends), max(last, ends) end
    local unit, place, limit = flags % WINDOW_ENFORCES, #units + 1, fields[at + WINDOW_LIMIT_AT]
    units[place], limits[place] = unit, has(flags, WINDOW_ENFORCES) and limit
    if wide.steps[unit] then
      local whole, rest = wide.limit(limit, unit)
      units[place], limits[place], wides[#wides + 1] = WIDE, false, {place, (count + #wides) * 2 + 1, whole, rest, flags}
    end
    if flags < WINDOW_GONE then
      live = live + 1
      local is_brought_so = unit ~= FLAGS_OVERFLOWED
      brought[live] = sub(packed, (live - 1) * DEFINED_WINDOW_BYTES + 1, live * DEFINED_WINDOW_BYTES - (is_brought_so and 0 or 1))
      if not is_brought_so then brought[live] = brought[live] .. string.char(flags - FLAGS_OVERFLOWED + FLAG_MONEY) end
      ids[live] = BUDGET_ID.pack{budget_id = fields[at + WINDOW_BUDGET_ID_AT]}
    end
  end
  found = {table.concat(brought), live, table.concat(ids), fields, count, packed, first, last, told_of(fields, 1, live, NOBODY), units, limits, unused_ends, #wides > 0 and wides, #wides, meter_form(count + #wides)}
  if definitions_count == DEFINITIONS_MAX then definitions, definitions_count = {}, 0 end
  definitions[packed], definitions_count = found, definitions_count + 1
  return found
end

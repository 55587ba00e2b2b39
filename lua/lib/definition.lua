-- definition: decodes a packed definition of budgets. Every call brings one, often the same, so the last ones are cached.
-- Needs state, wide.
local DEFINITIONS_MAX, WINDOWS_KEPT_MAX, FIRST_BYTE, HUGE = 256, 32, 1, 9007199254740992
-- Fields of a definition: its windows that are not gone, packed; their number; their ids, packed; the fields of all windows (each at
-- WINDOW_..._AT after the previous windows), their number, and all packed; when the first and the last of them end (HUGE: never); the
-- windows that are not gone, for an entry; the unit of each window, and its limit if it enforces; whether a window without end
-- expires when it is unused: one of a session, or one that is gone; its wide windows (false: none), and how many pairs of meters follow
-- those of its windows; the form of its meters; its windows that roll, and those that carry (false: none); whether a window waits for
-- its first use; when the last part of its rolling windows began; whether what a window carries is to be told; whether calls look at any
-- of these but the second. The first field is as calls bring it.
local LIVE, LIVE_COUNT, IDS, FIELDS, COUNT, ALL, FIRST_END, LAST_END, TOLD, UNITS, LIMITS, UNUSED_ENDS, WIDES, FURTHER, FORM = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
local RINGS, CARRIES, WAITS, PART_BEGAN, UNTOLD, SPECIAL = 16, 17, 18, 19, 20, 21
-- A window that rolls: its place among the windows, the places of its parts and of their amounts below a whole unit among the meters (0: it
-- is not wide), and the length of a part. It has the running part and thirty whole ones. The number behind them is when the oldest one
-- with a use began, 0 without any.
local RING_PLACE, RING_AT, RING_REST, RING_PART = 1, 2, 3, 4
local WHOLE_PARTS, PARTS, PARTS_STORED = 30, 31, 32
-- A window that carries: its place, and the place of its carried amount.
local CARRY_PLACE, CARRIED_PLACE = 1, 2
local NOBODY = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
local WINDOWS_REFUSED = {err = 'ERR a budget account has 1 to 32 windows'}
local definitions, definitions_count, meter_forms = {}, 0, {}
-- Functions for kinds of windows: Lua allows 200 local names in one scope, and this table is one.
local kinds = {}

local function repeated(form, count) return '<' .. string.rep((string.gsub(form, '<', '')), count) end

-- The format of this many pairs of meters.
function kinds.meter_form(count)
  local form = meter_forms[count]
  if not form then
    form = repeated(METER_FORM, count)
    meter_forms[count] = form
  end
  return form
end

function kinds.of(flags) return flags - flags % FLAG_ROLLING end

-- The windows from one index to another, for an entry: one that rolls by the part that runs, none that waits for its first use.
function kinds.told_of(fields, first, last, value)
  local parts = {}
  for place = first, last do
    local at = (place - 1) * DEFINED_WINDOW_SIZE
    local kind = kinds.of(fields[at + WINDOW_FLAGS_AT])
    if kind ~= FLAG_CARRIES and not (kind == FLAG_FIRST_USE and fields[at + WINDOW_NEXT_AT] == 0) then
      parts[#parts + 1] = BUDGETED.pack{budget_id = fields[at + WINDOW_BUDGET_ID_AT], start = fields[at + WINDOW_START_AT], value = value}
    end
  end
  return table.concat(parts)
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
  local found = definitions[packed]
  if found then return found end
  local count = #packed / DEFINED_WINDOW_BYTES
  if count < 1 or count > 2 * WINDOWS_KEPT_MAX or count % 1 > 0 then error(WINDOWS_REFUSED) end
  local fields, ids, units, limits, live, first, last, unused_ends = {parse(repeated(DEFINED_WINDOW_FORM, count), packed)}, {}, {}, {}, 0, HUGE, 0, false
  local wides, rolling, carrying, brought, waits, part_began, untold, is_live = {}, {}, {}, {}, false, 0, false, true
  for at = 0, (count - 1) * DEFINED_WINDOW_SIZE, DEFINED_WINDOW_SIZE do
    local ends, flags, after = fields[at + WINDOW_NEXT_AT], fields[at + WINDOW_FLAGS_AT], fields[at + WINDOW_AFTER_AT]
    local unit, place, limit, kind = flags % WINDOW_ENFORCES, #units + 1, fields[at + WINDOW_LIMIT_AT], kinds.of(flags)
    if kind == FLAG_CARRIES then
      last, units[place], limits[place], carrying[#carrying + 1] = HUGE, WIDE, false, {place - 1, place}
      untold = untold or not (has(flags, CARRY_TOLD) and has(flags, CARRY_BEGUN))
    else
      is_live = flags % FLAG_ROLLING < WINDOW_GONE
      if ends > 0 then first, last = min(first, ends), max(last, ends + (kind == FLAG_ROLLING and after or 0))
      elseif kind == FLAG_ROLLING then first = 0
      elseif not is_live or after > 0 then unused_ends = true else last = HUGE end
      waits = waits or kind == FLAG_FIRST_USE and ends == 0
      units[place], limits[place] = unit, has(flags, WINDOW_ENFORCES) and limit
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
  found = {table.concat(brought), live, table.concat(ids), fields, count, packed, first, last, kinds.told_of(fields, 1, live, NOBODY), units, limits, unused_ends, #wides > 0 and wides,
    further - count, kinds.meter_form(further), #rolling > 0 and rolling, #carrying > 0 and carrying, waits, part_began, untold, #rolling > 0 or waits or untold}
  if definitions_count == DEFINITIONS_MAX then definitions, definitions_count = {}, 0 end
  definitions[packed], definitions_count = found, definitions_count + 1
  return found
end

-- rings: windows that roll. What the last length used is the sum of its parts: the running one, and thirty whole ones. A use is in the part
-- in which its call was admitted, until all of the part is older than the length.
-- needs: state wide
-- Part n of the epoch is at n % 31 of a ring.
local rings = {none = {}}

-- makes the parts of opened windows, by their meters
function rings.attach(definition, windows, meters)
  for _, ring in ipairs(definition and definition[RINGS] or rings.none) do
    local window, rest_at = windows[ring[RING_PLACE]], ring[RING_REST]
    local parts, rests, unit = {}, {}, definition[UNITS][ring[RING_PLACE]]
    for part = 0, WHOLE_PARTS do
      local amount = meters[ring[RING_AT] + part] or 0
      if unit == FLAG_MONEY then parts[part], rests[part] = wide.split(amount)
      else parts[part], rests[part] = amount, rest_at > 0 and meters[rest_at + part] or 0 end
    end
    window.ring, window.ring_rest = parts, rests
  end
end

-- When the oldest part of an opened window with a use began; 0 without any.
function rings.oldest(window)
  local length = window.after / WHOLE_PARTS
  for part = window.start / length - WHOLE_PARTS, window.start / length do
    local at = part % PARTS
    if window.ring[at] > 0 or window.ring[at] == 0 and window.ring_rest[at] > 0 then return part * length end
  end
  return 0
end

-- appends the parts of windows to their meters
function rings.gather(windows, meters)
  for _, window in ipairs(windows) do
    if window.ring then
      local unit = window.flags % WINDOW_ENFORCES
      local is_wide = wide.steps[unit]
      for part = 0, WHOLE_PARTS do
        meters[#meters + 1] = unit == FLAG_MONEY and wide.joined(window.ring[part], window.ring_rest[part]) or window.ring[part]
      end
      meters[#meters + 1] = rings.oldest(window)
      for part = 0, is_wide and WHOLE_PARTS or -1 do meters[#meters + 1] = window.ring_rest[part] end
      if is_wide then meters[#meters + 1] = 0 end
    end
  end
end

-- adds the parts of an opened window up
function rings.sum(window)
  local used, used_rest = 0, 0
  for part = 0, WHOLE_PARTS do used, used_rest = wide.added(used, used_rest, window.ring[part], window.ring_rest[part]) end
  window.used, window.used_rest = min(used, INTEGER_MAX), used_rest
end

-- changes each part of an opened window, by when it began
function rings.change(window, change)
  local length = window.after / WHOLE_PARTS
  for part = window.start / length - WHOLE_PARTS, window.start / length do
    local at = part % PARTS
    window.ring[at], window.ring_rest[at] = change(part * length, window.ring[at], window.ring_rest[at])
  end
  rings.sum(window)
end

-- rolls a window forward to now; returns whether nothing is used in it
function rings.roll(window, now)
  local length = window.after / WHOLE_PARTS
  local start = max(window.start, now - now % length)
  local passed = window.start > 0 and min(PARTS, (start - window.start) / length) or 0
  for part = start / length - passed + 1, start / length do window.ring[part % PARTS], window.ring_rest[part % PARTS] = 0, 0 end
  if passed > 0 then rings.sum(window) end
  window.start, window.next = start, start + length
  return window.used == 0 and window.used_rest == 0
end

-- When the part of a window began in which a call was admitted, and its place in the ring: nil if that part is over. No part is over by a
-- clock that was ahead: while the window is ahead of now, an earlier use counts in the oldest part.
function rings.part_of(length, start, admission, now)
  local began, oldest = min(start, admission - admission % length), start - WHOLE_PARTS * length
  if began < oldest and now < start then began = oldest end
  return began, began >= oldest and began / length % PARTS or nil
end

-- counts money in the part of an opened window; returns whether that still counts
function rings.use(window, money, admission, now)
  local _, part = rings.part_of(window.after / WHOLE_PARTS, window.start, admission, now)
  if part then window.ring[part], window.ring_rest[part] = wide.added(window.ring[part], window.ring_rest[part], wide.split(money)) end
  return part
end

-- counts a use, which the windows from one place to another have counted, in their parts; what is over is taken off again
function rings.count(definition, meters, amounts, admission, now, first, last, passed)
  local fields, units = definition[FIELDS], definition[UNITS]
  for _, ring in ipairs(definition[RINGS]) do
    local place, rest_at, at = ring[RING_PLACE], ring[RING_REST], ring[RING_AT]
    if place >= first and place <= last and not (passed and passed[place]) then
      local began, part = rings.part_of(ring[RING_PART], fields[(place - 1) * DEFINED_WINDOW_SIZE + WINDOW_START_AT], admission, now)
      local amount = rest_at > 0 and amounts[FLAG_MONEY] or amounts[units[place]]
      if not part then
        if rest_at > 0 then wide.use_some(definition, meters, -amount, place, place) else meters[place * 2 - 1] = meters[place * 2 - 1] - amount end
      else
        local oldest = meters[at + PARTS]
        if amount > 0 and (oldest == 0 or began < oldest) then meters[at + PARTS] = began end
        if rest_at > 0 then wide.move(meters, at + part, rest_at + part, amount)
        else meters[at + part] = min(INTEGER_MAX, meters[at + part] + amount) end
      end
    end
  end
end

-- The ring of a window; nil if it does not roll.
function rings.at_place(definition, place)
  for _, ring in ipairs(definition[RINGS] or rings.none) do
    if ring[RING_PLACE] == place then return ring end
  end
end

-- A function that returns the parts of a window one by one, the oldest first: what each counts, in one number or in two, and when it ends
-- to count.
function rings.parts(definition, meters, ring)
  local length, start = ring[RING_PART], definition[FIELDS][(ring[RING_PLACE] - 1) * DEFINED_WINDOW_SIZE + WINDOW_START_AT]
  local part = start / length - PARTS
  return function()
    part = part + 1
    if part > start / length then return nil end
    local at = part % PARTS
    return meters[ring[RING_AT] + at], ring[RING_REST] > 0 and meters[ring[RING_REST] + at] or 0, (part + PARTS) * length
  end
end

-- When a need fits that does not now, if nothing else is used: 0 for never. The free amount is in one number, or in two.
function rings.fits_at(definition, meters, ring, free, free_rest, held, held_rest, need)
  for _, with_holds in ipairs({true, false}) do
    local whole, rest = free, free_rest
    if not with_holds then whole, rest = wide.added(free, free_rest, held, held_rest) end
    for amount, amount_rest, ends in rings.parts(definition, meters, ring) do
      if ring[RING_REST] > 0 then whole, rest = wide.added(whole, rest, amount, amount_rest) else whole = whole + amount end
      if (ring[RING_REST] > 0 and wide.joined(whole, rest) or whole) >= need then return ends end
    end
  end
  return 0
end

-- When a window next has something free again, and how much, in one number or in two; nil if nothing is used.
function rings.next_free(definition, meters, ring)
  local oldest, length = meters[ring[RING_AT] + PARTS], ring[RING_PART]
  if oldest == 0 then return nil end
  local at = oldest / length % PARTS
  local amount, amount_rest = meters[ring[RING_AT] + at], ring[RING_REST] > 0 and meters[ring[RING_REST] + at] or 0
  if amount > 0 or amount == 0 and amount_rest > 0 then return oldest + PARTS * length, amount, amount_rest end
  for later, later_rest, ends in rings.parts(definition, meters, ring) do -- that one was given back
    if later > 0 or later == 0 and later_rest > 0 then return ends, later, later_rest end
  end
end

-- When a window has something free again: 0 for never, nil if it does not roll.
function rings.resets_at(definition, meters, place)
  local ring = rings.at_place(definition, place)
  return ring and (rings.next_free(definition, meters, ring) or 0)
end

-- What the windows of an account have free next: of each its place, its limit, and packed. The account keeps it until it is used again.
function rings.freed(account)
  local definition, meters, freed = account[DEFINITION], account[METERS], {}
  for _, ring in ipairs(definition[RINGS]) do
    local place, at = ring[RING_PLACE], (ring[RING_PLACE] - 1) * DEFINED_WINDOW_SIZE
    local fields, unit = definition[FIELDS], definition[UNITS][place]
    local limit, ends, amount, amount_rest = fields[at + WINDOW_LIMIT_AT], rings.next_free(definition, meters, ring)
    if place <= definition[LIVE_COUNT] and ends then
      if unit == WIDE then limit = wide.limit(limit, fields[at + WINDOW_FLAGS_AT] % WINDOW_ENFORCES) end
      freed[#freed + 1] = {place, max(1, limit), FREES.pack{
        freed_budget = fields[at + WINDOW_BUDGET_ID_AT], ends = ends, amount = amount, amount_rest = amount_rest, freed_unit = unit}}
    end
  end
  account[FREED] = freed
  return freed
end

-- What windows of accounts have free next, packed: of the three tightest.
function rings.told_frees(accounts)
  local first, second, third, first_told, second_told, third_told = -1, -1, -1, '', '', ''
  for i = 1, #accounts do
    local account = accounts[i]
    if account[DEFINITION][RINGS] then
      local meters, freed = account[METERS], account[FREED] or rings.freed(account)
      for at = 1, #freed do
        local place, limit, packed = values(freed[at])
        local part = (meters[place * 2 - 1] + meters[place * 2]) / limit
        if part > first then first, second, third, first_told, second_told, third_told = part, first, second, packed, first_told, second_told
        elseif part > second then second, third, second_told, third_told = part, second, packed, second_told
        elseif part > third then third, third_told = part, packed end
      end
    end
  end
  return first_told .. second_told .. third_told
end

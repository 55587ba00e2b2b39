-- windows: the windows of a budget account as time and a definition change them: each with its limit, end, used and held amount.
-- Needs state, wide_windows, definition, rings, carries.
local HOUR_MS = 3600000

-- The windows of a definition, with their used and held amounts; where one carries, what it used is without that.
function kinds.listed(definition, meters)
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
function kinds.roll(windows, now, defined)
  for _, window in ipairs(windows) do
    local over = window.next > 0 and now >= window.next
    if window.ring then over = rings.roll(window, now)
    elseif over and kinds.of(window.flags) == FLAG_FIRST_USE then window.start, window.next, window.used, window.used_rest = 0, 0, 0, 0 end
    local follows = not window.carry and window.after - window.next == HOUR_MS and HOUR_MS or nil -- what comes after an hour is known
    if follows and now >= window.after then window.next = now - (now - window.next) % HOUR_MS; window.after = window.next + HOUR_MS end
    while not window.ring and not (defined and window.carry) and window.next > 0 and now >= window.next do
      carries.renew(window)
      window.start, window.next, window.after, window.used, window.used_rest = window.next, window.after, follows and window.after + follows or 0, 0, 0
    end
    window.is_over = over or window.is_over
  end
  return windows
end

-- The windows rolled forward to now. A window that is gone is removed after its interval and its last call.
function kinds.rolled(windows, now)
  local kept = {}
  for _, window in ipairs(kinds.roll(windows, now)) do
    if not (window.is_over and window.held + window.held_rest == 0 and window.flags % FLAG_ROLLING >= WINDOW_GONE) then kept[#kept + 1] = window end
  end
  return wide.gathered(kept)
end

-- The windows of a new definition, which is brought to those that have rolled to now: known ones keep their used and held amounts, a new one
-- starts at 0. Time only moves forward: an older definition changes no interval, and one of a later interval begins when the present one
-- ends. A window that the definition lacks is gone, and returns with the next call that has it.
function kinds.redefined(windows, wanted, now)
  local before, found = {}, {}
  for _, window in ipairs(windows) do before[window.budget_id] = window end
  for _, window in ipairs(kinds.listed(wanted, found)) do
    local had_window, kind = before[window.budget_id], kinds.of(window.flags)
    local early, begun, is_alike = window.start > now, false, true
    before[window.budget_id] = nil
    if early then
      window.start, window.next, window.after = 0, window.start, window.next
      if window.carry then window.carry[WINDOW_START_AT] = window.carry[WINDOW_START_AT] - 1 end
    end
    if had_window then
      if early and window.carry then kinds.roll({had_window}, now) end -- what runs is not in the definition
      window.held, window.held_rest = had_window.held, had_window.held_rest
      if kind ~= kinds.of(had_window.flags) or kind > 0 and window.after ~= had_window.after then is_alike = false -- another window has its id
      elseif kind > 0 then window.start, window.next, window.ring, window.ring_rest = had_window.start, had_window.next, had_window.ring, had_window.ring_rest
      else
        begun = had_window.start == 0 and had_window.next > now -- nobody knew when: it is the one that runs
        if early then window.start = had_window.start
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
      window.flags = window.flags % FLAG_ROLLING % WINDOW_GONE + WINDOW_GONE + kinds.of(window.flags)
      found[#found + 1] = window
    end
  end
  return found
end

-- Begins those windows of an account that wait for their first use, if a call takes from them; `at` is when, now or before. Where it `uses`
-- them, those that carry are told.
function kinds.begin(account, amounts, at, now, uses)
  local opened = kinds.listed(account[DEFINITION], account[METERS])
  for _, window in ipairs(opened) do
    local unit = window.flags % WINDOW_ENFORCES
    local amount = amounts[wide.steps[unit] and FLAG_MONEY or unit]
    if amount > 0 and window.flags % FLAG_ROLLING < WINDOW_GONE then
      if uses then carries.begin(window, account) end
      if kinds.of(window.flags) == FLAG_FIRST_USE and window.next == 0 and at + window.after > now then
        window.start, window.next = at, at + window.after
      end
    end
  end
  account[DEFINITION], account[METERS] = wide.gathered(opened)
  account[HEAD], account[TOLD_AS] = false, false
end

-- Takes from windows that wait for their first use what a call has counted there: it was given back, or it was used too long ago.
function kinds.empty(definition, meters)
  local fields = definition[FIELDS]
  local function waits(place)
    local at = (place - 1) * DEFINED_WINDOW_SIZE
    return kinds.of(fields[at + WINDOW_FLAGS_AT]) == FLAG_FIRST_USE and fields[at + WINDOW_NEXT_AT] == 0
  end
  for place = 1, definition[COUNT] do
    if waits(place) then meters[place * 2 - 1] = 0 end
  end
  for _, window in ipairs(definition[WIDES] or wide.none) do
    if waits(window[WIDE_PLACE]) then meters[window[WIDE_BELOW]] = 0 end
  end
end

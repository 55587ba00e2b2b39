-- windows: the windows of a budget account as time and a definition change them: each with its limit, end, used and held amount.
-- Needs state, wide_windows, definition.
-- The windows of a definition, with their used and held amounts.
local function listed(definition, meters)
  local windows = {}
  for place = 1, definition and definition[COUNT] or 0 do
    local window = {values(definition[FIELDS], (place - 1) * DEFINED_WINDOW_SIZE + 1, place * DEFINED_WINDOW_SIZE)}
    window.used, window.held, window.used_rest, window.held_rest = meters[place * 2 - 1] or 0, meters[place * 2] or 0, 0, 0
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
  return windows
end

-- The windows rolled forward to now: the used amount ends with its interval, the held one stays. A window that is gone is removed
-- after its interval and its last call.
local function rolled(windows, now)
  local kept = {}
  for _, window in ipairs(windows) do
    local over = window.next > 0 and now >= window.next
    while window.next > 0 and now >= window.next do
      window.start, window.next, window.after, window.used, window.used_rest = window.next, window.after, 0, 0, 0
    end
    if not (over and window.held + window.held_rest == 0 and window.flags >= WINDOW_GONE) then kept[#kept + 1] = window end
  end
  return wide.gathered(kept)
end

-- The windows of a new definition: known ones keep their used and held amounts, a new one starts at 0. Time only moves forward: an
-- older definition changes no interval, and one of a later interval begins when the present one ends. A window that the definition
-- lacks is gone, and returns with the next call that has it.
local function redefined(windows, wanted, now)
  local before, found = {}, {}
  for _, window in ipairs(windows) do before[window.budget_id] = window end
  for _, window in ipairs(listed(wanted, found)) do
    local had_window, early = before[window.budget_id], window.start > now
    before[window.budget_id] = nil
    if early then window.start, window.next, window.after = 0, window.start, window.next end
    if had_window then
      local begun = had_window.start == 0 and had_window.next > now -- nobody knew when: it is the one that runs
      if early then window.start = had_window.start
      elseif window.start < had_window.start or (begun and window.next > 0 and window.next <= now) then
        window.start, window.next, window.after = had_window.start, had_window.next, had_window.after
      end
      window.held, window.held_rest = had_window.held, had_window.held_rest
      if begun or window.start == had_window.start then window.used, window.used_rest = had_window.used, had_window.used_rest end
    end
    found[#found + 1] = window
  end
  for _, window in ipairs(windows) do
    if before[window.budget_id] and #found < WINDOWS_KEPT_MAX then
      window.flags = window.flags % WINDOW_GONE + WINDOW_GONE
      found[#found + 1] = window
    end
  end
  return found
end

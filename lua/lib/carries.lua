-- carries: what an interval leaves to the next one.
-- needs: state wide
-- The window that carries is followed by another one: its limit is the maximum, `start` the number of the interval, `next` and
-- `after` the limit at the interval's end, in two numbers, and `budget_id` the place of the last change of the amounts that the call knew:
-- the number of its interval, with the fraction of that interval before it. Its meters are what is carried, in two numbers if its window is wide.
-- That is taken off the used amount of its window, so all other code sees one amount.
local carries = {none = {}, begun = false}
-- The limit at an interval's end as an entry tells it (`end_limit_of` in gateway/core/accounts/outbox.py).
local END_LIMIT = '{"limit":%.0f,"rest":%.0f,"changed":%.17g}'

-- takes what is carried off the used amounts of opened windows, or adds it again (`sign` 1)
function carries.fold(window, sign)
  local carry_window = window.carry
  if carry_window then window.used, window.used_rest = wide.added(window.used, window.used_rest, sign * carry_window.used, sign * carry_window.used_rest) end
end

-- takes the windows for carried amounts out of a list, and hangs each on its own window
function carries.attach(definition, windows)
  for _, carrying in ipairs(definition and definition[CARRIES] or carries.none) do
    local window, carry_window, unit = windows[carrying[CARRY_PLACE]], windows[carrying[CARRIED_PLACE]], definition[UNITS][carrying[CARRY_PLACE]]
    if unit == FLAG_MONEY then carry_window.used, carry_window.used_rest = wide.split(carry_window.used)
    elseif unit == WIDE then carry_window.used_rest = carry_window.held end
    window.carry = carry_window
    carries.fold(window, 1)
  end
end

-- appends what a window carries to the windows of an account, and to their meters
function carries.gather(window, parts, meters)
  local carry_window, unit = window.carry, window.flags % WINDOW_ENFORCES
  parts[#parts + 1] = DEFINED_WINDOW.pack{
    budget_id = carry_window.budget_id, limit = carry_window.limit, start = carry_window.start, next = carry_window.next,
    after = carry_window.after, flags = carry_window.flags,
  }
  meters[#meters + 1] = unit == FLAG_MONEY and wide.joined(carry_window.used, carry_window.used_rest) or carry_window.used
  meters[#meters + 1] = wide.steps[unit] and carry_window.used_rest or 0
end

-- a limit as its window says it, in two numbers
function carries.limit(window)
  local unit = window.flags % WINDOW_ENFORCES
  if wide.steps[unit] then return wide.limit(window.limit, unit) end
  if unit == FLAG_MONEY then return wide.split(window.limit) end
  return window.limit, 0
end

-- the smaller of two limits
function carries.least(limit, limit_rest, other, other_rest)
  if other < limit or other == limit and other_rest < limit_rest then return other, other_rest end
  return limit, limit_rest
end

-- the limit that ended intervals had by a definition: the smaller of the present one and that of the interval's end
function carries.present(window)
  local carry_window = window.carry
  if window.limit == INTEGER_MAX and not has(window.flags, WINDOW_ENFORCES) then return carry_window.next, carry_window.after end
  return carries.least(carry_window.next, carry_window.after, carries.limit(window))
end

-- adds an amount as often as it was left, within what may be carried
function carries.leave(carry_window, whole, rest, limit, limit_rest, times)
  local most, most_rest = carries.limit(carry_window)
  whole, rest = wide.added(whole, rest, limit * times, limit_rest * times)
  if limit == INTEGER_MAX and times > 0 or whole > most or whole == most and rest > most_rest then whole, rest = most, most_rest
  elseif whole < 0 and not has(carry_window.flags, CARRY_DEBT) then whole, rest = 0, 0 end
  carry_window.used, carry_window.used_rest = max(whole, -INTEGER_MAX), rest
end

-- Hands on what is left of an interval to the one that follows `count` later: nothing was used in those between. The rule is that of
-- `CalendarWindow.carry_to`. Without a definition (`window`) it goes by what the last call knew.
function carries.hand_on(carry_window, had_window, former_window, count, window)
  local limit, limit_rest = former_window.next, former_window.after
  local present, present_rest, changed, before_change = limit, limit_rest, former_window.start, count - 1
  local whole, rest = wide.added(former_window.used, former_window.used_rest, -had_window.used, -had_window.used_rest)
  if window then
    present, present_rest = carries.present(window)
    changed = floor(carry_window.budget_id)
  end
  local between, between_rest = carries.least(limit, limit_rest, present, present_rest)
  if carry_window.budget_id ~= former_window.budget_id then
    before_change = min(count - 1, max(0, changed - former_window.start - 1))
    if changed <= former_window.start then limit, limit_rest = present, present_rest end
  end
  carries.leave(carry_window, whole, rest, limit, limit_rest, 1)
  carries.leave(carry_window, carry_window.used, carry_window.used_rest, between, between_rest, before_change)
  carries.leave(carry_window, carry_window.used, carry_window.used_rest, present, present_rest, count - 1 - before_change)
end

-- What an interval carries goes by the definition of a call in it: within its bounds, and less what the limit had fallen before the
-- interval began, if that was not known then: once for each interval that ended since. Returns whether nothing differs from what was told.
function carries.follow(carry_window, former_window, window)
  local whole, rest, changed = carry_window.used, carry_window.used_rest, carry_window.budget_id
  if carry_window.start ~= former_window.start or changed < former_window.budget_id then -- an older definition
    carry_window.start, carry_window.next, carry_window.after, carry_window.budget_id = former_window.start, former_window.next, former_window.after, former_window.budget_id
  elseif changed > former_window.budget_id and changed < carry_window.start and has(former_window.flags, CARRY_BEGUN) then
    local limit, limit_rest = carries.least(former_window.next, former_window.after, carries.present(window))
    local ended = carry_window.start - floor(changed)
    if former_window.next < INTEGER_MAX then
      whole, rest = wide.added(whole, rest, ended * (limit - former_window.next), ended * (limit_rest - former_window.after))
    elseif limit < INTEGER_MAX and whole >= 0 then whole, rest = 0, 0 end
  end
  carries.leave(carry_window, whole, rest, 0, 0, 0)
  return carry_window.budget_id == former_window.budget_id and carry_window.next == former_window.next and carry_window.after == former_window.after
    and carry_window.used == former_window.used and carry_window.used_rest == former_window.used_rest
end

-- What a window carries: by the one before, which is `moved` on where it is of an earlier interval. It begins with the first use.
function carries.inherit(window, had_window, is_moved)
  local carry_window, former_window = window.carry, had_window.carry
  if not carry_window then return end
  if not former_window then
    if window.used ~= 0 or window.used_rest ~= 0 then carry_window.flags = carry_window.flags + CARRY_BEGUN end
    return
  end
  local is_begun, is_told = has(former_window.flags, CARRY_BEGUN), has(former_window.flags, CARRY_TOLD)
  carry_window.used, carry_window.used_rest = former_window.used, former_window.used_rest
  if is_moved then
    if is_begun then carries.hand_on(carry_window, had_window, former_window, max(1, carry_window.start - former_window.start), window) end
  else is_told = carries.follow(carry_window, former_window, window) and is_told end
  carry_window.flags = carry_window.flags + (is_begun and CARRY_BEGUN or 0) + (is_told and not is_moved and CARRY_TOLD or 0)
end

-- hands on within a window whose interval has ended, to the one that follows `count` later
function carries.renew(window, count)
  local carry_window = window.carry
  if not carry_window then return end
  carry_window.start = carry_window.start + count
  if has(carry_window.flags, CARRY_BEGUN) then carries.hand_on(carry_window, window, carry_window, count) end
  if has(carry_window.flags, CARRY_TOLD) then carry_window.flags = carry_window.flags - CARRY_TOLD end
end

-- notes the first use of a window in its interval: what it carries is told with it (`carried_entries`)
function carries.begin(window, account)
  local carry_window = window.carry
  if not carry_window then return end
  if not has(carry_window.flags, CARRY_BEGUN) then carry_window.flags = carry_window.flags + CARRY_BEGUN end
  if has(carry_window.flags, CARRY_TOLD) then return end
  carry_window.flags = carry_window.flags + CARRY_TOLD
  carries.begun = carries.begun or {}
  carries.begun[#carries.begun + 1] = {account, window.budget_id, window.start, window.flags % WINDOW_ENFORCES, carry_window.used, carry_window.used_rest,
    format(END_LIMIT, carry_window.next, carry_window.after, carry_window.budget_id)}
end

-- What a window carries, in one number or in two.
function carries.of(definition, meters, place)
  for _, carrying in ipairs(definition[CARRIES] or carries.none) do
    if carrying[CARRY_PLACE] == place then
      local at = carrying[CARRIED_PLACE] * 2 - 1
      return meters[at], meters[at + 1]
    end
  end
  return 0, 0
end


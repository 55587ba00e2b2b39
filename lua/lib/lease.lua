-- lease: how much of an account is set aside for a gateway. Needs state.
local WHOLE = 1000000

-- the part that the gateway may count on from now on, and its hold: at least what it counts on still
local function portion(free, share, kept, spent)
  local left = max(0, free - spent)
  local aim = spent + floor(left / WHOLE) * share + floor(left % WHOLE * share / WHOLE)
  return aim, max(kept, aim)
end

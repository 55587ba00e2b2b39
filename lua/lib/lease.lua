-- lease: the part of an account that is set aside for a gateway. Needs state.
local WHOLE = 1000000

-- The part that the gateway may count on, and its hold: at least the amount that it still counts on.
local function portion(free, share, kept, spent)
  local left = max(0, free - spent)
  local aim = spent + floor(left / WHOLE) * share + floor(left % WHOLE * share / WHOLE)
  return aim, max(kept, aim)
end

-- shape_cache: decoded shapes (lib/shape.lua); shapes repeat, so the last ones are cached. Needs state.
local FIRST_PLACE, CALLS_MAX = 2, 64
local SHAPES_MAX = 32
local shapes, shape_count = {}, 0

-- The index after the places of `count` accounts that begin at `at`; nil if a place is none of their part.
local function past_places(shape, at, count, most)
  for i = at, at + count - 1 do
    local place = byte(shape, i) or 0
    if place < FIRST_PLACE or place > most then return nil end
  end
  return at + count
end

-- Decodes a shape: its calls, then the number of keys after the shared ones, of calls, and of arguments; nil if it is invalid. A call
-- with three accounts has another account's place for its user, or 0.
local function read_shape(shape)
  local parts, at, argument, calls_before, before = byte(shape) or 0, 2, 2, 0, 0
  local calls_in, places_in, arguments, counts, owns, firsts = {}, {}, {}, {}, {}, {}
  local api_keys, users, tenants, organizations, groups = {}, {}, {}, {}, {}
  for part = 1, parts do
    local calls, accounts = byte(shape, at, at + 1)
    if not accounts or calls == 0 then return nil end
    calls_in[part], places_in[part], at = calls, 1 + accounts, at + 2
    local named_before
    for i = calls_before + 1, calls_before + calls do
      local count, own = byte(shape, at, at + 1)
      local tenant, organization, api_key, user = 2, 3, 4, 5
      groups[i] = false
      if calls == 1 then at, own = at + 1, accounts
      else
        at = own and past_places(shape, at + 2, own, 1 + accounts)
        if at then
          tenant, organization, api_key, user = byte(shape, at - own, at - own + 3)
          local named = sub(shape, at - own, at - 1)
          groups[i], named_before = named == named_before and groups[i - 1] or i, named
        end
      end
      if not (count and at) then return nil end
      arguments[i], counts[i], owns[i], firsts[i], argument = argument, count, own, at - own, argument + count
      tenants[i], organizations[i], api_keys[i], users[i] = before + (tenant or 0), before + (organization or 0), before + (api_key or 0), before + (user or 0)
    end
    calls_before, before = calls_before + calls, before + 1 + accounts
  end
  if calls_before < 2 or calls_before > CALLS_MAX then return nil end
  local read = {calls_in, places_in, arguments, counts, owns, firsts, {api_keys, users, tenants, organizations}, before, calls_before, argument, groups}
  if shape_count == SHAPES_MAX then shapes, shape_count = {}, 0 end
  shapes[shape], shape_count = read, shape_count + 1
  return read
end

local function parsed_shape(shape) return shapes[shape] or read_shape(shape) end

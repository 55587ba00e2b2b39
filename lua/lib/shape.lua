-- shape: whose is what of the keys and arguments of many calls that are one call of a function. Needs state, accounts.
-- All that is of one partition is a part. First come the keys that all calls of a part share but for its marker, part by part;
-- then
-- of each part the marker and the accounts; then each call's hold. A call that is alone in its part names its accounts in their
-- order; of many, each account is there once. The first argument, the `shape`, says whose is what: how many parts there are, then
-- of each how many calls and accounts it has, and of each call how many arguments, and where there are many of them how many
-- accounts and the place of each. In its part the marker has place 1, the first account 2.
local FIRST_PLACE, CALLS_MAX = 2, 64
-- Where a key names its kind: `tk:{p07}:h:`.
local KIND_AT, HOLD_KIND = 10, 104
-- What the shape says: of each part its calls and places; of each call its first argument and how many, how many accounts, where
-- in the shape their places are; then by scope each call's place among all places. And how many calls there are. The same shape
-- comes again and again, so these are the tables of the last shapes, each read once.
local calls_of, places_of, argument_of, count_of, own_of, first_of, scope_places
local call_count = 0
local SHAPES_MAX = 32
local shapes, shape_count = {}, 0

-- whether each of the keys from `first` to `last` is there, and none of `known`; notes them
local function are_new(keys, first, last, known)
  for k = first, last do
    local name = keys[k]
    if not name or known[name] then return false end
    known[name] = true
  end
  return true
end

-- where behind `at` the places of so many accounts end; nil where one is none of their part's
local function past_places(shape, at, count, most)
  for i = at, at + count - 1 do
    local place = byte(shape, i) or 0
    if place < FIRST_PLACE or place > most then return nil end
  end
  return at + count
end

-- What a shape says, then how many keys its parts have behind those they share, how many calls there are, and arguments; nil where
-- it says nothing. Of a call with three accounts the place of a user is another's, or 0
local function read_shape(shape)
  local parts, at, argument, calls_before, before = byte(shape) or 0, 2, 2, 0, 0
  local calls_in, places_in, arguments, counts, owns, firsts = {}, {}, {}, {}, {}, {}
  local api_keys, users, tenants, organizations = {}, {}, {}, {}
  for part = 1, parts do
    local calls, accounts = byte(shape, at, at + 1)
    if not accounts or calls == 0 then return nil end
    calls_in[part], places_in[part], at = calls, 1 + accounts, at + 2
    for i = calls_before + 1, calls_before + calls do
      local count, own = byte(shape, at, at + 1)
      local tenant, organization, api_key, user = 2, 3, 4, 5
      if calls == 1 then at, own = at + 1, accounts
      else
        at = own and past_places(shape, at + 2, own, 1 + accounts)
        if at then tenant, organization, api_key, user = byte(shape, at - own, at - own + 3) end
      end
      if not (count and at) then return nil end
      arguments[i], counts[i], owns[i], firsts[i], argument = argument, count, own, at - own, argument + count
      tenants[i], organizations[i], api_keys[i], users[i] = before + (tenant or 0), before + (organization or 0), before + (api_key or 0), before + (user or 0)
    end
    calls_before, before = calls_before + calls, before + 1 + accounts
  end
  if calls_before < 2 or calls_before > CALLS_MAX then return nil end
  local read = {calls_in, places_in, arguments, counts, owns, firsts, {api_keys, users, tenants, organizations}, before, calls_before, argument}
  if shape_count == SHAPES_MAX then shapes, shape_count = {}, 0 end
  shapes[shape], shape_count = read, shape_count + 1
  return read
end

-- reads a shape; whether keys and arguments are those of it, and no part and of many calls no account is there twice
local function fits(shape, keys, argv, shared)
  local read = shapes[shape] or read_shape(shape)
  if not read then return false end
  calls_of, places_of, argument_of, count_of, own_of, first_of = read[1], read[2], read[3], read[4], read[5], read[6]
  scope_places, call_count = read[7], read[9]
  local known, k = {}, #calls_of * (shared - 1)
  if k + read[8] + call_count ~= #keys or #argv ~= read[10] - 1 then return false end
  for part = 1, #calls_of do
    local places = places_of[part]
    if not are_new(keys, k + 1, calls_of[part] > 1 and k + places or k + 1, known) then return false end
    k = k + places
  end
  return true
end

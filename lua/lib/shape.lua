-- shape: whose is what of the keys and arguments of many calls that are one call of a function. Needs state, accounts, shape_cache.
-- All that is of one partition is a part. First come the keys that all calls of a part share but for its marker, part by part;
-- then
-- of each part the marker and the accounts; then each call's hold. A call that is alone in its part names its accounts in their
-- order; of many, each account is there once. The first argument, the `shape`, says whose is what: how many parts there are, then
-- of each how many calls and accounts it has, and of each call how many arguments, and where there are many of them how many
-- accounts and the place of each. In its part the marker has place 1, the first account 2.
-- Where a key names its kind: `tk:{p07}:h:`.
local KIND_AT, HOLD_KIND = 10, 104
-- What the shape says: of each part its calls and places; of each call its first argument and how many, how many accounts, where
-- in the shape their places are; then by scope each call's place among all places, and the first of the calls right before it that have
-- the same accounts, in a part of many. And how many calls there are.
local calls_of, places_of, argument_of, count_of, own_of, first_of, scope_places, group_of
local call_count = 0

-- reads a shape; whether keys and arguments are those of it, and no part and of many calls no account is there twice
local function fits(shape, keys, argv, shared)
  local read = parsed_shape(shape)
  if not read then return false end
  calls_of, places_of, argument_of, count_of, own_of, first_of = read[1], read[2], read[3], read[4], read[5], read[6]
  scope_places, call_count, group_of = read[7], read[9], read[11]
  local known, k = {}, #calls_of * (shared - 1)
  if k + read[8] + call_count ~= #keys or #argv ~= read[10] - 1 then return false end
  for part = 1, #calls_of do
    local places = places_of[part]
    local marker = keys[k + 1]
    if known[marker] then return false end
    known[marker] = true
    for at = k + 2, calls_of[part] > 1 and k + places or 0 do
      local name = keys[at]
      if known[name] then return false end
      known[name] = true
    end
    k = k + places
  end
  return true
end

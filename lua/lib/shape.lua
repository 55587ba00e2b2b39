-- shape: assigns the keys and arguments of a function call to its many calls. Needs state, accounts, shape_cache.
-- All calls of one partition are a part. First come the keys that all calls of a part share, except its marker, part by part; then
-- the marker and the accounts of each part; then each call's hold. A call that is alone in its part names its accounts in order; for
-- many calls, each account is named once. The first argument, the `shape`, has these bytes: the number of parts, then for each part
-- its numbers of calls and accounts, and for each call its number of arguments, and in a part of many calls its number of accounts
-- and the place of each. In its part the marker has place 1, the first account 2.
-- The index at which a key names its kind: `tk:{p07}:h:`.
local KIND_AT, HOLD_KIND = 10, 104
-- The decoded shape: for each part its calls and places; for each call its first argument and their number, its number of accounts,
-- and where their places are in the shape; by scope each call's place among all places; and the first of the calls directly before it
-- that have the same accounts, in a part of many. And the number of calls.
local calls_of, places_of, argument_of, count_of, own_of, first_of, scope_places, group_of
local call_count = 0

-- Reads a shape; returns whether it fits keys and arguments, with no part twice, and in a part of many calls no account twice.
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

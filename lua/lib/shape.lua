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
-- What the shape says: of each part its calls and accounts; of each call its first argument and how many, how many accounts, and
-- where in the shape their places are. And how many calls there are.
local calls_of, places_of, argument_of, count_of, own_of, first_of = {}, {}, {}, {}, {}, {}
local call_count = 0

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

-- the places of a call's first accounts; of the last one 0 or another's where it has but three
local function first_places(shape, first)
  local tenant, organization, api_key, user = byte(shape, first, first + 3)
  return places_before + tenant, places_before + organization, places_before + api_key, places_before + (user or 0)
end

-- reads a shape; whether keys and arguments are those of it, and no part and of many calls no account is there twice
local function fits(shape, keys, argv, shared)
  local parts, at, argument, known = byte(shape) or 0, 2, 2, {}
  local k = parts * (shared - 1)
  call_count = 0
  for part = 1, parts do
    local calls, accounts = byte(shape, at, at + 1)
    if not accounts or calls == 0 or not are_new(keys, k + 1, calls > 1 and k + 1 + accounts or k + 1, known) then return false end
    calls_of[part], places_of[part], k, at = calls, 1 + accounts, k + 1 + accounts, at + 2
    for i = call_count + 1, call_count + calls do
      local count, own = byte(shape, at, at + 1)
      if calls == 1 then at, own = at + 1, accounts
      else at = own and past_places(shape, at + 2, own, 1 + accounts) end
      if not (count and at) then return false end
      argument_of[i], count_of[i], own_of[i], first_of[i], argument = argument, count, own, at - own, argument + count
    end
    call_count = call_count + calls
  end
  return call_count > 1 and call_count <= CALLS_MAX and k + call_count == #keys and argument == #argv + 1
end

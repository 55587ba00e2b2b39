-- state: packed states and holds. Where their fields are is said in gateway/counters/layouts/; the fields of opened
-- ones (`hold.tokens`), forms, sizes and what is asked of a layout (`HOLD.field(raw, 'created')`) are written out when the library
-- is assembled (gateway/counters/layouts/lua.py). Shared by every script.
-- A state is one string: the number of its layout, a flags byte, then doubles holding integers below 2^53.
-- Limits of 0 are "none"; a total of -1 is unlimited; bucket levels count UNITs of debt.
local REVOKED, OVERRIDE = 1, 1
local INTEGER_MAX, GARBAGE_PERCENT = 9007199254740991, 1000
local POLICY_CARRY, STRICT = 1, 1

-- What Lua and Redis lend. A global of a library is looked up in two tables every time it is named; these are found
-- once, on the first call: while the library is loaded there are none.
local call, try, pack, parse, values, format, sub, byte, abs, floor, ceil, max, min, kind_of

local function bind()
  try, pack, parse, values, format, sub = redis.pcall, struct.pack, struct.unpack, unpack, string.format, string.sub
  abs, floor, ceil, max, min = math.abs, math.floor, math.ceil, math.max, math.min
  byte, call, kind_of = string.byte, redis.call, type
  -- all there is of the library is marked again after ten times as much, not twice; where Redis lets nobody say so, never mind
  pcall(function() collectgarbage('setpause', GARBAGE_PERCENT) end)
end

local function open(form, packed)
  local fields = {parse(form, packed)}
  fields[#fields] = nil
  return fields
end

-- What is stored, as it is packed today: what an older version has stored is brought up to that. What a newer one has
-- stored stays where it is, and whoever asked is told
local function today(raw, name)
  local number = byte(raw)
  if number == TODAY then return raw end
  if number > TODAY then
    error({err = 'ERR ' .. name .. ' is of layout ' .. number .. ', this version knows up to ' .. TODAY})
  end
  local kind = string.match(name, ':(%a):')
  if kind == 'k' then return KEY.today(raw, number) end
  if kind == 'u' then return USER.today(raw, number) end
  if kind == 't' then return TENANT.today(raw, number) end
  if kind == 'o' then return ORGANIZATION.today(raw, number) end
  if kind == 'a' then return ACTIVATION.today(raw, number) end
  return HOLD.today(raw, number)
end

-- The partition's marker, and states and holds after it, as they are packed today. Fields only ever come, so a state
-- of today's size has today's fields. `sizes` says by place which are known: to look at each number costs 1 % of a pair
local any_size = {}
local function stored(keys, first, sizes)
  local raw = call('MGET', values(keys, first))
  for i = 2, #raw do
    local one = raw[i]
    if one and #one ~= sizes[i] then raw[i] = today(one, keys[first + i - 1]) end
  end
  return raw
end

-- the assembly writes it out where `flags` is a name or a field
local function has(flags, flag) return flags % (flag * 2) >= flag end

local function write(form, size, account) return pack(form, values(account, 1, size)) end

-- the names and values of those there are, for MSET: a table would cost its making
local function some(name, value, name2, value2, name3, value3)
  if value then return name, value, some(name2, value2, name3, value3) end
  if name2 then return some(name2, value2, name3, value3) end
end

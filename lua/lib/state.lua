-- state: packed states and holds. Where their fields are is said in gateway/counters/layouts/; the fields of opened ones
-- (`hold.tokens`), forms, sizes and questions to a layout (`HOLD.field(raw, 'created')`) are written out when the library is
-- assembled (gateway/counters/layouts/lua.py). Shared by every script.
-- A state is one string: the number of its layout, a flags byte, then doubles holding integers below 2^53.
-- Limits of 0 are "none"; a total of -1 is unlimited; bucket levels count UNITs of debt.
local REVOKED, OVERRIDE = 1, 1
local INTEGER_MAX, GARBAGE_PERCENT = 9007199254740991, 1000

-- What Lua and Redis lend. A global of a library is looked up in two tables every time it is named; these are found
-- once, on the first call: while the library is loaded there are none.
local call, try, pack, parse, values, format, sub, byte, abs, floor, ceil, max, min, kind_of, protected

local function bind()
  try, pack, parse, values, format, sub = redis.pcall, struct.pack, struct.unpack, unpack, string.format, string.sub
  abs, floor, ceil, max, min = math.abs, math.floor, math.ceil, math.max, math.min
  byte, call, kind_of, protected = string.byte, redis.call, type, pcall
  -- all there is of the library is marked again after ten times as much, not twice; where Redis lets nobody say so, never mind
  pcall(function() collectgarbage('setpause', GARBAGE_PERCENT) end)
end

local function open(form, packed)
  local fields = {parse(form, packed)}
  fields[#fields] = nil
  return fields
end

-- Before layout 132 there was what remained in place of a limit, and of credits the balance
local function limited_today(raw, number)
  if number >= REORDERED or #raw ~= TENANT_BYTES then return raw end
  local used, limit, total = TENANT.read(raw)
  return total < 0 and raw or TENANT.replaced(raw, {limit = limit + used})
end

local function credited_today(raw, number)
  if number >= REORDERED or #raw ~= ORGANIZATION_BYTES then return raw end
  return ORGANIZATION.replaced(raw, {credits_used = 0 - ORGANIZATION.field(raw, 'credits_used')})
end

-- A stored state, as it is packed today: an older version's is brought up to that. A newer version's stays where it is, and the
-- caller hears of it
local function today(raw, name)
  local number = byte(raw)
  if number == TODAY then return raw end
  if number > TODAY then
    error({err = 'NEWERLAYOUT ' .. name .. ' is of layout ' .. number .. ', this version knows up to ' .. TODAY})
  end
  local kind = string.match(name, ':(%a):')
  if kind == 'k' then return KEY.today(raw, number) end
  if kind == 'u' then return USER.today(raw, number) end
  if kind == 't' then return limited_today(TENANT.today(raw, number), number) end
  if kind == 'o' then return credited_today(ORGANIZATION.today(raw, number), number) end
  if kind == 'a' then return ACTIVATION.today(raw, number) end
  if kind == 'b' then return BUDGET.today(raw, number) end
  return HOLD.today(raw, number)
end

-- what is packed as today, as the version before reads it
local function earlier(raw, name)
  local kind = string.match(name, ':(%a):')
  if kind == 'k' then return KEY.earlier(raw) end
  if kind == 'u' then return USER.earlier(raw) end
  if kind == 't' then return TENANT.earlier(raw) end
  if kind == 'o' then return ORGANIZATION.earlier(raw) end
  if kind == 'a' then return ACTIVATION.earlier(raw) end
  if kind == 'b' then return BUDGET.earlier(raw) end
  return HOLD.earlier(raw)
end

-- the partition's marker, and states and holds after it, as they are packed today
local function stored(keys, first)
  local raw = call('MGET', values(keys, first))
  for i = 2, #raw do
    local one = raw[i]
    if one and byte(one) ~= TODAY then raw[i] = today(one, keys[first + i - 1]) end
  end
  return raw
end

local function write(form, size, account) return pack(form, values(account, 1, size)) end

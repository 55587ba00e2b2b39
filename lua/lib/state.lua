-- state: packed states and holds, for every script. The fields are defined in gateway/counters/layouts/; fields of opened states
-- (`hold.tokens`), formats, sizes and layout operations (`HOLD.field(raw, 'created')`) are written out when the library is assembled
-- (gateway/counters/layouts/lua.py).
-- A state is one string: the number of its layout, a flags byte, then doubles holding integers below 2^53.
-- Limits of 0 are "none"; a total of -1 is unlimited; bucket levels count UNITs of debt.
local REVOKED, OVERRIDE = 1, 1
local GARBAGE_PERCENT = 1000

-- Functions of Lua and Redis. A global of a library is looked up in two tables each time; these are looked up once, on the first
-- call, because they do not exist while the library is loaded.
local call, try, pack, parse, values, format, sub, byte, abs, floor, ceil, max, min, kind_of, protected

local function bind()
  try, pack, parse, values, format, sub = redis.pcall, struct.pack, struct.unpack, unpack, string.format, string.sub
  abs, floor, ceil, max, min = math.abs, math.floor, math.ceil, math.max, math.min
  byte, call, kind_of, protected = string.byte, redis.call, type, pcall
  -- the collector runs after ten times the memory in use, not twice; servers that forbid this setting go without
  pcall(function() collectgarbage('setpause', GARBAGE_PERCENT) end)
end

local function open(form, packed)
  local fields = {parse(form, packed)}
  fields[#fields] = nil
  return fields
end

-- Layouts before 132 had the rest in place of a limit, and the balance in place of used credits.
local function limited_today(raw, number)
  if number >= REORDERED or #raw ~= TENANT_BYTES then return raw end
  local used, limit, total = TENANT.read(raw)
  return total < 0 and raw or TENANT.replaced(raw, {limit = limit + used})
end

local function credited_today(raw, number)
  if number >= REORDERED or #raw ~= ORGANIZATION_BYTES then return raw end
  return ORGANIZATION.replaced(raw, {credits_used = 0 - ORGANIZATION.field(raw, 'credits_used')})
end

-- A stored state in today's layout: an older version's is converted. A newer version's is left unchanged, and the caller gets an
-- error.
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

-- A state of today's layout, in the previous version's.
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

-- Whether an account held less than a hold gave back: a hold ended twice, or its account is a new one. The next answer of `settle`
-- says so.
local unheld = false

-- Returns the rest of a held amount after a hold gave a part of it back, at least 0.
local function held_after(held, amount)
  local left = held - amount
  if left < 0 then left, unheld = 0, true end
  return left
end

-- The partition's marker, and then states and holds in today's layout.
local function stored(keys, first)
  local raw = call('MGET', values(keys, first))
  for i = 2, #raw do
    local one = raw[i]
    if one and byte(one) ~= TODAY then raw[i] = today(one, keys[first + i - 1]) end
  end
  return raw
end

local function write(form, size, account) return pack(form, values(account, 1, size)) end

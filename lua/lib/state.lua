-- state: packed states, refusals, the time and a partition's marker, for every script. The fields are defined in
-- gateway/counters/layouts/; fields of opened states (`hold.tokens`), formats, sizes and layout operations (`HOLD.field(raw, 'created')`) are
-- written out when the library is assembled (gateway/counters/layouts/lua.py).
-- A state is one string: the number of its layout, a flags byte, then doubles holding integers below 2^53.
-- Limits of 0 are "none"; a total of -1 is unlimited; bucket levels count UNITs of debt.
local REVOKED, OVERRIDE = 1, 1
local GARBAGE_PERCENT, HUGE, NO_BATCH, ZERO = 1000, 9007199254740992, 0, '\0\0\0\0\0\0\0\0'

-- Functions of Lua and Redis. A global of a library is looked up in two tables each time; these are looked up once, on the first
-- call, because they do not exist while the library is loaded.
local call, try, pack, parse, values, format, concat, sub, byte, abs, floor, ceil, max, min, kind_of, protected

local function bind()
  try, pack, parse, values, format, concat, sub = redis.pcall, struct.pack, struct.unpack, unpack, string.format, table.concat, string.sub
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
    if raw[i] and byte(raw[i]) ~= TODAY then raw[i] = today(raw[i], keys[first + i - 1]) end
  end
  return raw
end

local function write(form, size, account) return pack(form, values(account, 1, size)) end

-- The time in ms since the epoch. Calls that one client sent in one write (`batch`: its unique number), and that run without others
-- in between, share it: TIME is a twentieth of the cost of reserve and settle.
local asked_by, answered = NO_BATCH, 0
local function clock(batch)
  if batch ~= asked_by or batch == NO_BATCH then
    local time = call('TIME')
    asked_by, answered = batch, time[1] * 1000 + floor(time[2] / 1000)
  end
  return answered
end

-- The marker's epoch and catalogue version; nil if the marker has another run id than `asked_for`. The last result is cached, since
-- it is the same for all calls of a partition.
local last_marker, marked_by, marked_epoch, marked_version
local written_as = TODAY
local function verified(marker, asked_for)
  if marker ~= last_marker then
    if not marker then return nil end
    local number, packed = byte(marker), marker
    if number ~= TODAY then
      if number ~= EARLIER then return nil end -- an older version or a newer one serves this partition
      packed = MARKER.today(marker, number)
    end
    local run_id, epoch, catalogue = MARKER.read(packed)
    marked_by, marked_epoch, marked_version = run_id, epoch, catalogue
    last_marker, written_as = marker, number
  end
  if marked_by ~= asked_for then return nil end
  return marked_epoch, marked_version
end

-- A state in the layout of the last marker; and a list of names and states in turn, from one index to another.
local function as_written(name, state) return written_as == TODAY and state or earlier(state, name) end

local function all_as_written(list, first, last)
  if written_as == TODAY then return list end
  for i = first, last, 2 do list[i + 1] = earlier(list[i + 1], list[i]) end
  return list
end

-- The answer to a call that a limit refuses.
local function refused(verdict, now, scope, kind, used, most, till)
  return REFUSED.pack{
    verdict = verdict, now = now, scope = scope, kind = kind or 0, used = used or 0, limit = most or 0, till = till or 0,
  }
end

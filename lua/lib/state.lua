-- state: where each field of a packed account state stands. Shared by every script.
-- A state is one string: a flags byte, then doubles holding integers below 2^53.
-- Limits of 0 are "none"; a total of -1 is unlimited; bucket levels count UNITs of debt.
local FLAGS, VERSION, RPM, TPM, CONC, RUSED, TUSED, AT, INFLIGHT = 1, 2, 3, 4, 5, 6, 7, 8, 9
local EXPIRES, KEY_ID = 10, 11
local TOTAL, REMAINING, HELD, USED, CYCLE, NEXT, ANCHOR, LAST, SEQ, LEDGER_AT = 10, 11, 12, 13, 14, 15, 16, 17, 18, 19
local PLAN, INTERVAL, POLICY, ADMISSION, EXHAUSTED, STORE, ROLLOVER, PLAN_TOTAL = 20, 21, 22, 23, 24, 25, 26, 27
local URPM, UTPM, UCONC, TENANT, TENANT_ORG = 28, 29, 30, 31, 32
local BALANCE, CHELD, CREDIT_LIMIT, CSEQ, CREDIT_AT = 10, 11, 12, 13, 14
local CAP, SPENT, SPEND_HELD, MONTH, SSEQ, SPEND_AT, ORG = 15, 16, 17, 18, 19, 20, 21
local KEY_FORM, KEY_SIZE = '<Bdddddddddd', 11
local USER_FORM, USER_SIZE = '<Bdddddddd', 9
local TENANT_FORM, TENANT_SIZE = '<Bddddddddddddddddddddddddddddddd', 32
local ORG_FORM, ORG_SIZE = '<Bdddddddddddddddddddd', 21
local REVOKED, OVERRIDE, MANUAL_BLOCK, HAS_PLAN = 1, 1, 1, 2
local INTEGER_MAX, GARBAGE_PERCENT = 9007199254740991, 1000
local POLICY_CARRY, POLICY_BILL, STRICT = 1, 2, 1

-- The first 65 bytes, the head, are alike in all four: flags, version and limits, which the counters follow from
-- byte 34 on. What moves buckets and slots writes the counters of any of them and nothing else.
local HEAD_FORM, ACCOUNT_AT = '<c33dddd', 66
local TENANT_ACCOUNT_FORM, ORG_ACCOUNT_FORM = '<ddddddddddddddddddddddd', '<dddddddddddd'
-- the first fields of an account, as far as they move: up to held, up to the ledger's time; and up to credits held,
-- credit time, spend held, spend time
local TO_HELD, TO_LEDGER_AT, TO_CHELD, TO_CREDIT_AT = '<ddd', '<dddddddddd', '<dd', '<ddddd'
local TO_SPEND_HELD, TO_SPEND_AT = '<dddddddd', '<ddddddddddd'

-- hold: see reserve.lua for who fills it
local HOLD_FORM, HOLD_SIZE, HOLD_BYTES, HOLD_TAKEN_FORM = '<Bdddddddddddddddd', 17, 129, '<Bdddddd'
local H_TOKENS, H_KEY_TPM, H_USER_TPM, H_TENANT_TPM, H_ORG_TPM, H_CREDITS, H_OBSERVED = 2, 3, 4, 5, 6, 7, 8
local H_SERVICE, H_DEADLINE, H_ORG, H_TENANT, H_KEY, H_UNITS, H_CREATED, H_CHARGED, H_SEEN = 9, 10, 11, 12, 13, 14, 15, 16, 17
local HOLD_USER, HOLD_ONE_TIME, HOLD_COUNTS, HOLD_RECLAIMED, HOLD_USES, HOLD_PAYS, HOLD_BY_TOKEN, HOLD_LEASE = 1, 2, 4, 8, 16, 32, 64, 128

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

-- the assembly writes it out where `flags` is a name or a field
local function has(flags, flag) return flags % (flag * 2) >= flag end

local function write(form, size, a) return pack(form, values(a, 1, size)) end

-- a state without its limits and counters, which stay packed: 0 stands where they would
local function account(form, packed)
  return {byte(packed), 0, 0, 0, 0, 0, 0, 0, 0, parse(form, packed, ACCOUNT_AT)}
end

-- one field of a packed state
local function field(packed, at) return (parse('<d', packed, 8 * at - 14)) end

-- a packed state with another head, and the first fields of its account as they stand in `a`: `form` is theirs.
-- What did not move is taken over packed
local function renewed(packed, head, form, a)
  if not form then return head .. sub(packed, ACCOUNT_AT) end
  local last = #form + 8
  return head .. pack(form, values(a, 10, last)) .. sub(packed, 8 * last - 6)
end

-- the names and values of those there are, for MSET: a table would cost its making
local function some(name, value, name2, value2, name3, value3)
  if value then return name, value, some(name2, value2, name3, value3) end
  if name2 then return some(name2, value2, name3, value3) end
end

-- what is left of a hold that was reclaimed, so that a late settle becomes a correction
local function reclaimed(hold, flags, charged)
  return pack('<B', flags + HOLD_RECLAIMED) .. sub(hold, 2, 8 * H_CHARGED - 15) .. pack('<d', charged)
    .. sub(hold, 8 * H_SEEN - 14, HOLD_BYTES)
end

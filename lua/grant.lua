-- grant: apply one control write to an account, once by its id.
-- needs: budget_accounts calendar entry quota rings spend state wide windows
-- allows: oom
-- KEYS[1] m  KEYS[2] g ids of control writes not yet in PostgreSQL (HASH)  KEYS[3] x outbox
-- KEYS[4] t tenant  KEYS[5] o organization  KEYS[6 on] up to 256 b accounts of a budget, for verb 9; each account of one owner
--   is followed by its index (ZSET)
-- ARGV[1] packed: run id (40), verb, amount (adjust and credits: signed; block: the number of its cause; plan: the time in ms since which it is in force, by the
--   clock of the process that set it: a cycle that was over by then ends first, if that clock is at most a minute ahead), id (36)
--   verbs: 1 recharge, 2 reset, 3 adjust, 4 block, 5 unblock, 6 plan, 7 credits, 8 sweep (only a due reset),
--   9 budget: reset its window (amount: its id), or take a part of it away; with an empty id more accounts follow in other calls
-- ARGV[2] metadata (JSON object or empty)
-- ARGV[3] the plan's terms, for verb 6, packed: plan id (0 none), the tenant's anchor, and each term of the plan; for verb 9 nothing, or
--   for each account the start of its window and the money to be taken from that, at most what it has used (below 0: added)
-- Returns packed: 1 applied or 2 applied before, now, seq, remaining (-1 unlimited), balance, epoch,
--     how far the tenant's seq moved, the credits' seq (0: not moved)
--   | 0 unverified | -2 unknown account | -3 out of range: the account would pass 2^53 - 1
-- Example: recharge 50 on remaining -20 -> remaining 30, one outbox entry whose source is the id
if #KEYS < 5 or #ARGV ~= 3 then return redis.error_reply('ERR grant takes 5 keys and 3 arguments') end
local run_id, verb, amount, id = GRANT.read(ARGV[1])
if #KEYS > 5 and verb ~= VERB_BUDGET then return redis.error_reply('ERR grant takes 5 keys and 3 arguments') end
local raw = stored({KEYS[1], KEYS[4], KEYS[5], values(KEYS, 6)}, 1)
local epoch = verified(raw[1], run_id)
if not epoch then return CODE.pack{code = 0} end
if not raw[3] or (not raw[2] and verb ~= VERB_CREDITS and verb ~= VERB_BUDGET) then return CODE.pack{code = -2} end
local now = clock(NO_BATCH)
local tenant, organization = raw[2] and TENANT.opened(raw[2]), ORGANIZATION.opened(raw[3])
local seq, credit_seq = tenant and tenant.seq or 0, organization.credit_seq
local function answer(code)
  local remaining = (not tenant or tenant.total < 0) and -1 or remaining_of(tenant)
  return GRANTED.pack{
    code = code, now = now, seq = tenant and tenant.seq or organization.credit_seq, remaining = remaining,
    balance = 0 - organization.credits_used, epoch = epoch, moved = tenant and tenant.seq - seq or 0,
    credit_seq = organization.credit_seq > credit_seq and organization.credit_seq or 0,
  }
end
local once = verb ~= VERB_SWEEP and id ~= NO_ID
if once and call('HEXISTS', KEYS[2], id) == 1 then return answer(2) end

local at = (verb == VERB_PLAN and amount <= now + PLAN_AHEAD_MS_MAX) and max(now, amount) or now
local events, before = {tenant and due(tenant, at, epoch) or nil}, tenant and remaining_of(tenant) or 0
local facts = {source = id, metadata = ARGV[2]}
local accounts
if verb == VERB_BUDGET then
  accounts = reset_windows(events, KEYS, raw, amount, organization.organization_id, {at = now, epoch = epoch, source = once and id or '', metadata = ARGV[2]}, ARGV[3])
elseif verb == VERB_CREDITS then events[#events + 1] = credit(organization, now, epoch, amount, facts)
elseif verb ~= VERB_SWEEP then events[#events + 1] = tenant_grant(tenant, at, epoch, verb, amount, ARGV[3], facts) end
if #events == 0 then return answer(2) end
if out_of_range(tenant, before, organization) then return CODE.pack{code = -3} end

local err = append(KEYS[3], events)
if err then return err end
if once then call('HSET', KEYS[2], id, '1') end
local writes = {KEYS[5], ORGANIZATION.written(organization)}
if tenant then writes[3], writes[4] = KEYS[4], TENANT.written(tenant) end
call('MSET', values(all_as_written(writes, 1, #writes)))
for _, account in ipairs(accounts or {}) do write_budget(account, nil, now) end
return answer(1)

-- functions: the effects of each control write on an account, and on a budget's window in each
local function credit(organization, now, epoch, amount, facts)
  facts.kind, facts.flags, facts.epoch = EVENT_CREDIT, amount >= 0 and ENTRY_IN or 0, epoch
  move_credits(organization, now, amount, facts, 0)
  facts.at = organization.credit_at
  return event(nil, organization.organization_id, facts)
end

local function mark(tenant, now, epoch, kind, cause, facts)
  local flags = tenant.flags % BLOCK_CAUSE
  if has(flags, MANUAL_BLOCK) then flags = flags - MANUAL_BLOCK end
  tenant.flags = kind == EVENT_BLOCK and flags + MANUAL_BLOCK + cause * BLOCK_CAUSE or flags
  tenant.ledger_at = max(now, tenant.ledger_at)
  facts.kind, facts.flags, facts.at, facts.epoch = kind, status_flag(tenant), tenant.ledger_at, epoch
  return event(tenant, tenant.organization_id, facts)
end

-- Moves a tenant to another plan now, as an adjust of the difference; a first plan is a reset. Under a plan that does not carry, use
-- beyond the former plan is forgiven at the next reset.
local function change_plan(tenant, now, epoch, packed, facts)
  local had = has(tenant.flags, HAS_PLAN)
  if tenant.total >= 0 and tenant.overage_policy ~= POLICY_CARRY and remaining_of(tenant) < 0 then forgive_next(tenant) end
  if has(tenant.flags, FORGIVES) then facts.metadata = '{"forgives":true}' end
  follow(tenant, packed, now)
  if had ~= (tenant.plan_id > 0) then tenant.flags = tenant.flags + (had and -HAS_PLAN or HAS_PLAN) end
  if tenant.seq == 0 then return renew(tenant, now, epoch, tenant.cycle == 0 and 1 or 0, tenant.next_reset, facts) end
  local before = balance_of(tenant)
  tenant.limit, tenant.total = tenant.limit + max(0, tenant.total_amount) - max(0, tenant.total), tenant.total_amount
  return movement(tenant, now, epoch, EVENT_ADJUST, balance_of(tenant) - before, facts)
end

local function tenant_grant(tenant, now, epoch, verb, amount, plan, facts)
  if verb == VERB_PLAN then return change_plan(tenant, now, epoch, plan, facts) end
  if verb == VERB_BLOCK then return mark(tenant, now, epoch, EVENT_BLOCK, amount, facts) end
  if verb == VERB_UNBLOCK then return mark(tenant, now, epoch, EVENT_UNBLOCK, 0, facts) end
  if verb == VERB_RESET then
    return renew(tenant, now, epoch, 1, next_reset_of(tenant, now), facts)
  end
  tenant.limit = tenant.limit + amount
  return movement(tenant, now, epoch, verb == VERB_RECHARGE and EVENT_RECHARGE or EVENT_ADJUST, amount, facts)
end

-- Whether a number would exceed 2^53 - 1 and no longer be exact.
local function out_of_range(tenant, before, organization)
  local largest = abs(organization.credits_used)
  if tenant then largest = max(largest, abs(tenant.limit), abs(remaining_of(tenant)), abs(remaining_of(tenant) - before)) end
  return largest > INTEGER_MAX
end

local RESET_ACCOUNTS_MAX, NO_ID = 256, '000000000000000000000000000000000000'

-- Takes an amount of money from what is used, but no more than that, or all of it; below 0 it is added. Returns the rest and the
-- taken amount, each in two numbers.
local function take_used(used, used_rest, amount)
  local left, left_rest = 0, 0
  if amount then
    left, left_rest = wide.added(used, used_rest, wide.split(-amount))
    if left < 0 and amount > 0 then left, left_rest = min(used, 0), used < 0 and used_rest or 0 end
  end
  return left, left_rest, wide.added(used, used_rest, -left, -left_rest)
end

-- Returns the changed accounts; each has an entry with the amount taken from the window, or from each part of one that rolls. There is
-- always an entry, which records the control write. `parts` has an AMENDED for each account, or nothing: then all that is used is taken.
local function reset_windows(events, keys, raw, budget_id, organization_id, facts, parts)
  local accounts, known, part_at, at = {}, #events, 1, 6
  if #keys - at >= 2 * RESET_ACCOUNTS_MAX then error({err = 'ERR a reset is of up to 256 accounts'}) end
  while at <= #keys do
    local account = account_at(keys[at], raw[at - 2], facts.at)
    if byte(keys[at], COLON_AT) == COLON then account[INDEX], at = keys[at + 1], at + 1 end
    at = at + 1
    local start, amount
    if parts ~= '' then
      start, amount = AMENDED.read(parts, part_at)
      part_at = part_at + AMENDED_BYTES
    end
    local definition, told = account[DEFINITION], #events
    local opened = opened_windows(definition, account[METERS])
    for _, window in ipairs(opened) do
      local unit, is_wide = window.flags % WINDOW_ENFORCES, definition[UNITS][window.place] == WIDE
      local money = is_wide or unit == FLAG_MONEY
      local function take(began, used, used_rest)
        if start and start ~= began then return used, used_rest end
        local left, left_rest, taken, taken_rest = take_used(used, used_rest, start and amount)
        if taken == 0 and taken_rest == 0 then return used, used_rest end
        events[#events + 1] = event(nil, organization_id, {
          kind = EVENT_BUDGET, flags = 0, at = facts.at, epoch = facts.epoch, source = facts.source, metadata = facts.metadata,
          amount = is_wide and not start and taken or 0, -- of money in two numbers an entry has the whole units as its amount
          money = money and (is_wide and not start and taken_rest or wide.joined(taken, taken_rest)) or 0,
          raw_tokens = unit == FLAG_TOKENS and taken or 0, requests = unit == FLAG_REQUESTS and taken or 0,
          budgets = BUDGETED.pack{budget_id = budget_id, start = began, value = value_of(account) or NOBODY},
        })
        return left, left_rest
      end
      if window.budget_id == budget_id then
        if window.ring then rings.change(window, take) else window.used, window.used_rest = take(window.start, window.used, window.used_rest) end
      end
    end
    if #events > told then
      account[DEFINITION], account[METERS] = gathered_windows(opened)
      accounts[#accounts + 1] = account
    end
  end
  if #events == known and facts.source ~= '' then
    facts.kind, facts.flags = EVENT_BUDGET, 0
    events[known + 1] = event(nil, organization_id, facts)
  end
  return accounts
end

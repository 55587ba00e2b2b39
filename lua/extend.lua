-- extend: keep many running calls of one partition: renew their deadlines, store the use observed so far, and hold more for streams
-- that have used up their holds.
-- needs: state window batch entry event calendar cycle wide definition rings carries wide_windows windows account budgeted held cover paid kept append extend
-- allows: oom
-- KEYS[1] m  KEYS[2] d  KEYS[3] x  then for each call: h hold, t tenant, o organization, b each budget account
--   (all except h may repeat)
-- ARGV[1] run id  ARGV[2] ttl ms  then packed for each call: tokens observed, the same as weighed by the plan (-1: the plan does
--   not weigh), quota tokens wanted,
--   credits observed (-1) and credits wanted (0) if tokens do not set the price, for budgets the money observed, money and
--   tokens wanted and the number of accounts, whole (1: all that is wanted, or nothing; 2: and by the definitions of now, one for each
--   account, empty where it has none, which follow), request id (36)
-- A hold is raised to the wanted amount, as far as the accounts have it free.
-- Returns one packed string: now, then for each call its hold in tokens (-1: gone), in credits, exhausted
--   (0 no, 1 yes: the call may finish, 2 yes: its plan or a budget stops it, 3: refused, nothing was taken, and the
--   amounts are those that it could have held), for budgets in money and in tokens;
--   only 0 if the partition is unverified
-- Example: hold 100, observed 90, wanted 140, free 30 -> hold 130, exhausted 1; whole -> hold 100, answered 130, exhausted 3
if #KEYS < 6 or #ARGV < 3 or keys_of_calls(ARGV) ~= #KEYS - 3 then
  return redis.error_reply('ERR extend takes 3 keys and 3 a call and its budgets, 2 arguments and 1 a call')
end
local raw = stored(KEYS, 1)
local epoch = verified(raw[1], ARGV[1])
if not epoch then return CODE.pack{code = 0} end
local now = clock(NO_BATCH)
local deadline, events, renewals = now + tonumber(ARGV[2]), {}, {}
local writes, answer = {}, {CODE.pack{code = now}}
local tenant_at, tenants = account_opener(TENANT_FORM)
local organization_at, organizations = account_opener(ORGANIZATION_FORM)
local budget_at, budgets = budget_opener(now)
local at, call_at = 4, 3

while call_at <= #ARGV do
  local observed, quota_tokens, wanted, seen, worth, money_seen, money_wanted, budget_tokens_wanted, accounts, whole, request_id = EXTEND.read(ARGV[call_at])
  local known = #tenants
  local hold, tenant, organization = raw[at] and HOLD.opened(raw[at]), tenant_at(KEYS[at + 1], raw[at + 1]), nil
  if #tenants > known then events[#events + 1] = due(tenant, now, epoch) end
  if not hold or not tenant or has(hold.flags, HOLD_RECLAIMED) then
    answer[#answer + 1] = EXTENDED.pack{tokens = -1, credits = 0, exhausted = 0, money = 0, budget_tokens = 0}
  else
    if worth > 0 then organization = organization_at(KEYS[at + 2], raw[at + 2]) end
    local tokens, credits, exhausted = free_for(hold, tenant, organization, wanted, worth)
    local windows, money, budget_tokens, spent = no_windows, 0, 0, 0
    local in_budgets = budgets_of(budget_at, KEYS, raw, at + 3, accounts, ARGV, whole > 1 and call_at)
    if accounts > 0 then windows, money, budget_tokens, spent = free_in_windows(hold, raw[at], in_budgets, money_wanted, budget_tokens_wanted) end
    exhausted = max(exhausted, spent)
    if whole > 0 and exhausted > 0 then exhausted = 3 end
    answer[#answer + 1] = EXTENDED.pack{
      tokens = hold.tokens + tokens, credits = hold.credits + credits, exhausted = exhausted, money = hold.money + money,
      budget_tokens = hold.budget_tokens + budget_tokens,
    }
    if exhausted < 3 then
      if tokens > 0 then hold_more(tenant, QUOTA_AT, tokens) end
      if credits > 0 then hold_more(organization, CREDITS_AT, credits) end
      move_held(in_budgets, windows, {money, budget_tokens, 0, 0})
      hold.tokens, hold.credits = hold.tokens + tokens, hold.credits + credits
      hold.money, hold.budget_tokens = hold.money + money, hold.budget_tokens + budget_tokens
    end
    hold.observed, hold.quota_tokens, hold.seen = max(observed, hold.observed), max(quota_tokens, hold.quota_tokens), max(seen, hold.seen)
    hold.money_seen = max(money_seen, hold.money_seen)
    hold.deadline = deadline
    renewals[#renewals + 1] = format('%.0f', deadline)
    renewals[#renewals + 1] = request_id
    writes[#writes + 1] = KEYS[at]
    writes[#writes + 1] = HOLD.written(hold) .. HOLD.behind(raw[at])
  end
  at, call_at = at + 3 + accounts, call_at + 1 + max(0, whole - 1) * accounts
end
call('ZCARD', KEYS[2]) -- fails now, before anything is written, if it is no sorted set
local err = append(KEYS[3], events)
if err then return err end
if #renewals > 0 then call('ZADD', KEYS[2], 'XX', values(renewals)) end
for _, name in ipairs(tenants) do
  writes[#writes + 1] = name
  writes[#writes + 1] = TENANT.written(tenant_at(name))
end
for _, name in ipairs(organizations) do
  writes[#writes + 1] = name
  writes[#writes + 1] = ORGANIZATION.written(organization_at(name))
end
if #writes > 0 then call('MSET', values(all_as_written(writes, 1, #writes))) end
for _, account in ipairs(budgets) do write_budget(account, nil, now) end
return table.concat(answer)

-- accounts: the accounts that the calls of one function call move: each is looked up, opened and packed once, however many of the
-- calls take from it.
-- needs: bucket quota spend state
-- These tables are made once. By place: the stored value, the opened account, whether it moved, its scope, its due reset. Then what
-- is to be written: the outbox events and the deadlines' members of a part, states by name, and names to delete.
local raw_of, account_of, moved_of, scope_of, reset_of = {}, {}, {}, {}, {}
local event_of, member_of, write_of, gone_of = {}, {}, {}, {}
local event_count, member_count, write_count, gone_count = 0, 0, 0, 0
local shared_now
-- The number of new ones that the calls have made, by index.
local made_of, makes = {}, false
-- The budget accounts of the previous call in the same part.
local last_accounts
-- The present call's accounts by scope, and their places among all; how many it names, and in a part of many calls the shape, where its
-- places begin in that, and the first of the calls directly before it that name the same.
local scopes = {false, false, false, false}
local at_tenant, at_organization, at_key, at_user, account_count, shape, named_from, group
-- The number of keys before the first marker; before the part's own keys; and of places before it.
local keys_before, own_before, places_before = 0, 0, 0
-- Opened accounts that were written or read here, by name; after its fields each has its packed value. One is valid only while the
-- stored value equals that, so a write by another script makes it invalid. A call that fails halfway leaves accounts that differ from
-- their packed values, so all are dropped then (`forget`).
-- There are at most 512: Redis runs Lua's collector every 50 calls, which visits all that are kept. At 256 they become the former
-- ones, which are kept only if they are used again.
-- The index of the packed value is PACKED for a budget account, else `packed_at` by scope. An account of a scope has two more fields
-- after it: its bytes before all fields that move, and its bytes after those; false or absent until they are cut out.
local OPENED_MAX, PACKED = 256, 12
local opened_of, opened_count, opened_before = {}, 0, {}
local packed_at = {KEY_SIZE + 1, USER_SIZE + 1, TENANT_SIZE + 1, ORGANIZATION_SIZE + 1}

-- The lists of budget accounts of calls that were alone in their part (lib/budget_accounts.lua), and their number. They hold for opened accounts
-- alone, so they go with these: else they would keep sixteen accounts each.
local lists, list_count = {}, 0

local function forget()
  opened_of, opened_count, opened_before = {}, 0, {}
  lists, list_count = {}, 0
end

local function remember(name, account, packed, place)
  account[place] = packed
  if opened_of[name] == nil then
    if opened_count == OPENED_MAX then
      opened_before, opened_of, opened_count = opened_of, {}, 0
      lists, list_count = {}, 0
    end
    opened_count = opened_count + 1
  end
  opened_of[name] = account
end

-- An opened account whose stored value is still the known one.
local function remembered(name, raw, place)
  local account = opened_of[name]
  if account and account[place] == raw then return account end
  account = opened_before[name]
  if account and account[place] == raw then
    remember(name, account, raw, place)
    return account
  end
end

-- What the present part moved. PART_ALONE: its only call has moved nothing except a tenant, an organization, a key, a user, and these accounts
-- of budgets.
local PART_CLOSED, PART_OPEN, PART_ALONE = 0, 1, 2
local part_is, moved_alone = PART_CLOSED, nil
-- How far the fields of a tenant's and an organization's account moved, at most. A key and a user move only their heads.
local FAR_HEAD, FAR_HELD, FAR_LEDGER, ACTIVATED, BUDGETED = 1, 2, 3, 5, 6
local tenant_far, organization_far = FAR_HELD, FAR_HEAD

-- The opened account at a place; false if nothing is stored.
local function opened_at(at, scope, name)
  local raw, place = raw_of[at], packed_at[scope]
  if not raw then return false end
  local account = remembered(name, raw, place)
  if not account then
    if byte(raw) ~= TODAY then
      raw = today(raw, name)
      raw_of[at] = raw
    end
    account = {parse(forms[scope], raw)}
    remember(name, account, raw, place)
  end
  return account
end

-- Stands for the packed value of an account that has changed since.
local UNKNOWN = 0

-- An opened tenant, after its due reset.
local function open_tenant(at, name, now, epoch)
  local tenant = opened_of[name]
  if not tenant or tenant[TENANT_SIZE + 1] ~= raw_of[at] then
    tenant = opened_at(at, SCOPE_TENANT, name)
    if not tenant then return false end
  end
  local ends = tenant.next_reset
  if ends > 0 and now >= ends then
    reset_of[at] = due(tenant, now, epoch)
    raw_of[at], tenant[TENANT_SIZE + 1], tenant[TENANT_SIZE + 2] = TENANT.replaced(raw_of[at], {flags = tenant.flags}), UNKNOWN, false
  end
  account_of[at], scope_of[at] = tenant, SCOPE_TENANT
  return tenant
end

local function open_user(at, name)
  local user = opened_of[name]
  if not user or user[USER_SIZE + 1] ~= raw_of[at] then user = opened_at(at, SCOPE_USER, name) end
  account_of[at], scope_of[at] = user, SCOPE_USER
  return user
end

-- An opened key or organization. False if it is missing, or has no limits, unless the call needs it all the same (`must_open`): then calls
-- take nothing of it and write nothing, and their holds say so.
local NO_LIMITS = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
local function limited_account(at, scope, name, must_open)
  local raw, account = raw_of[at], opened_of[name]
  if not raw then return false end
  if not account or account[packed_at[scope]] ~= raw then
    account = remembered(name, raw, packed_at[scope])
    if not account then
      account = (must_open or byte(raw) ~= TODAY or ACCOUNT.bytes(raw, 'rpm', 'concurrency') ~= NO_LIMITS) and opened_at(at, scope, name)
    end
  end
  if account and not (must_open or account.rpm > 0 or account.tpm > 0 or account.concurrency > 0) then account = false end
  account_of[at], scope_of[at] = account, scope
  return account
end

-- A user with its limits in force; false without any: then nothing is stored. A missing user has the tenant's user limits, and
-- nothing used.
local function limited_user(at, name, tenant, now)
  local user, rpm, tpm, concurrency = open_user(at, name), tenant.user_rpm, tenant.user_tpm, tenant.user_concurrency
  if user and (has(user.flags, OVERRIDE) or user.rpm == rpm and user.tpm == tpm and user.concurrency == concurrency and rpm + tpm + concurrency > 0) then
    return user
  end
  if rpm + tpm + concurrency > 0 then
    user = user and {values(user)} or USER.fresh()
    if user.at == 0 then user.at = now end
    set_limits(user, rpm, tpm, concurrency)
    raw_of[at], user[USER_SIZE + 2], user[USER_SIZE + 3] = USER.written(user), false, false
    remember(name, user, UNKNOWN, USER_SIZE + 1)
  else user = false end
  account_of[at] = user
  return user
end

local function open_activation(at, name)
  local activation = account_of[at]
  if not activation then
    local raw = raw_of[at]
    activation = activation_of(raw and today(raw, name))
    account_of[at], scope_of[at] = activation, ACTIVATED
  end
  return activation
end


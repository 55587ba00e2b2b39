-- accounts: what the calls of one call of a function move: each account is looked up, opened and written once, however
-- many of the calls take from it. Needs state, bucket, cycle, append.
-- These tables are made once. By place: what is stored, the opened accounts, which of them moved, the scope of each, due
-- resets; and what there is to write besides: the outbox' events and the deadlines' members of a part, states by name, and
-- the names of those that go.
local raw_of, account_of, moved_of, scope_of, reset_of = {}, {}, {}, {}, {}
local event_of, member_of, write_of, gone_of = {}, {}, {}, {}
local event_count, member_count, write_count, gone_count = 0, 0, 0, 0
local shared_now
-- How many states were left to be written when a part began.
local write_before = 0
-- And accounts of budgets for each, which go by themselves, each with the layout that its part is written in.
local left_of, layout_of, left_count = {}, {}, 0
-- How many new ones of these the calls made, by index.
local made_of, makes = {}, false
-- The accounts of budgets of the call before, in the same part.
local last_accounts
-- How many keys come before the first marker; how many before those that are the part's own, and how many places.
local keys_before, own_before, places_before = 0, 0, 0
-- Accounts that were written or read here, opened, by name; behind its fields each has what it is packed as. It holds stored values
-- that need not be opened again; who else writes it packs something else. A call that fails halfway leaves accounts that are not
-- what they are packed as, so nothing is kept then (`forget`).
-- There are 512 at most: Redis has Lua collect every 50 calls, and each time all that are kept are walked through. When there are
-- 256 of them, they become those of before, whom nobody keeps but who asks for them.
-- That place is PACKED of a budget account, else `packed_at` by scope. An account of a scope has two more behind it: its bytes before
-- all fields that move, and its bytes behind those. They are false, or absent, where they were not cut out yet
local OPENED_MAX, PACKED = 256, 13
local opened_of, opened_count, opened_before = {}, 0, {}
local packed_at = {KEY_SIZE + 1, USER_SIZE + 1, TENANT_SIZE + 1, ORGANIZATION_SIZE + 1}

local function forget() opened_of, opened_count, opened_before = {}, 0, {} end

local function remember(name, account, packed, place)
  account[place] = packed
  if opened_of[name] == nil then
    if opened_count == OPENED_MAX then opened_before, opened_of, opened_count = opened_of, {}, 0 end
    opened_count = opened_count + 1
  end
  opened_of[name] = account
end

-- an account, opened, that is stored as it is known here
local function remembered(name, raw, place)
  local account = opened_of[name]
  if account and account[place] == raw then return account end
  account = opened_before[name]
  if account and account[place] == raw then
    remember(name, account, raw, place)
    return account
  end
end

-- looks up what KEYS have behind so many, to the last: markers and accounts, of settlements holds too
local function look_up(keys, before, last)
  write_count, gone_count, left_count, shared_now = 0, 0, 0, nil
  if makes then made_of, makes = {}, false end
  keys_before = before
  raw_of = call('MGET', values(keys, before + 1, last))
end

-- begins a part behind so many keys and places; its accounts are opened as they come. Of the part before none is left, unless it
-- failed. `tenant_moves` says how far its tenants move at least, without a reset. A part whose only call has moved nothing but a tenant, an
-- organization, a key and a user is PART_ALONE
local PART_CLOSED, PART_OPEN, PART_ALONE = 0, 1, 2
local part_is = 0
-- How far the account of a tenant, and that of an organization, moved: as far as the farthest does. Key and user move their heads.
local FAR_HEAD, FAR_HELD, FAR_LEDGER, ACTIVATED, BUDGETED = 1, 2, 3, 5, 6
local tenant_far, organization_far = FAR_HELD, FAR_HEAD
local function enter_part(own, before, tenant_moves)
  own_before, places_before, event_count, member_count, write_before, last_accounts = own, before, 0, 0, write_count, nil
  if part_is ~= PART_CLOSED then
    account_of, moved_of, reset_of = {}, {}, {}
    forget()
  end
  part_is, tenant_far, organization_far = PART_OPEN, tenant_moves, FAR_HEAD
end

local FORM_OF = {KEY_FORM, USER_FORM, TENANT_FORM, ORGANIZATION_FORM}

-- an account by its place, opened; false where nothing is stored there
local function opened_at(at, scope, name)
  local raw, place = raw_of[at], packed_at[scope]
  if not raw then return false end
  local account = remembered(name, raw, place)
  if not account then
    if byte(raw) ~= TODAY then
      raw = today(raw, name)
      raw_of[at] = raw
    end
    account = {parse(FORM_OF[scope], raw)}
    remember(name, account, raw, place)
  end
  return account
end

-- What an account is packed as that is not what it was any more.
local UNKNOWN = 0

-- a tenant, opened; its due reset is done
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

-- a key or an organization, opened. False where nothing limits it and nothing else of it is asked for (`whole`), or where
-- there is none: calls take nothing of it then, write nothing, and their holds say so
local NO_LIMITS = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
local function limited_account(at, scope, name, whole)
  local raw, account = raw_of[at], opened_of[name]
  if not raw then return false end
  if not account or account[packed_at[scope]] ~= raw then
    account = remembered(name, raw, packed_at[scope])
    if not account then
      account = (whole or byte(raw) ~= TODAY or ACCOUNT.bytes(raw, 'rpm', 'concurrency') ~= NO_LIMITS) and opened_at(at, scope, name)
    end
  end
  if account and not (whole or account.rpm > 0 or account.tpm > 0 or account.concurrency > 0) then account = false end
  account_of[at], scope_of[at] = account, scope
  return account
end

-- a user under the limits in force; false where there are none: then nothing is kept of it. Absent means not seen lately:
-- the tenant's user limits, nothing used
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

-- the accounts of a call by scope; made once
local scopes = {false, false, false, false}

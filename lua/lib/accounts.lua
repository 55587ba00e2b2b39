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
-- Accounts that were written here, opened, and packed as they were written, by name. It holds stored values that need not be
-- opened again; who else writes it packs something else. While a call has one nobody knows it: it may fail halfway.
-- There are 512 at most: Redis has Lua collect every 50 calls, and each time all that are kept are walked through. When there are
-- 256 of them, they become those of before, whom nobody keeps but who asks for them.
local OPENED_MAX = 256
local opened_of, packed_of, opened_count, opened_before, packed_before = {}, {}, 0, {}, {}

local function remember(name, account, packed)
  if not opened_of[name] then
    if opened_count == OPENED_MAX then opened_before, packed_before, opened_of, packed_of, opened_count = opened_of, packed_of, {}, {}, 0 end
    opened_count = opened_count + 1
  end
  opened_of[name], packed_of[name] = account, packed
end

-- an account, opened, that is stored as it was written here; from now on nobody knows it
local function take_remembered(name, raw)
  local opened, packed = opened_of, packed_of
  if not opened[name] then opened, packed = opened_before, packed_before end
  if packed[name] ~= raw then return nil end
  packed[name] = false
  return opened[name]
end

-- looks up what KEYS have behind so many, to the last: markers and accounts, of settlements holds too
local function look_up(keys, before, last)
  write_count, gone_count, left_count, shared_now = 0, 0, 0, nil
  if makes then made_of, makes = {}, false end
  keys_before = before
  raw_of = call('MGET', values(keys, before + 1, last))
end

-- begins a part behind so many keys and places, and has so many of them; its accounts are opened as they come
local function enter_part(own, before, places)
  own_before, places_before, event_count, member_count, write_before, last_accounts = own, before, 0, 0, write_count, nil
  for at = before + 2, before + places do account_of[at], moved_of[at] = nil, nil end
end

-- how far the account of a tenant, and that of an organization, moved: as far as the farthest does. Key and user move their heads
local FAR_HEAD, FAR_HELD, FAR_LEDGER, ACTIVATED, BUDGETED = 1, 2, 3, 5, 6
local tenant_far, organization_far = FAR_HELD, FAR_HEAD
local FORM_OF = {KEY_FORM, USER_FORM, TENANT_FORM, ORGANIZATION_FORM}

-- packs what moved at a place
local function packed_at(at, account, scope)
  local raw = raw_of[at]
  if scope < SCOPE_TENANT then return ACCOUNT.moved(raw, account, 'inflight') end
  if scope == SCOPE_TENANT then
    local tenant = account
    if tenant_far == FAR_HELD then return TENANT.moved(raw, tenant, 'held') end
    return TENANT.moved(raw, tenant, 'ledger_at')
  end
  if organization_far > FAR_HEAD then
    local organization = account
    if organization_far == FAR_HELD then return ORGANIZATION.moved(raw, organization, 'credits_held') end
    return ORGANIZATION.moved(raw, organization, 'spend_at')
  end
  return ACCOUNT.moved(raw, account, 'inflight')
end

-- what is stored at a place, opened; of a tenant its due reset is done. False where there is nothing
local function open_account(at, scope, name, now, epoch)
  local raw = raw_of[at]
  if not raw then return false end
  local account = take_remembered(name, raw)
  if not account then
    if byte(raw) ~= TODAY then raw = today(raw, name) end
    account, raw_of[at] = {parse(FORM_OF[scope], raw)}, raw
  end
  reset_of[at] = scope == SCOPE_TENANT and due(account, now, epoch)
  account_of[at], scope_of[at] = account, scope
  return account
end

-- a key or an organization, opened. False where nothing limits it and nothing else of it is asked for (`whole`), or where
-- there is none: calls take nothing of it then, write nothing, and their holds say so
local NO_LIMITS = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
local function limited_account(at, scope, name, whole)
  local account, raw = account_of[at], raw_of[at]
  if account or not raw or (account == false and not whole) then return account or false end
  if byte(raw) ~= TODAY then
    raw = today(raw, name)
    raw_of[at] = raw
  end
  if whole or ACCOUNT.bytes(raw, 'rpm', 'concurrency') ~= NO_LIMITS then return open_account(at, scope, name) end
  account_of[at] = false
  return false
end

-- a user under the limits in force; false where there are none: then nothing is kept of it. Absent means not seen lately:
-- the tenant's user limits, nothing used
local function limited_user(at, name, tenant, now)
  local user, rpm, tpm, concurrency = open_account(at, SCOPE_USER, name, now), tenant.user_rpm, tenant.user_tpm, tenant.user_concurrency
  if user and (has(user.flags, OVERRIDE) or user.rpm == rpm and user.tpm == tpm and user.concurrency == concurrency and rpm + tpm + concurrency > 0) then
    return user
  end
  if rpm + tpm + concurrency > 0 then
    user = user and {values(user)} or USER.fresh()
    if user.at == 0 then user.at = now end
    set_limits(user, rpm, tpm, concurrency)
    raw_of[at] = USER.written(user)
  else user = false end
  account_of[at], scope_of[at] = user, SCOPE_USER
  return user
end

local function open_activation(at, name)
  local activation = account_of[at]
  if not activation then
    local raw = raw_of[at]
    activation = activation_of(raw and today(raw, name))
  end
  account_of[at], scope_of[at] = activation, ACTIVATED
  return activation
end

-- the accounts of a call by scope; made once
local scopes = {false, false, false, false}

-- takes what one call does
local function take(had)
  for scope = SCOPE_KEY, SCOPE_ORGANIZATION do
    local account = scopes[scope]
    if account then
      account.requests_used, account.tokens_used, account.at = requests_of[scope], tokens_of[scope], times_of[scope]
      if not had[scope] then account.inflight = account.inflight + 1 end
    end
  end
end

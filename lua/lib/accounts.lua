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
-- Accounts that were written here, opened, by name; behind its fields each has what it was packed as. It holds stored values that
-- need not be opened again; who else writes it packs something else. While a call has one nobody knows it: it may fail halfway.
-- There are 512 at most: Redis has Lua collect every 50 calls, and each time all that are kept are walked through. When there are
-- 256 of them, they become those of before, whom nobody keeps but who asks for them.
-- That place is PACKED of a budget account, else `packed_at` by scope. An account of a scope has two more behind it: its bytes before
-- all fields that move, and its bytes behind those. They are false, or absent, where they were not cut out yet
local OPENED_MAX, PACKED = 256, 13
local opened_of, opened_count, opened_before = {}, 0, {}
local packed_at = {KEY_SIZE + 1, USER_SIZE + 1, TENANT_SIZE + 1, ORGANIZATION_SIZE + 1}

local function remember(name, account, packed, place)
  account[place] = packed
  if opened_of[name] == nil then
    if opened_count == OPENED_MAX then opened_before, opened_of, opened_count = opened_of, {}, 0 end
    opened_count = opened_count + 1
  end
  opened_of[name] = account
end

-- an account, opened, that is stored as it was written here; from now on nobody knows it
local function take_remembered(name, raw, place)
  local opened = opened_of
  local account = opened[name]
  if not account then
    opened = opened_before
    account = opened[name]
  end
  if account and account[place] == raw then
    opened[name] = false
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
-- failed. A part whose only call has moved nothing but a tenant, an organization, a key and a user is PART_ALONE
local PART_CLOSED, PART_OPEN, PART_ALONE = 0, 1, 2
local part_is = 0
local function enter_part(own, before)
  own_before, places_before, event_count, member_count, write_before, last_accounts = own, before, 0, 0, write_count, nil
  if part_is ~= PART_CLOSED then account_of = {} end
  part_is = PART_OPEN
end

-- how far the account of a tenant, and that of an organization, moved: as far as the farthest does. Key and user move their heads
local FAR_HEAD, FAR_HELD, FAR_LEDGER, ACTIVATED, BUDGETED = 1, 2, 3, 5, 6
local tenant_far, organization_far = FAR_HELD, FAR_HEAD
local FORM_OF = {KEY_FORM, USER_FORM, TENANT_FORM, ORGANIZATION_FORM}

-- packs what moved of an account that was packed as `raw`, between what does not: that is cut out once, and stands behind what the
-- account was packed as
local function packed_of(raw, account, scope)
  local place = packed_at[scope]
  local head, tail = account[place + 1], account[place + 2]
  if not head then
    head = ACCOUNT.unmoved(raw)
    account[place + 1] = head
  end
  if scope == SCOPE_TENANT then
    local tenant = account
    if tenant_far == FAR_HELD then return head .. TENANT.moved(tenant, 'held') .. TENANT.past(raw, 'held') end
    if not tail then
      tail = TENANT.past(raw, 'ledger_at')
      account[place + 2] = tail
    end
    return head .. TENANT.moved(tenant, 'ledger_at') .. tail
  end
  if scope == SCOPE_ORGANIZATION and organization_far > FAR_HEAD then
    local organization = account
    account[place + 2] = false
    if organization_far == FAR_HELD then return head .. ORGANIZATION.moved(organization, 'credits_held') .. ORGANIZATION.past(raw, 'credits_held') end
    return head .. ORGANIZATION.moved(organization, 'spend_at') .. ORGANIZATION.past(raw, 'spend_at')
  end
  if not tail then
    tail = ACCOUNT.past(raw, 'inflight')
    account[place + 2] = tail
  end
  return head .. ACCOUNT.moved(account, 'inflight') .. tail
end

-- what is stored at a place, opened; of a tenant its due reset is done. False where there is nothing
local function open_account(at, scope, name, now, epoch)
  local raw = raw_of[at]
  if not raw then return false end
  local account = take_remembered(name, raw, packed_at[scope])
  if not account then
    if byte(raw) ~= TODAY then
      raw = today(raw, name)
      raw_of[at] = raw
    end
    account = {parse(FORM_OF[scope], raw)}
  end
  if scope == SCOPE_TENANT then
    local tenant = account
    reset_of[at] = now >= tenant.next_reset and due(tenant, now, epoch)
    if reset_of[at] then raw_of[at], account[packed_at[scope] + 1] = TENANT.replaced(raw, {flags = tenant.flags}), false end
  end
  account_of[at], scope_of[at], moved_of[at] = account, scope, false
  return account
end

-- a key or an organization, opened. False where nothing limits it and nothing else of it is asked for (`whole`), or where
-- there is none: calls take nothing of it then, write nothing, and their holds say so
local NO_LIMITS = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
local function limited_account(at, scope, name, whole)
  local account, raw = account_of[at], raw_of[at]
  if account or not raw or (account == false and not whole) then return account or false end
  local place = packed_at[scope]
  account = take_remembered(name, raw, place)
  if not account then
    if byte(raw) ~= TODAY then
      raw = today(raw, name)
      raw_of[at] = raw
    end
    account = (whole or ACCOUNT.bytes(raw, 'rpm', 'concurrency') ~= NO_LIMITS) and {parse(FORM_OF[scope], raw)}
  elseif not (whole or account.rpm > 0 or account.tpm > 0 or account.concurrency > 0) then
    remember(name, account, raw, place)
    account = false
  end
  account_of[at], scope_of[at], moved_of[at] = account, scope, false
  return account
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
    raw_of[at], user[USER_SIZE + 2], user[USER_SIZE + 3] = USER.written(user), false, false
  else user = false end
  account_of[at], scope_of[at], moved_of[at] = user, SCOPE_USER, false
  return user
end

local function open_activation(at, name)
  local activation = account_of[at]
  if not activation then
    local raw = raw_of[at]
    activation = activation_of(raw and today(raw, name))
    account_of[at], scope_of[at], moved_of[at] = activation, ACTIVATED, false
  end
  return activation
end

-- the accounts of a call by scope; made once
local scopes = {false, false, false, false}

-- batch: many calls in one function call: which keys and arguments are whose, a part for each partition, an answer for each call, and all
-- writes at once.
-- needs: accounts bucket budget_accounts entry state
-- sets: account_count account_of at_key at_organization at_tenant at_user event_count gone_count group keys_before last_accounts made_of makes member_count moved_alone moved_of named_from organization_far own_before part_is places_before raw_of reset_of shape shared_now tenant_far write_count write_of written_as
-- Whether the writes that may fail are done.
local is_writing = false

-- Like `append`, then a command with many members, which may fail too; no later command may.
local function append_and(stream, entries, count, verb, name, members, added)
  local err = count > 0 and append(stream, entries, count)
  if err then return err end
  local done = try(verb, name, values(members, 1, added))
  if kind_of(done) ~= 'table' then
    is_writing = true
    return nil
  end
  if count > 0 then call('XDEL', stream, values(entries, 1, count)) end
  return done
end

-- All calls of one partition are a part. First come the keys that all calls of a part share, except its marker, part by part; then
-- the marker and the accounts of each part; then each call's hold. A call that is alone in its part names its accounts in order; for
-- many calls, each account is named once. The first argument, the `shape`, has these bytes: the number of parts, then for each part
-- its numbers of calls and accounts, and for each call its number of arguments, and in a part of many calls its number of accounts
-- and the place of each. In its part the marker has place 1, the first account 2.
-- The index at which a key names its kind: `tk:{p07}:h:`.
local KIND_AT, HOLD_KIND = 10, 104
-- The decoded shape: for each part its calls and places; for each call its first argument and their number, its number of accounts,
-- and where their places are in the shape; by scope each call's place among all places; and the first of the calls directly before it
-- that have the same accounts, in a part of many. And the number of calls.
local calls_of, places_of, argument_of, count_of, own_of, first_of, scope_places, group_of
local call_count = 0

local FIRST_PLACE, CALLS_MAX = 2, 64
local SHAPES_MAX = 32
local shapes, shape_count = {}, 0

-- The index after the places of `count` accounts that begin at `at`; nil if a place is none of their part.
local function past_places(packed, at, count, most)
  for i = at, at + count - 1 do
    local place = byte(packed, i) or 0
    if place < FIRST_PLACE or place > most then return nil end
  end
  return at + count
end

-- Decodes a shape: its calls, then the number of keys after the shared ones, of calls, and of arguments; nil if it is invalid. A call
-- with three accounts has another account's place for its user, or 0.
local function read_shape(packed)
  local parts, at, argument, calls_before, before = byte(packed) or 0, 2, 2, 0, 0
  local calls_in, places_in, arguments, counts, owns, firsts = {}, {}, {}, {}, {}, {}
  local api_keys, users, tenants, organizations, groups = {}, {}, {}, {}, {}
  for part = 1, parts do
    local calls, accounts = byte(packed, at, at + 1)
    if not accounts or calls == 0 then return nil end
    calls_in[part], places_in[part], at = calls, 1 + accounts, at + 2
    local named_before
    for i = calls_before + 1, calls_before + calls do
      local count, own = byte(packed, at, at + 1)
      local tenant, organization, api_key, user = 2, 3, 4, 5
      groups[i] = false
      if calls == 1 then at, own = at + 1, accounts
      else
        at = own and past_places(packed, at + 2, own, 1 + accounts)
        if at then
          tenant, organization, api_key, user = byte(packed, at - own, at - own + 3)
          local named = sub(packed, at - own, at - 1)
          groups[i], named_before = named == named_before and groups[i - 1] or i, named
        end
      end
      if not (count and at) then return nil end
      arguments[i], counts[i], owns[i], firsts[i], argument = argument, count, own, at - own, argument + count
      tenants[i], organizations[i], api_keys[i], users[i] = before + (tenant or 0), before + (organization or 0), before + (api_key or 0), before + (user or 0)
    end
    calls_before, before = calls_before + calls, before + 1 + accounts
  end
  if calls_before < 2 or calls_before > CALLS_MAX then return nil end
  local read = {calls_in, places_in, arguments, counts, owns, firsts, {api_keys, users, tenants, organizations}, before, calls_before, argument, groups}
  if shape_count == SHAPES_MAX then shapes, shape_count = {}, 0 end
  shapes[packed], shape_count = read, shape_count + 1
  return read
end

local function parsed_shape(packed) return shapes[packed] or read_shape(packed) end

-- Reads a shape; returns whether it fits keys and arguments, with no part twice, and in a part of many calls no account twice.
local function fits(packed, keys, argv, shared)
  local read = parsed_shape(packed)
  if not read then return false end
  calls_of, places_of, argument_of, count_of, own_of, first_of = read[1], read[2], read[3], read[4], read[5], read[6]
  scope_places, call_count, group_of = read[7], read[9], read[11]
  local known, k = {}, #calls_of * (shared - 1)
  if k + read[8] + call_count ~= #keys or #argv ~= read[10] - 1 then return false end
  for part = 1, #calls_of do
    local places = places_of[part]
    local marker = keys[k + 1]
    if known[marker] then return false end
    known[marker] = true
    for at = k + 2, calls_of[part] > 1 and k + places or 0 do
      local name = keys[at]
      if known[name] then return false end
      known[name] = true
    end
    k = k + places
  end
  return true
end

-- The number of states to write when a part began.
local write_before = 0
-- Budget accounts of single owners are written one by one, each in the layout of its part.
local left_of, layout_of, left_count = {}, {}, 0

-- Reads the values of KEYS from `before` + 1 to `last`: markers and accounts, and for settlements holds.
local function look_up(keys, before, last)
  write_count, gone_count, left_count, shared_now = 0, 0, 0, nil
  if makes then made_of, makes = {}, false end
  keys_before = before
  raw_of = call('MGET', values(keys, before + 1, last))
end

-- Begins a part after this many keys and places; its accounts are opened when they are needed. Nothing of the previous part is left,
-- unless it failed. `tenant_moves` says how far its tenants move at least, without a reset.
local function enter_part(own, before, tenant_moves)
  own_before, places_before, event_count, member_count, write_before, last_accounts, shape, group = own, before, 0, 0, write_count, nil, nil, nil
  if part_is ~= PART_CLOSED then
    account_of, moved_of, reset_of = {}, {}, {}
    forget()
  end
  part_is, tenant_far, organization_far = PART_OPEN, tenant_moves, FAR_HEAD
end

-- Packs the moved fields of an account that was packed as `raw`, between unchanged bytes, which are cut out once and stored after the
-- account's packed value. For a key or a user, and for an organization if only its buckets moved.
local function packed_head(raw, account, place)
  local tail = account[place + 2]
  if not tail then
    tail = ACCOUNT.past(raw, 'inflight')
    account[place + 1], account[place + 2] = ACCOUNT.unmoved(raw), tail
  end
  local packed = account[place + 1] .. ACCOUNT.moved(account, 'inflight') .. tail
  account[place] = packed
  return packed
end

local function packed_tenant(raw, tenant)
  local head, packed = tenant[TENANT_SIZE + 2]
  if not head then
    head = ACCOUNT.unmoved(raw)
    tenant[TENANT_SIZE + 2] = head
  end
  if tenant_far == FAR_HELD then packed = head .. TENANT.moved(tenant, 'held') .. TENANT.past(raw, 'held')
  else
    local tail = tenant[TENANT_SIZE + 3]
    if not tail then
      tail = TENANT.past(raw, 'ledger_at')
      tenant[TENANT_SIZE + 3] = tail
    end
    packed = head .. TENANT.moved(tenant, 'ledger_at') .. tail
  end
  tenant[TENANT_SIZE + 1] = packed
  return packed
end

local function packed_organization(raw, organization)
  if organization_far == FAR_HEAD then return packed_head(raw, organization, ORGANIZATION_SIZE + 1) end
  local head, packed = organization[ORGANIZATION_SIZE + 2] or ACCOUNT.unmoved(raw)
  if organization_far == FAR_HELD then packed = head .. ORGANIZATION.moved(organization, 'credits_held') .. ORGANIZATION.past(raw, 'credits_held')
  else packed = head .. ORGANIZATION.moved(organization, 'spend_at') .. ORGANIZATION.past(raw, 'spend_at') end
  organization[ORGANIZATION_SIZE + 1], organization[ORGANIZATION_SIZE + 2], organization[ORGANIZATION_SIZE + 3] = packed, head, false
  return packed
end

local function packed_of(raw, account, scope)
  if scope == SCOPE_TENANT then return packed_tenant(raw, account) end
  if scope == SCOPE_ORGANIZATION then return packed_organization(raw, account) end
  return packed_head(raw, account, packed_at[scope])
end

-- The moved account of budgets, packed; nil if it is written by itself (`write_all`): one of an owner, or one that goes.
local function leave_budget(account)
  if account[IS_EACH] or not account[DEFINITION] then
    left_count = left_count + 1
    left_of[left_count], layout_of[left_count] = account, written_as
    return nil
  end
  local packed = packed_budget(account)
  account[IS_NEW] = false
  remember(account[KEY_NAME], account, packed, PACKED)
  return packed
end

-- Like `leave_part`, for a part whose only call has moved nothing but these (PART_ALONE), in the order tenant, organization, key,
-- user, budgets.
local function leave_call(keys)
  local accounts, raws, writes, count, at = account_of, raw_of, write_of, write_count, places_before + 2
  local place, tenant, organization, api_key, user = at + keys_before, accounts[at], accounts[at + 1], accounts[at + 2], accounts[at + 3]
  accounts[at], accounts[at + 1], accounts[at + 2], accounts[at + 3] = nil, nil, nil, nil
  writes[count + 1], writes[count + 2] = keys[place], packed_tenant(raws[at], tenant)
  count = count + 2
  if organization then
    writes[count + 1], writes[count + 2] = keys[place + 1], packed_organization(raws[at + 1], organization)
    count = count + 2
  end
  if api_key then
    writes[count + 1], writes[count + 2] = keys[place + 2], packed_head(raws[at + 2], api_key, KEY_SIZE + 1)
    count = count + 2
  end
  if user and scope_of[at + 3] == SCOPE_USER then -- of a call without a user an account of budgets may be there
    local packed = packed_head(raws[at + 3], user, USER_SIZE + 1)
    if keep_user(keys[place + 3], packed, user, shared_now) then
      writes[count + 1], writes[count + 2] = keys[place + 3], packed
      count = count + 2
    end
  end
  local budgeted = moved_alone
  for i = 1, budgeted and #budgeted or 0 do
    local account = budgeted[i]
    local packed = leave_budget(account)
    account_of[account[PLACE]] = nil
    if packed then
      writes[count + 1], writes[count + 2] = account[KEY_NAME], packed
      count = count + 2
    end
  end
  if written_as ~= TODAY then all_as_written(writes, write_before + 1, count) end
  write_count, part_is = count, PART_CLOSED
end

-- Collects the writes of a part with this many places; nothing here fails. An unmoved account stays in the cache.
local function leave_part(keys, places)
  if part_is == PART_ALONE then return leave_call(keys) end
  local count = write_count
  for at = places_before + 2, places_before + places do
    local account = account_of[at]
    if account ~= nil then
      local name, scope, is_moved, packed = keys[at + keys_before], scope_of[at], moved_of[at], nil
      account_of[at], moved_of[at], reset_of[at] = nil, nil, nil
      if not (account and is_moved) then
        if account and scope == BUDGETED and raw_of[at] then remember(name, account, raw_of[at], PACKED) end
      elseif scope < ACTIVATED then
        packed = packed_of(raw_of[at], account, scope)
        remember(name, account, packed, packed_at[scope])
        if scope == SCOPE_USER then packed = keep_user(name, packed, account, shared_now) end
      elseif scope == ACTIVATED then packed = ACTIVATION.written(account)
      else packed = leave_budget(account) end
      if packed then
        write_of[count + 1], write_of[count + 2] = name, packed
        count = count + 2
      end
    end
  end
  part_is = PART_CLOSED
  if written_as ~= TODAY then all_as_written(write_of, write_before + 1, count) end
  write_count = count
end

-- Writes the collected states of all parts; nothing here fails.
local function write_all()
  if gone_count > 0 then call('DEL', values(gone_of, 1, gone_count)) end
  if write_count > 0 then call('MSET', values(write_of, 1, write_count)) end
  local last = written_as -- that of the last marker, which the next call may have too
  for i = 1, left_count do
    written_as = layout_of[i]
    write_budget(left_of[i], raw_of[left_of[i][PLACE]], shared_now)
  end
  written_as = last
end

-- Places the accounts of a call that is alone in its part: it names them in their order.
local function place_in_order(count)
  at_tenant, at_organization, at_key, at_user = places_before + 2, places_before + 3, places_before + 4, places_before + 5
  account_count, shape, named_from, group = count, nil, nil, nil
end

-- Places the accounts of a call by the shape, if its part has many; calls of one `group` name the same.
local function place_call(i, packed)
  at_key, at_user, at_tenant, at_organization = scope_places[1][i], scope_places[2][i], scope_places[3][i], scope_places[4][i]
  account_count, shape, named_from, group = own_of[i], packed, first_of[i], group_of[i]
end

-- Marks what the present call moved.
local function mark_moved(api_key, user, at_activation, accounts)
  if not (shape or at_activation) then
    part_is, moved_alone = PART_ALONE, accounts
    return
  end
  moved_of[at_tenant], moved_of[at_organization], moved_of[at_key] = true, true, api_key
  if user then moved_of[at_user] = true end
  if at_activation then moved_of[at_activation] = true end
  if accounts then keep_accounts(accounts) end
end

-- A script of calls: the number of keys that all calls of a part share (`shared`), how far it moves tenants (`moves`), whether it reads
-- holds (`with_holds`), and its functions: `begin` a part, `run` a call, `finish` a part, by the writes that may fail, all or none.

-- Runs one call: the answer.
local function run_call(script, keys, argv)
  local places = #keys - script.shared
  look_up(keys, script.shared - 1, script.with_holds and #keys or #keys - 1)
  enter_part(0, 0, script.moves)
  script.begin(false)
  place_in_order(places - 1)
  local answer = script.run(keys, keys[#keys], places + 1, argv, 1, #argv)
  script.finish(keys)
  leave_part(keys, places)
  write_all()
  return answer
end

-- Runs the calls of a part, those after `done`, whose places come after `before`.
local function run_part(script, keys, argv, part, before, done, answers)
  local run, many, holds = script.run, calls_of[part] > 1, #keys - call_count
  enter_part((part - 1) * (script.shared - 1), before, script.moves)
  script.begin(many)
  for i = done + 1, done + calls_of[part] do
    if not many then place_in_order(own_of[i]) elseif not group or group ~= group_of[i] then place_call(i, argv[1]) end
    answers[i] = run(keys, keys[holds + i], holds - keys_before + i, argv, argument_of[i], count_of[i])
  end
  script.finish(keys)
  leave_part(keys, places_of[part])
end

-- The error answer of a call that raised `why`.
local function error_of(why) return kind_of(why) == 'table' and why or {err = 'ERR ' .. why} end

-- Runs each call of a part, those after `done`, with its own keys and arguments, as if it came alone.
local function run_alone(script, keys, argv, part, first, done, answers)
  local packed, shared = argv[1], script.shared
  local own, calls, places = (part - 1) * (shared - 1), calls_of[part], byte(packed) * (shared - 1) + first
  for i = done + 1, done + calls do
    local names, a = {values(keys, own + 1, own + shared - 1)}, argument_of[i]
    names[shared] = keys[places + 1]
    for n = 1, own_of[i] do names[shared + n] = keys[places + (calls == 1 and n + 1 or byte(packed, first_of[i] + n - 1))] end
    names[#names + 1] = keys[#keys - call_count + i]
    local works, answer = protected(run_call, script, names, {values(argv, a, a + count_of[i] - 1)})
    answers[i] = works and answer or error_of(answer)
  end
end

-- Runs each part's calls together: the part fails before it has written anything, or succeeds as a whole. The remaining writes of all
-- parts are made at once. The calls of a failed part then run one by one, so that only a call that fails gets an error. Returns a
-- list of answers.
local function answer_each(script, keys, argv)
  local parts, answers, failed, done, first = byte(argv[1]), {}, {}, 0, 0
  local works = protected(look_up, keys, parts * (script.shared - 1), script.with_holds and #keys or #keys - call_count)
  for part = 1, parts do
    local writes, worked, why = write_count, false, nil
    is_writing = false
    if works then worked, why = protected(run_part, script, keys, argv, part, first, done, answers) end
    if not worked then
      if is_writing then error(why) end -- never: it would be done twice
      write_count, failed[#failed + 1] = writes, {part, first, done}
    end
    done, first = done + calls_of[part], first + places_of[part]
  end
  if works then write_all() end
  for _, place in ipairs(failed) do run_alone(script, keys, argv, place[1], place[2], place[3], answers) end
  return answers
end

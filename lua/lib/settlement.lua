-- settlement: calls that are settled without a charge here. Needs state, batch, admit.
-- A call's arguments are in `argv`, from `a` on.

local VERSION_AT = 15
-- The id of a request's only correction: its own, with the version digit 8.
local function correction_of(request)
  return sub(request, 1, VERSION_AT - 1) .. '8' .. sub(request, VERSION_AT + 1)
end

-- The time of a use that a control write charges; nil for an entry of the late queue, whose id is no number.
local function moment_of_use(entry) return entry and tonumber(entry) end

-- Whether an entry of the late queue was settled, or its request is on its way to PostgreSQL.
local function dealt_with(lane, entry, control, id)
  return call('HEXISTS', control, id) == 1 or not (moment_of_use(entry) or #call('XRANGE', lane, entry, entry) > 0)
end

-- Why there is nothing to settle here, or nil.
local function why_gone(entry_id, packed_hold, reclaimed, accounts, service_id)
  if not entry_id and not packed_hold then return SETTLED_UNKNOWN end
  if not entry_id and reclaimed then return SETTLED_RECLAIMED end
  if not accounts then return SETTLED_UNKNOWN_ACCOUNT end
  if packed_hold and service_id == 0 and HOLD.field(packed_hold, 'service_id') ~= 0 then return SETTLED_RAISED end
end

-- Adds such entries to the late queue, all or none; returns the error if that fails.
local function tell(lane, entries, count)
  for i = 1, count do
    local id = try('XADD', lane, '*', values(entries[i]))
    if kind_of(id) == 'table' then
      if i > 1 then call('XDEL', lane, values(entries, 1, i - 1)) end
      return id
    end
    entries[i] = id
  end
end

-- One-Time: the first successful call charges and activates the service, the last failed one (`free`) releases the price. Returns
-- whether it activates, and the credits to charge.
local function release_activation(activation, organization, credits, free, slots)
  activation.waiting = held_after(activation.waiting, slots)
  if activation.flags == ACTIVE or (free and activation.waiting > 0) then return false, credits end
  if activation.flags == PENDING then
    organization.credits_held = held_after(organization.credits_held, activation.price)
    credits = activation.price
  end
  activation.flags = free and 0 or ACTIVE
  activation.price = free and 0 or credits
  return not free, credits
end

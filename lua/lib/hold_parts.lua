-- hold_parts: the part of a hold that names its call's accounts and times, and the id of an API key and when it expires. Both are kept of the
-- last call. Needs state.

-- what a hold says of whose call it is, and when; that of the last call is kept
local service_held_for, now_held_for, ttl_held_for, tenant_held_for, key_held_for, units_held_for, said_of_call
local function hold_of_call(service_id, now, ttl, tenant, key_id, units)
  if now ~= now_held_for or key_id ~= key_held_for or tenant ~= tenant_held_for or service_id ~= service_held_for or ttl ~= ttl_held_for or units ~= units_held_for then
    service_held_for, now_held_for, ttl_held_for, tenant_held_for, key_held_for, units_held_for = service_id, now, ttl, tenant, key_id, units
    said_of_call = HOLD.span('observed', 'weighed', {service_id = service_id, deadline = now + ttl, organization_id = tenant.organization_id,
      tenant_id = tenant.tenant_id, key_id = key_id, units = units, created = now})
  end
  return said_of_call
end

-- an API key's id, and when it expires (0: never; a revoked one long ago), packed; what was asked last is kept: of calls that come together
-- it is mostly the same
local LONG_AGO = 1
local asked_key, id_asked, expires_asked
local function key_of_state(raw)
  if raw ~= asked_key then
    local key_flags = KEY.field(raw, 'flags')
    local expires, key_id = KEY.read(raw)
    asked_key, id_asked, expires_asked = raw, key_id, has(key_flags, REVOKED) and LONG_AGO or expires
  end
  return id_asked, expires_asked
end

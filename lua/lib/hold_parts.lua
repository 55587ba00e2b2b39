-- hold_parts: the part of a hold with its call's accounts and times, and the id and expiry of an API key. Both are cached for the
-- last call. Needs state.

-- The part of a hold with a call's accounts and times; the last one is cached.
local service_held_for, now_held_for, ttl_held_for, tenant_held_for, key_held_for, units_held_for, said_of_call
local function hold_of_call(service_id, now, ttl, tenant, key_id, units)
  if now ~= now_held_for or key_id ~= key_held_for or tenant ~= tenant_held_for or service_id ~= service_held_for or ttl ~= ttl_held_for or units ~= units_held_for then
    service_held_for, now_held_for, ttl_held_for, tenant_held_for, key_held_for, units_held_for = service_id, now, ttl, tenant, key_id, units
    said_of_call = HOLD.span('observed', 'quota_tokens', {service_id = service_id, deadline = now + ttl, organization_id = tenant.organization_id,
      tenant_id = tenant.tenant_id, key_id = key_id, units = units, created = now})
  end
  return said_of_call
end

-- An API key's id and expiry (0: never; a revoked key expired long ago), from its packed state; the last result is cached, since
-- calls that come together mostly have the same key.
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

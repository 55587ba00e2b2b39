-- account_bytes: packs the fields of an account that calls moved, between those they did not. Needs state, accounts.

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

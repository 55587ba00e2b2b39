-- park: move entries that wait, because an account is in quarantine, from the outbox into a stream of their organization.
-- needs: state
-- allows: oom (what is written was there before)
-- KEYS[1] m  KEYS[2] x outbox  KEYS[3] w how many entries wait, by organization (hash)  KEYS[4] w:<organization> (stream)
--   only this script writes the last two
-- ARGV[1] packed: run id (40), organization
-- ARGV[2] ids of entries to delete from KEYS[4], which wait no more: each 16 bytes, milliseconds and number
-- ARGV[3] ids of entries to move, in order, in the same form. Entries that are no longer in the outbox are skipped
-- Returns packed: 1, how many wait now | 0 unverified
-- Example: outbox 1-0 2-0 3-0, move 1-0 and 3-0 -> outbox 2-0, the organization's 1-0 3-0, {1, 2}
if #KEYS ~= 4 or #ARGV ~= 3 then return redis.error_reply('ERR park takes 4 keys and 3 arguments') end
local run_id, organization_id = PARK.read(ARGV[1])
local marker = call('GET', KEYS[1])
if marker and not verified(marker, run_id) then return CODE.pack{code = 0} end -- without one there is nothing of another history
local field = format('%.0f', organization_id)
-- a key of another type fails here, before anything is written
call('XLEN', KEYS[2]) call('HEXISTS', KEYS[3], field) call('XLEN', KEYS[4])

for at = 1, #ARGV[2], STREAM_ID_BYTES do
  local ms, number = STREAM_ID.read(ARGV[2], at)
  call('XDEL', KEYS[4], format('%.0f-%.0f', ms, number))
end
for at = 1, #ARGV[3], STREAM_ID_BYTES do
  local ms, number = STREAM_ID.read(ARGV[3], at)
  local id = format('%.0f-%.0f', ms, number)
  local found = call('XRANGE', KEYS[2], id, id)[1]
  if found then
    -- after a stream was replaced, its ids may be lower than the waiting ones: such an entry stays
    if kind_of(try('XADD', KEYS[4], id, values(found[2]))) == 'table' then break end
    call('XDEL', KEYS[2], id)
  end
end
local waiting = call('XLEN', KEYS[4])
if waiting > 0 then
  call('HSET', KEYS[3], field, waiting)
else
  call('DEL', KEYS[4])
  call('HDEL', KEYS[3], field)
end
return PARKED.pack{code = 1, waiting = waiting}

-- batch: what calls that come together share: the time, and what their partition's marker says. Needs state.

-- ms since the epoch. What one client sent in one write (`batch`: its number, like no other's)
-- and runs without another in between shares its time: TIME is a twentieth of what reserve and settle cost
local NO_BATCH = 0
local asked_by, answered = NO_BATCH, 0
local function clock(batch)
  if batch ~= asked_by or batch == NO_BATCH then
    local time = call('TIME')
    asked_by, answered = batch, time[1] * 1000 + floor(time[2] / 1000)
  end
  return answered
end

-- the marker's epoch and catalogue version, or nil where it was not verified under the run id asked for; what the last one
-- says is kept, since it is the same for all calls of a partition
local last_marker, marked_by, marked_epoch, marked_version
local function verified(marker, asked_for)
  if not marker then return nil end
  if marker ~= last_marker then
    if byte(marker) ~= TODAY then return nil end -- a version before or a newer one serves this partition
    local run_id, epoch, catalogue = MARKER.read(marker)
    marked_by, marked_epoch, marked_version = run_id, epoch, catalogue
    last_marker = marker
  end
  if marked_by ~= asked_for then return nil end
  return marked_epoch, marked_version
end

-- batch: values shared by the calls of a batch: the time, and their partition's marker, with the layout to write. Needs state.

-- The time in ms since the epoch. Calls that one client sent in one write (`batch`: its unique number), and that run without others
-- in between, share it: TIME is a twentieth of the cost of reserve and settle.
local NO_BATCH = 0
local asked_by, answered = NO_BATCH, 0
local function clock(batch)
  if batch ~= asked_by or batch == NO_BATCH then
    local time = call('TIME')
    asked_by, answered = batch, time[1] * 1000 + floor(time[2] / 1000)
  end
  return answered
end

-- The marker's epoch and catalogue version; nil if the marker has another run id than `asked_for`. The last result is cached, since
-- it is the same for all calls of a partition.
local last_marker, marked_by, marked_epoch, marked_version
local written_as = TODAY
local function verified(marker, asked_for)
  if marker ~= last_marker then
    if not marker then return nil end
    local number, packed = byte(marker), marker
    if number ~= TODAY then
      if number ~= EARLIER then return nil end -- an older version or a newer one serves this partition
      packed = MARKER.today(marker, number)
    end
    local run_id, epoch, catalogue = MARKER.read(packed)
    marked_by, marked_epoch, marked_version = run_id, epoch, catalogue
    last_marker, written_as = marker, number
  end
  if marked_by ~= asked_for then return nil end
  return marked_epoch, marked_version
end

-- A state in the layout of the last marker; and a list of names and states in turn, from one index to another.
local function as_written(name, state) return written_as == TODAY and state or earlier(state, name) end

local function all_as_written(list, first, last)
  if written_as == TODAY then return list end
  for i = first, last, 2 do list[i + 1] = earlier(list[i + 1], list[i]) end
  return list
end

-- calls: many calls in one function call, with an answer for each. Needs state, append, accounts, shape, write.

-- The error answer of a call that raised `why`.
local function error_of(why) return kind_of(why) == 'table' and why or {err = 'ERR ' .. why} end

-- Runs each call of a part, those after `done`, with its own keys and arguments, as if it came alone.
local function run_alone(alone, shared, keys, argv, part, first, done, answers)
  local shape = argv[1]
  local own, calls, places = (part - 1) * (shared - 1), calls_of[part], byte(shape) * (shared - 1) + first
  for i = done + 1, done + calls do
    local names, a = {values(keys, own + 1, own + shared - 1)}, argument_of[i]
    names[shared] = keys[places + 1]
    for n = 1, own_of[i] do names[shared + n] = keys[places + (calls == 1 and n + 1 or byte(shape, first_of[i] + n - 1))] end
    names[#names + 1] = keys[#keys - call_count + i]
    local works, answer = protected(alone, names, {values(argv, a, a + count_of[i] - 1)})
    answers[i] = works and answer or error_of(answer)
  end
end

-- Runs each part's calls together: the part fails before it has written anything, or succeeds as a whole. The remaining writes of all
-- parts are made at once. The calls of a failed part then run one by one, so that only a call that fails gets an error. Returns a
-- list of answers.
local function answer_each(alone, run_part, shared, finds_holds, keys, argv)
  local parts, answers, failed, done, first = byte(argv[1]), {}, {}, 0, 0
  local works = protected(look_up, keys, parts * (shared - 1), finds_holds and #keys or #keys - call_count)
  for part = 1, parts do
    local writes, worked, why = write_count, false, nil
    is_writing = false
    if works then worked, why = protected(run_part, keys, argv, part, first, done, answers) end
    if not worked then
      if is_writing then error(why) end -- never: it would be done twice
      write_count, failed[#failed + 1] = writes, {part, first, done}
    end
    done, first = done + calls_of[part], first + places_of[part]
  end
  if works then write_all() end
  for _, place in ipairs(failed) do run_alone(alone, shared, keys, argv, place[1], place[2], place[3], answers) end
  return answers
end

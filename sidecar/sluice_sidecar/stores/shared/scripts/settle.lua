-- Write what a gate owes: differences in slots, permits that have ended, permits that live on. Once, however often it is
-- sent.
--
-- KEYS  gates, epoch, last batch of this gate; then of each bucket: counts, permits, queue
-- ARGV  prefix, epoch, silence, life of a permit (ms), number of the batch;
--       then of each bucket: permits ended: how many, and their leases; permits that live: how many, and their leases;
--       windows: how many, and of each its code, how many slots, and of each slot its number and two differences
-- Returns {1, now}: written, now or before; {-1, now}: the store has lost its memory since that epoch

local now = clock()
local gates, epoch, last = KEYS[1], KEYS[2], KEYS[3]
local prefix, silence, life, batch = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

if redis.call('GET', epoch) ~= ARGV[2] then
  return {-1, now}
end
if batch <= (tonumber(redis.call('GET', last) or '0') or 0) then
  return {1, now}
end
local at = 6
local function next_number()
  at = at + 1
  return tonumber(ARGV[at - 1])
end
local function next_list(count)
  local list = {}
  for number = 1, count do
    list[number] = ARGV[at]
    at = at + 1
  end
  return list
end

for key = 4, #KEYS, 3 do
  local counts, permits, queue = KEYS[key], KEYS[key + 1], KEYS[key + 2]
  local room = false
  local ended = next_list(next_number())
  if #ended > 0 then
    room = redis.call('ZREM', permits, unpack(ended)) > 0
  end
  local alive = next_list(next_number())
  if #alive > 0 then
    local scored = {}
    for _, lease in ipairs(alive) do
      scored[#scored + 1], scored[#scored + 2] = now + life * 1000, lease
    end
    redis.call('ZADD', permits, unpack(scored))
    redis.call('PEXPIRE', permits, life)
  end
  local codes, differences = {}, {}
  for number = 1, next_number() do
    codes[number] = ARGV[at]
    at = at + 1
    differences[number] = {}
    for slot = 1, next_number() do
      differences[number][slot] = {next_number(), next_number(), next_number()}
    end
  end
  local windows = open_all(counts, codes, now)
  for number, window in ipairs(windows) do
    for _, each in ipairs(differences[number]) do
      amend(window, each[1], each[2], each[3])
      room = room or each[2] < 0 or each[3] < 0
    end
  end
  save_all(counts, windows)
  if room and redis.call('EXISTS', queue) > 0 then
    wake(queue, gates, prefix, now, silence)
  end
end
-- Last: a batch that stumbles over what no gate wrote is sent again, and counts twice rather than never.
redis.call('SET', last, string.format('%.0f', batch), 'PX', 172800000)
return {1, now}

-- Admit a call to all its buckets or to none, in one step.
--
-- KEYS  gates, tickets, epoch, recovery; then of each bucket: counts, permits, queue
-- ARGV  prefix, epoch, gate, silence, lease, life of a permit (ms), ticket, patience (µs), more,
--       slots, requests, tokens, input tokens, output tokens;
--       then of each bucket: shadow (0 or 1), cap on calls at a time (-1: none), number of windows,
--       and of each window: its code, the cap on its first amount, on its second (-1: none)
--       ticket: '' of a newcomer; 'new' of one that will wait if there is no room; else its number
--       more: further calls of the same kind that the gate would like to admit by itself within this slot of time
--
-- Returns {1, now, counted, taken, [shadows]}: admitted; both totals of each window, flat; how many further calls the gate
--         may admit; the buckets in shadow mode that had no room, as below
--         {0, now, ticket, {bucket, …}}: no room; of each bucket without room its number, calls in flight, what is kept
--         back (5 amounts), and of each window its head and, where it has no room, its older slots
--         {-1, now}: the store has lost its memory since that epoch; {-2, now}: it is just being told again

local now = clock()
local gates, tickets, epoch, recovery = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local prefix, gate, silence, lease, life = ARGV[1], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local ticket, patience, more = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
local demand = {tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])}

if redis.call('GET', epoch) ~= ARGV[2] then
  return {-1, now}
end

local queues = {recovery}
for key = 7, #KEYS, 3 do
  queues[#queues + 1] = KEYS[key]
end
local any_queue = redis.call('EXISTS', unpack(queues)) > 0
if any_queue and redis.call('EXISTS', recovery) > 0 then
  return {-2, now}
end

local function in_flight(permits, cap, ahead)
  local count = redis.call('ZCARD', permits)
  if count + ahead + demand[1] > cap and redis.call('ZREMRANGEBYSCORE', permits, '-inf', now) > 0 then
    count = redis.call('ZCARD', permits)
  end
  return count
end

local function over(counted, asked, ahead, cap)
  return cap >= 0 and counted + asked + ahead > cap
end

local buckets, without_room, shadows, stopped = {}, {}, {}, false
local at = 15
for key = 5, #KEYS, 3 do
  local bucket = {
    counts = KEYS[key], permits = KEYS[key + 1], queue = KEYS[key + 2],
    shadow = ARGV[at] == '1', cap = tonumber(ARGV[at + 1]), in_flight = 0, waiting = false,
  }
  local codes, caps = {}, {}
  local windows = tonumber(ARGV[at + 2])
  at = at + 3
  for number = 1, windows do
    codes[number] = ARGV[at]
    caps[number] = {tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])}
    at = at + 3
  end
  bucket.codes, bucket.caps = codes, caps
  bucket.windows = open_all(bucket.counts, codes, now)
  local ahead = {0, 0, 0, 0, 0}
  if any_queue then
    ahead = kept_back(bucket.queue, gates, now, silence, tonumber(ticket) and ticket or '')
    bucket.waiting = redis.call('EXISTS', bucket.queue) > 0
  end
  local has_room = true
  if bucket.cap >= 0 and demand[1] > 0 then
    bucket.in_flight = in_flight(bucket.permits, bucket.cap, ahead[1])
    has_room = bucket.in_flight + ahead[1] + demand[1] <= bucket.cap
  end
  for number, window in ipairs(bucket.windows) do
    local part = window.code < 'a' and 2 or 0 -- upper case: the parts
    local cap = caps[number]
    if
      over(window.first, demand[2 + part], ahead[2 + part], cap[1])
      or over(window.second, demand[3 + part], ahead[3 + part], cap[2])
    then
      has_room, window.full = false, true
    end
  end
  buckets[#buckets + 1] = bucket
  bucket.blocked = not has_room
  if not has_room then
    local told = {#buckets, bucket.in_flight, ahead[1], ahead[2], ahead[3], ahead[4], ahead[5]}
    for _, window in ipairs(bucket.windows) do
      told[#told + 1] = head_of(window)
      told[#told + 1] = window.full and older(window) or ''
    end
    if bucket.shadow then
      shadows[#shadows + 1] = told
    else
      without_room[#without_room + 1], stopped = told, true
    end
  end
end

local number = tonumber(ticket)
if stopped then
  if ticket == 'new' then
    number = redis.call('INCR', tickets)
    redis.call('PEXPIRE', tickets, 172800000)
  end
  if number then
    for _, bucket in ipairs(buckets) do
      local blocked = bucket.blocked and not bucket.shadow
      local before = redis.call('ZRANGEBYSCORE', bucket.queue, number, number)
      redis.call('ZREMRANGEBYSCORE', bucket.queue, number, number)
      redis.call('ZADD', bucket.queue, number, entry(blocked, number, gate, now + patience, demand))
      redis.call('PEXPIRE', bucket.queue, math.ceil(patience / 1000) + 60000)
      if before[1] and string.sub(before[1], 1, 1) == 'b' and not blocked then
        wake(bucket.queue, gates, prefix, now, silence)
      end
    end
  end
  return {0, now, number or 0, without_room}
end

-- Further calls: none where somebody waits, and at most what is left, shared with the other gates.
if more > 0 then
  for _, bucket in ipairs(buckets) do
    if bucket.waiting or bucket.shadow and bucket.blocked then
      more = 0
    end
    local share = 2 * math.max(1, redis.call('ZCOUNT', gates, now - silence, '+inf'))
    if bucket.cap >= 0 and demand[1] > 0 then
      more = math.min(more, math.floor((bucket.cap - bucket.in_flight - demand[1]) / share / demand[1]))
    end
    for index, window in ipairs(bucket.windows) do
      local part = window.code < 'a' and 2 or 0
      local cap, first, second = bucket.caps[index], demand[2 + part], demand[3 + part]
      if cap[1] >= 0 and first > 0 then
        more = math.min(more, math.floor((cap[1] - window.first - first) / share / first))
      end
      if cap[2] >= 0 and second > 0 then
        more = math.min(more, math.floor((cap[2] - window.second - second) / share / second))
      end
    end
  end
  more = math.max(0, more)
end

local counted = {}
for _, bucket in ipairs(buckets) do
  for _, window in ipairs(bucket.windows) do
    local part = window.code < 'a' and 2 or 0
    book(window, (1 + more) * demand[2 + part], (1 + more) * demand[3 + part])
    counted[#counted + 1], counted[#counted + 2] = window.first, window.second
  end
  save_all(bucket.counts, bucket.windows)
  if bucket.cap >= 0 and demand[1] > 0 then
    local permits = {now + life * 1000, lease}
    for further = 1, more do
      permits[#permits + 1], permits[#permits + 2] = now + life * 1000, lease .. '+' .. further
    end
    redis.call('ZADD', bucket.permits, unpack(permits))
    redis.call('PEXPIRE', bucket.permits, life)
  end
  if number then
    redis.call('ZREMRANGEBYSCORE', bucket.queue, number, number)
    wake(bucket.queue, gates, prefix, now, silence)
  end
end
return #shadows > 0 and {1, now, counted, more, shadows} or {1, now, counted, more}

-- The windows of `sluice.core.windows`, on the server: the same slots, the same bound.
--
-- A bucket is a hash. Of each of its windows it has two fields: the head (`m`, `h`, `d` for requests and tokens over a
-- minute, an hour, a day; `M`, `H`, `D` for input and output tokens) and the slots before the newest one (`ms`, `hs`, …).
-- So an admission reads and writes heads alone; older slots are touched when one begins or leaves, and by late commits.
-- Numbers are doubles: whole up to 2^53.

local SLOTS = 60
local SIZE = {m = 1e6, h = 6e7, d = 1.44e9, M = 1e6, H = 6e7, D = 1.44e9} -- microseconds of a slot
local HEAD = '<dddddd' -- the newest slot and its two amounts, both totals, the oldest slot
local SLOT = '<ddd'
local WIDTH = 24 -- bytes of a slot
local SPARE = 60000 -- milliseconds that a bucket is kept beyond its last slot

-- The slots before the newest, in time order.
local function older(window)
  if not window.older then
    local text = redis.call('HGET', window.key, window.code .. 's') or ''
    if #text % WIDTH ~= 0 then
      error('no gate wrote this')
    end
    window.older = text
  end
  return window.older
end

local function slide(window)
  local text, at, left = older(window), 1, window.slot - SLOTS
  while at <= #text do
    local slot, first, second = struct.unpack(SLOT, text, at)
    if slot >= left then
      break
    end
    window.first, window.second = window.first - first, window.second - second
    at = at + WIDTH
  end
  window.older, window.rewritten = string.sub(text, at), true
  window.oldest = at <= #text and struct.unpack(SLOT, text, at) or window.newest
end

local function is_head(text)
  if #text ~= 6 * 8 then
    return false
  end
  local newest, newest_first, newest_second, first, second, oldest = struct.unpack(HEAD, text)
  local least = math.min(newest, newest_first, newest_second, first, second, oldest)
  return least >= 0 and math.max(newest, first, second, oldest) < 2 ^ 53 -- neither is true of what is no number
end

-- A window as it is at `now`. A clock that has stepped back counts as one that stands still.
local function opened(key, code, head, now)
  local window = {key = key, code = code, slot = math.floor(now / SIZE[code])}
  if head then
    if not is_head(head) then
      error('no gate wrote this')
    end
    window.newest, window.newest_first, window.newest_second, window.first, window.second, window.oldest =
      struct.unpack(HEAD, head)
    window.slot = math.max(window.slot, window.newest)
    if window.newest >= window.slot - SLOTS then
      if window.oldest < window.slot - SLOTS then
        slide(window)
      end
      return window
    end
    window.older, window.rewritten = '', true
  else
    window.older = ''
  end
  window.newest, window.newest_first, window.newest_second = window.slot, 0, 0
  window.first, window.second, window.oldest, window.begun = 0, 0, window.slot, true
  return window
end

local function open_all(key, codes, now)
  local windows = {}
  if #codes > 0 then
    for at, head in ipairs(redis.call('HMGET', key, unpack(codes))) do
      windows[at] = opened(key, codes[at], head, now)
    end
  end
  return windows
end

local function begin(window, slot)
  if window.newest_first ~= 0 or window.newest_second ~= 0 then
    local newest = struct.pack(SLOT, window.newest, window.newest_first, window.newest_second)
    window.older, window.rewritten = older(window) .. newest, true
  elseif window.oldest == window.newest then
    window.oldest = slot
  end
  window.newest, window.newest_first, window.newest_second, window.begun = slot, 0, 0, true
end

-- Count in the slot of now.
local function book(window, first, second)
  if window.slot ~= window.newest then
    begin(window, window.slot)
  end
  window.newest_first, window.newest_second = window.newest_first + first, window.newest_second + second
  window.first, window.second = window.first + first, window.second + second
end

local function changed(window, first, second, by_first, by_second)
  local new_first, new_second = math.max(first + by_first, 0), math.max(second + by_second, 0)
  window.first, window.second = window.first + new_first - first, window.second + new_second - second
  return new_first, new_second
end

-- Change what is counted in some slot; what has left stays as it is, and nothing goes below 0. No slot begins before
-- its time: a window would stand still until then.
local function amend(window, slot, first, second)
  slot = math.min(slot, window.slot)
  if slot < window.slot - SLOTS then
    return
  end
  if slot > window.newest then
    begin(window, slot)
  end
  if slot == window.newest then
    window.newest_first, window.newest_second =
      changed(window, window.newest_first, window.newest_second, first, second)
    return
  end
  local text = older(window)
  local at = #text - WIDTH + 1
  local found, had_first, had_second = -1, 0, 0
  while at > 0 do
    found, had_first, had_second = struct.unpack(SLOT, text, at)
    if found <= slot then
      break
    end
    at = at - WIDTH
  end
  local behind = at > 0 and at + WIDTH or 1
  local before = behind
  if at > 0 and found == slot then
    before = at
  else
    had_first, had_second = 0, 0
  end
  local is_first, is_second = changed(window, had_first, had_second, first, second)
  local packed = struct.pack(SLOT, slot, is_first, is_second)
  window.older = string.sub(text, 1, before - 1) .. packed .. string.sub(text, behind)
  window.rewritten, window.oldest = true, math.min(window.oldest, slot)
end

local function head_of(window)
  return struct.pack(
    HEAD, window.newest, window.newest_first, window.newest_second, window.first, window.second, window.oldest
  )
end

-- The longest window comes last.
local function save_all(key, windows)
  local fields, begun = {}, false
  for _, window in ipairs(windows) do
    fields[#fields + 1], fields[#fields + 2] = window.code, head_of(window)
    if window.rewritten then
      fields[#fields + 1], fields[#fields + 2] = window.code .. 's', window.older
    end
    begun = begun or window.begun
  end
  if #fields == 0 then
    return
  end
  redis.call('HSET', key, unpack(fields))
  if begun then
    local longest = 0
    for _, window in ipairs(windows) do
      longest = math.max(longest, SIZE[window.code])
    end
    redis.call('PEXPIRE', key, (SLOTS + 1) * longest / 1000 + SPARE)
  end
end

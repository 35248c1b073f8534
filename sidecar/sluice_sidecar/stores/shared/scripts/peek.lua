-- What buckets count, for people to see.
--
-- KEYS  of each bucket: counts, permits
-- ARGV  of each bucket: number of windows, and their codes
-- Returns {now, {calls in flight, head, …}, …}: the head of each window, as it is now

local now = clock()
local told = {now}
local at = 1
for key = 1, #KEYS, 2 do
  local codes = {}
  local windows = tonumber(ARGV[at])
  for number = 1, windows do
    codes[number] = ARGV[at + number]
  end
  at = at + 1 + windows
  local bucket = {redis.call('ZCOUNT', KEYS[key + 1], '(' .. string.format('%.0f', now), '+inf')}
  for number, window in ipairs(open_all(KEYS[key], codes, now)) do
    bucket[number + 1] = head_of(window)
  end
  told[#told + 1] = bucket
end
return told

-- The server's clock, in microseconds. No gate has a say in the time.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

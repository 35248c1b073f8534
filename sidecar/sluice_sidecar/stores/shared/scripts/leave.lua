-- Whoever waited has given up: out of the queues, and those behind it may get on.
--
-- KEYS  gates; then the queue of each bucket
-- ARGV  prefix, silence, ticket

local now = clock()
for key = 2, #KEYS do
  if redis.call('ZREMRANGEBYSCORE', KEYS[key], ARGV[3], ARGV[3]) > 0 then
    wake(KEYS[key], KEYS[1], ARGV[1], now, tonumber(ARGV[2]))
  end
end
return now

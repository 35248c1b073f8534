-- A gate lives. The first one names the epoch: how long the store remembers.
--
-- KEYS  gates, epoch, recovery, last batch of this gate
-- ARGV  gate, silence (µs), a name for a new epoch, the epoch that the gate knows ('' if none), its last beat that was
--       answered, by this clock (0 if none was)
-- Returns {now, epoch, gates alive, last batch, ms until the store decides again}
--
-- A gate that knows of another epoch has counts that the store has lost. For `RECOVERY` nothing is decided then, so that
-- every gate has the time to tell again what it counted. So it is where the server knows the epoch, but has come back
-- with an older memory than a replica that takes over: it does not know the gate's last beat.

local LAG = 5000000
local REMEMBERED = 3600000000 -- an hour: how long gates are known that are not heard of any more
local RECOVERY = 2000
local KEPT = 172800000 -- two days: longer than any window

local now = clock()
local gates, epoch, recovery, last = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local heard = tonumber(redis.call('ZSCORE', gates, ARGV[1]) or '0') or 0
redis.call('ZADD', gates, now, ARGV[1]) -- first: a full server refuses that, and nothing after a command that frees
redis.call('ZREMRANGEBYSCORE', gates, '-inf', now - REMEMBERED)
redis.call('PEXPIRE', gates, KEPT)
local told = tonumber(ARGV[5])
if redis.call('GET', epoch) == ARGV[4] and told > now - REMEMBERED and heard < told - LAG then
  redis.call('SET', epoch, ARGV[3])
end
redis.call('SET', epoch, ARGV[3], 'NX')
redis.call('PEXPIRE', epoch, KEPT)
local name = redis.call('GET', epoch)
if ARGV[4] ~= '' and ARGV[4] ~= name then
  redis.call('SET', recovery, '1', 'PX', RECOVERY, 'NX')
end
if redis.call('PTTL', recovery) < 0 then
  redis.call('DEL', recovery) -- one without an end is not ours
end
return {
  now, name, redis.call('ZCOUNT', gates, now - tonumber(ARGV[2]), '+inf'),
  tonumber(redis.call('GET', last) or '0') or 0, math.max(0, redis.call('PTTL', recovery)),
}

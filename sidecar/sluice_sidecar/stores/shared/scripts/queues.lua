-- Those who wait, over all gates: in a sorted set for each bucket, by their tickets, which only grow.
--
-- As in the engine: from a later call is kept back what those ask for that found no room in this very bucket, and what
-- the first of all asks for, wherever it is blocked. Whoever waits for a gate that is not heard of any more is dropped.

local ENTRY = '^(%l) (%d+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$'
local LOOKED_AT = 100 -- entries that are looked at to find one to wake

local function entry(blocked, ticket, owner, deadline, demand)
  return string.format(
    '%s %.0f %s %.0f %.0f %.0f %.0f %.0f %.0f',
    blocked and 'b' or 'w', ticket, owner, deadline, demand[1], demand[2], demand[3], demand[4], demand[5]
  )
end

-- The entries that count of those given; the others are taken out.
local function living(queue, gates, now, silence, entries)
  local found, heard = {}, {}
  for _, text in ipairs(entries) do
    local blocked, ticket, owner, deadline, slots, requests, tokens, inputs, outputs = string.match(text, ENTRY)
    if heard[owner] == nil then
      heard[owner] = tonumber(redis.call('ZSCORE', gates, owner) or '0') >= now - silence
    end
    if heard[owner] and tonumber(deadline) >= now then
      found[#found + 1] = {
        blocked = blocked == 'b', ticket = ticket, owner = owner,
        demand = {tonumber(slots), tonumber(requests), tonumber(tokens), tonumber(inputs), tonumber(outputs)},
      }
    else
      redis.call('ZREM', queue, text)
    end
  end
  return found
end

-- What is kept back from whoever has that ticket; from a newcomer ('') for all who wait.
local function kept_back(queue, gates, now, silence, ticket)
  local before = ticket == '' and '+inf' or '(' .. ticket
  local sum = {0, 0, 0, 0, 0}
  local entries = redis.call('ZRANGEBYSCORE', queue, '-inf', before)
  for at, waiter in ipairs(living(queue, gates, now, silence, entries)) do
    if waiter.blocked or at == 1 then
      for amount = 1, 5 do
        sum[amount] = sum[amount] + waiter.demand[amount]
      end
    end
  end
  return sum
end

-- Tell the gate of the first one that found no room here: there may be some now. If it needs a place in flight, tell the
-- first that needs none too: that one may fit where the others do not. Those behind either find no more room than it does.
local function wake(queue, gates, prefix, now, silence)
  local is_told = false
  local entries = redis.call('ZRANGE', queue, 0, LOOKED_AT - 1)
  for _, waiter in ipairs(living(queue, gates, now, silence, entries)) do
    local needs_place = waiter.demand[1] > 0
    if waiter.blocked and not (is_told and needs_place) then
      redis.call('PUBLISH', prefix .. 'wake:' .. waiter.owner, waiter.ticket)
      if not needs_place then
        return
      end
      is_told = true
    end
  end
end

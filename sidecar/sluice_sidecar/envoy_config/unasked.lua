-- What becomes of a stream that its caller has not asked for its usage; `read_body.lua` has marked it. Calls without a mark
-- pass untouched: for them nothing here runs after the answer's headers.
--
--   hide    The gate has asked: the chunk that tells the usage is taken out again. Chunks are lines of the form
--           `data: {..., "choices": [], "usage": {...}}`. All that is held back is a line that has begun like one and is
--           not whole yet; the rest of a line that cannot be one goes on at once. At the end of a stream Lua has no way to
--           send what it held, so a line is judged as soon as its object is closed, whether or not a line feed follows.
--   count   Nobody has asked: the bytes that the model says are counted as they go by, and nothing is held back. They
--           stand in the members that the route names (`text`), and the access log tells the gate how many there were.

local MARKS = "sluice.stream"
local LONGEST = 8192 -- bytes of a line that are held: usage takes some 600, with all its details, and a word some 300

local KEY = 80 -- bytes of a longer one that wait for the next piece: a key may have begun there

local byte, find, match, sub, gsub, lower = string.byte, string.find, string.match, string.sub, string.gsub, string.lower

local function has_usage(s) -- in a text of the model's these quotes would be escaped
  local _, at = find(s, '"usage"', 1, true)
  while at do
    if find(s, "^%s*:%s*{", at + 1) then return true end
    _, at = find(s, '"usage"', at + 1, true)
  end
end

local function tells_usage(line)
  return find(line, "^data:%s*{") and has_usage(line) and match(line, '"choices"%s*:%s*%[%s*(.)') == "]"
    and not find(line, '"error"%s*:%s*{')
end

local function is_closed(start) -- the object of a line that has no end yet
  local bare = start:gsub("\\.", ""):gsub('"[^"]*"', "")
  return find(bare, "^data:%s*%b{}%s*$") and not find(bare, '"', 1, true)
end

local function may_tell_usage(start) -- a line as far as it has come
  if #start > LONGEST then return false end
  if start == "\r" or start == sub("data:", 1, #start) then return true end
  return find(start, "^data:%s*$")
    or find(start, "^data:%s*{") and not find(start, '"choices"%s*:%s*%[%s*[^%s%]]') and not is_closed(start)
end

local function hider() -- a function that is given a stream piece by piece, and returns what is to go on of each
  local held = "" -- a line that has begun, and may tell usage
  local passing, dropping = false, false -- a line has begun, and gone on; or been taken out
  local after = false -- the blank line that ends an event is to be taken out too
  return function(s)
    if held == "" and not (passing or dropping or after) and byte(s, -1) == 10 and not has_usage(s) then return s end
    s = held .. s
    local out, at = {}, 1
    while true do
      local stop = find(s, "\n", at, true)
      if not stop then break end
      local line = sub(s, at, stop)
      if dropping or not passing and tells_usage(line) then
        after = true
      elseif not passing and after and find(line, "^\r?\n$") then
        after = false
      else
        out[#out + 1], after = line, false
      end
      passing, dropping, at = false, false, stop + 1
    end
    held = sub(s, at)
    if held == "" or dropping or not passing and may_tell_usage(held) then
      if dropping then held = "" end
    elseif not passing and tells_usage(held) and is_closed(held) then
      held, dropping = "", true
    else
      out[#out + 1] = held
      held, passing = "", true
    end
    return table.concat(out)
  end
end

local function closing(s, from) -- the quote that ends the text that begins there: one with an even number of backslashes
  local to, before = from - 1
  repeat
    to = find(s, '"', to + 1, true)
    if not to then return nil end
    before = to - 1
    while before >= from and byte(s, before) == 92 do before = before - 1 end
  until (to - before) % 2 == 1
  return to
end

local function size(text) -- bytes with escapes undone, as the reader of the gate counts them
  if not find(text, "\\", 1, true) then return #text end
  text = gsub(gsub(text, "\\\\", "x"), "\\u[dD][89abAB]%x%x\\u[dD][c-fC-F]%x%x", "xxxx")
  text = gsub(gsub(gsub(text, "\\u00[0-7]%x", "x"), "\\u0[0-7]%x%x", "xx"), "\\u%x%x%x%x", "xxx")
  return #text - select(2, gsub(text, "\\.", ""))
end

local function whole(text) -- as far as no escape may go on behind it
  local from = math.max(1, #text - 11)
  local at = find(text, "\\", from, true)
  if not at then return text end
  while at > 1 and byte(text, at - 1) == 92 do at = at - 1 end
  return #text - at < LONGEST and sub(text, 1, at - 1) or text
end

local function counter(members) -- a function that is given a stream piece by piece, and returns what was said so far
  local keys, held, said = {}, "", 0
  local inside = false -- a text has begun in a line that was too long to be held
  for name in members:gmatch("%S+") do keys[#keys + 1] = '"' .. name .. '"' end
  return function(s)
    s = held .. s
    if inside then
      local stop = closing(s, 1)
      local text = stop and sub(s, 1, stop - 1) or whole(s)
      said, inside = said + size(text), not stop
      s = sub(s, stop and stop + 1 or #text + 1)
      if inside then
        held = s
        return said
      end
    end
    local lines = byte(s, -1) == 10 and s or match(s, "^.*\n") or ""
    local cut = #s - #lines > LONGEST
    if cut then lines = sub(s, 1, -KEY - 1) end
    held = sub(s, #lines + 1)
    for index = 1, #keys do
      local key, at = keys[index], 1
      while true do
        local _, key_end = find(lines, key, at, true)
        if not key_end then break end
        at = key_end + 1
        local start = match(lines, '^%s*:%s*"()', at)
        local stop = start and closing(lines, start)
        if stop then
          said, at = said + size(sub(lines, start, stop - 1)), stop + 1
        elseif start and cut then
          local text = whole(sub(lines, start))
          said, inside, held = said + size(text), true, sub(s, start + #text)
        end
      end
    end
    return said
  end
end

function envoy_on_response(handle)
  local marks = handle:streamInfo():dynamicMetadata():get(MARKS)
  local headers = handle:headers()
  if not marks or not find(lower(headers:get("content-type") or ""), "^text/event%-stream") then return end
  if marks.hide then
    headers:remove("content-length")
    local shown = hider()
    for chunk in handle:bodyChunks() do
      local s = chunk:getBytes(0, chunk:length())
      local out = shown(s)
      if out ~= s then chunk:setBytes(out) end
    end
  elseif marks.count then
    local said, before = counter(handle:filterContext():get("text") or ""), 0
    for chunk in handle:bodyChunks() do
      local now = said(chunk:getBytes(0, chunk:length()))
      if now ~= before then handle:streamInfo():dynamicMetadata():set(MARKS, "said", now) end
      before = now
    end
  end
end

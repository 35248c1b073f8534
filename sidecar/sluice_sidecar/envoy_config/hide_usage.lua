-- Takes the chunk that tells its usage out of a stream, where the caller did not ask for it: `read_body.lua` did, and marked
-- the call. Calls without the mark pass untouched: for them nothing here runs after the answer's headers.
--
-- Chunks are lines of the form `data: {..., "choices": [], "usage": {...}}`. All that is held back is a line that has begun
-- like one and is not whole yet; the rest of a line that cannot be one goes on at once. At the end of a stream Lua has no
-- way to send what it held, so a line is judged as soon as its object is closed, whether or not a line feed follows.

local MARKS = "sluice.stream"
local LONGEST = 8192 -- bytes of a line that are held back: usage takes some 600, with all its details

local byte, find, match, sub, lower = string.byte, string.find, string.match, string.sub, string.lower

local function tells_usage(line) -- in a text of the model's these quotes would be escaped
  return find(line, "^data:%s*{") and find(line, '"usage"%s*:%s*{') and match(line, '"choices"%s*:%s*%[%s*(.)') == "]"
end

local function is_closed(start) -- the object of a line that has no end yet
  local bare = start:gsub("\\.", ""):gsub('"[^"]*"', "")
  return find(bare, '^data:%s*%b{}%s*$') and not find(bare, '"', 1, true)
end

local function may_tell_usage(start) -- a line as far as it has come
  if #start > LONGEST then return false end
  if start == "\r" or start == sub("data:", 1, #start) then return true end
  return find(start, "^data:%s*$")
    or find(start, "^data:%s*{") and not find(start, '"choices"%s*:%s*%[%s*[^%s%]]') and not is_closed(start)
end

local function filter() -- a function that is given a stream piece by piece, and returns what is to go on of each
  local held = "" -- a line that has begun, and may tell usage
  local passing, dropping = false, false -- a line has begun, and gone on; or been taken out
  local after = false -- the blank line that ends an event is to be taken out too
  return function(s)
    if held == "" and not (passing or dropping or after) and byte(s, -1) == 10 and not find(s, '"usage"%s*:%s*{') then return s end
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

function envoy_on_response(handle)
  local marks = handle:streamInfo():dynamicMetadata():get(MARKS)
  local headers = handle:headers()
  if not marks or not marks.hide or not find(lower(headers:get("content-type") or ""), "^text/event%-stream") then return end
  headers:remove("content-length")
  local passes = filter()
  for chunk in handle:bodyChunks() do
    local s = chunk:getBytes(0, chunk:length())
    local out = passes(s)
    if out ~= s then chunk:setBytes(out) end
  end
end

-- Reads the facts of a call out of its body, whatever the body claims to be: a few texts and numbers of a JSON object.
--
-- It looks at each byte once and builds nothing, so that no body keeps a worker busy for long. Envoy's own JSON reader
-- takes two seconds and 1 GiB for 10 MiB of `[0,0,...]`; meanwhile every decision that the worker waits for runs into its
-- time limit, and with `failurePolicy: Allow` such calls pass unasked. Nor does it judge: what one reader refuses (NaN,
-- half a surrogate pair, integers past 2^63) a provider may take, and must not hide a model.
--
-- Which fields are which facts is the route's to say, in its `filter_context`:
--   facts   "model=model options.num_predict=max_output_tokens": fields of the body, at most two levels, and the facts
--   path    "models tunedModels": the model is the segment of the path behind one of these
--   switch  "stream_options.include_usage": what a call sets to be told the usage of a stream
--   unasked "inject" or "estimate": what becomes of a stream that does not set it
--
-- Besides it tells how much of the body is no text: `blob_bytes`, the bytes of files. These are texts of the JSON that are
-- base64 by their look, behind `data:...;base64,` or not; a form of several parts (`multipart`) is one as a whole.
--
-- `inject` sets the switch in the body's text, in place, and marks the call, so that `unasked.lua` takes the chunk out that
-- its caller did not ask for. `estimate` marks it for that script to count what streams.

local NAMESPACE = "sluice.request"
local MARKS = "sluice.stream"
local LONGEST = 8192 -- bytes of a text; of a longer one nothing is told
local MOST_READERS = 256 -- texts of `facts` that are remembered as tables; limits that change bring new ones
local MOST_EDITS = 100 -- places at which a body may set the switch: one that has more is refused
local SHORTEST_BLOB = 2048 -- bytes of a text: a shorter one is no file, or one that is cheap as text too
local STRIDE, SAMPLE = 4096, 256 -- of a text so many bytes in every so many are looked at; and the last
local MOST_ESCAPED = 1000 -- names of fields with an escape: each takes some 300 ns to compare
local DISGUISED = MOST_ESCAPED + 1 -- stands for a name of another case, by which some servers find the field all the same
local NOT_UTF_8 = {"^\255\254", "^\254\255", "^[%s{]%z", "^%z+{", "^%z%s%z", "^%z%z\254\255", "^%z%z%z%s%z"}
local REFUSAL = '{"error": {"type": "invalid_request_error", "message": "send the body as JSON in UTF-8, each field once and by its plain name"}}'

local byte, find, match, sub, char, floor = string.byte, string.find, string.match, string.sub, string.char, math.floor
local lower = string.lower
local ESCAPED = {b = "\b", f = "\f", n = "\n", r = "\r", t = "\t"}
local NAMES = setmetatable({}, {__mode = "k"}) -- the keys of a table of facts, as a list
local FOLDED = setmetatable({}, {__mode = "k"}) -- and in lower case, as a set
local HEX = {}
for digit = 0, 15 do
  HEX[byte(string.format("%x", digit))], HEX[byte(string.format("%X", digit))] = digit, digit
end

local readers, remembered = {}, 0

local function fold(name) -- the two letters beyond ASCII with a lower case within it are the long s and Kelvin's sign
  if find(name, "\197\191", 1, true) or find(name, "\226\132\170", 1, true) then
    name = name:gsub("\197\191", "s"):gsub("\226\132\170", "k")
  end
  return lower(name)
end

local function listed(facts, name)
  table.insert(NAMES[facts], name)
  FOLDED[facts][fold(name)] = true
end

local function table_of_facts()
  local facts = {}
  NAMES[facts], FOLDED[facts] = {}, {}
  return facts
end

local function reader(text) -- the facts by key; by key of an object, the facts in it
  local facts = readers[text]
  if facts then return facts end
  facts = table_of_facts()
  for field, fact in text:gmatch("(%S+)=(%S+)") do
    local parent, name = match(field, "^([^.]+)%.(.+)$")
    local into = facts
    if parent then
      into = facts[parent]
      if type(into) ~= "table" then
        into = table_of_facts()
        facts[parent] = into
        listed(facts, parent)
      end
    end
    into[name or field] = type(into[name or field]) == "table" and into[name or field] or fact
    listed(into, name or field)
  end
  if remembered == MOST_READERS then readers, remembered = {}, 0 end
  readers[text], remembered = facts, remembered + 1
  return facts
end

local function is_name(s, from, to, name) -- with escapes undone; no name here needs another escape than \u
  local at = 1
  while from <= to do
    local c = byte(s, from)
    if c == 92 then
      local a, b, d, e = byte(s, from + 2, from + 5)
      if byte(s, from + 1) ~= 117 or HEX[a] ~= 0 or HEX[b] ~= 0 or not (HEX[d] and HEX[e]) then return false end
      c, from = HEX[d] * 16 + HEX[e], from + 5
    end
    if c ~= byte(name, at) then return false end
    from, at = from + 1, at + 1
  end
  return at > #name
end

local escaped = 0

local unescaped

local function known(facts, s, from, to) -- the key of `facts` that the text is
  if to - from > 150 then return nil end
  local key = sub(s, from, to)
  if find(key, "\\", 1, true) then
    escaped = escaped + 1
    local names = NAMES[facts]
    for index = 1, #names do -- not `pairs`, which LuaJIT does not compile
      if is_name(s, from, to, names[index]) then return names[index] end
    end
    key = unescaped(key)
  elseif facts[key] then
    return key
  end
  if FOLDED[facts][fold(key)] then escaped = DISGUISED end
end

local function utf8(code)
  if code < 0x80 then return char(code) end
  local last = 0x80 + code % 64
  if code < 0x800 then return char(0xc0 + floor(code / 64), last) end
  local middle = 0x80 + floor(code / 64) % 64
  if code < 0x10000 then return char(0xe0 + floor(code / 4096), middle, last) end
  return char(0xf0 + floor(code / 262144), 0x80 + floor(code / 4096) % 64, middle, last)
end

local function clean(text) -- what is not UTF-8 could not be told to the gate at all: it stands as `?`
  local out, i = {}, 1
  while i <= #text do
    local part = match(text, "^[%z\1-\127]+", i) or match(text, "^[\194-\223][\128-\191]", i)
      or match(text, "^\224[\160-\191][\128-\191]", i) or match(text, "^[\225-\236\238\239][\128-\191][\128-\191]", i)
      or match(text, "^\237[\128-\159][\128-\191]", i) or match(text, "^\240[\144-\191][\128-\191][\128-\191]", i)
      or match(text, "^[\241-\243][\128-\191][\128-\191][\128-\191]", i)
      or match(text, "^\244[\128-\143][\128-\191][\128-\191]", i)
    out[#out + 1] = part or "?"
    i = i + (part and #part or 1)
  end
  return table.concat(out)
end

function unescaped(text)
  text = text:gsub("\\\\", "\\u005c")
  text = text:gsub("\\u([dD][89abAB]%x%x)\\u([dD][c-fC-F]%x%x)", function(high, low)
    return utf8(0x10000 + (tonumber(high, 16) - 0xd800) * 1024 + tonumber(low, 16) - 0xdc00)
  end)
  text = text:gsub("%z", "?"):gsub("\\u0000", "?") -- to Envoy a text ends there
  text = text:gsub("\\u(%x%x%x%x)", function(code) return utf8(tonumber(code, 16)) end)
  return clean((text:gsub("\\([^u])", function(letter) return ESCAPED[letter] or letter end)))
end

local function closing(s, from) -- the quote that ends the text: the next with an even number of backslashes before it
  local to, before = from
  repeat
    to = find(s, '"', to + 1, true)
    if not to then return nil end
    before = to - 1
    while byte(s, before) == 92 do before = before - 1 end
  until (to - before) % 2 == 1
  return to
end

local function looks(s, from, to) -- like base64; and like more than one character again and again, a word or hex digits
  local piece = sub(s, from, to)
  if find(piece, "\\", 1, true) then -- what encoders of JSON escape of the alphabet, and such an escape cut off
    piece = piece:gsub("\\/", ""):gsub("\\u00[23][bBdDfF]", ""):gsub("\\u?0?0?[23]?$", "")
  end
  if find(piece, "[^%w+/=_-]") then return false end
  return true, find(piece, "%u") and find(piece, "%l") and find(piece, "%d")
end

local function is_blob(s, from, to) -- the long text that stands from there to there
  local _, prefix = find(sub(s, from, from + SAMPLE), "^data:[^,]*;base64,")
  local good, mixed = looks(s, to - SAMPLE + 1, to)
  for at = from + (prefix or 0), to, STRIDE do
    local as_well, so_mixed = looks(s, at, math.min(at + SAMPLE - 1, to))
    good, mixed = good and as_well, mixed or so_mixed
    if not good then return false end
  end
  return good and (prefix or mixed)
end

local function value(s, from) -- the text or number that begins there; nil for anything else
  if byte(s, from) == 34 then
    local to = closing(s, from)
    if not to or to - from > LONGEST then return nil end
    local text = sub(s, from + 1, to - 1)
    return text ~= "" and unescaped(text) or nil
  end
  local word = match(s, "^[%w.+-]+", from)
  if word == "true" or word == "false" then return word end
  local number = word and #word <= 400 and tonumber(word)
  if number and number - number ~= 0 then return nil end -- infinite, or none
  if number and #word > 15 or word and find(word, "[eE]") and number then return string.format("%.0f", number) end
  return number and word
end

local function values_at(s, wanted, note)
  -- Where the values of the facts begin, by key, those in an object by its key and theirs; of a key that comes twice, the
  -- last. `note` is told of each, and of the objects. The other results are where the whole object begins, and how many
  -- bytes of its texts are blobs.
  local found, root, blobs = {}, nil, 0
  local i, size, depth = 1, #s, 0
  local facts, into, key, is_key
  local facts_inside, into_inside -- of the object at depth 2 that is open
  while i <= size and escaped <= MOST_ESCAPED do
    local c = byte(s, i)
    if key and c > 32 and c ~= 58 then -- neither space nor colon: the value of a fact begins
      if note then note(key, i, c) end
      if type(facts[key]) == "string" then
        into[key], key = i, nil
      elseif c ~= 123 then
        found[key], key = nil, nil
      end
    end
    if c == 34 then
      local start = i
      i = closing(s, start)
      if not i then break end
      if i - start > SHORTEST_BLOB and is_blob(s, start + 1, i - 1) then blobs = blobs + i - start - 1 end
      if is_key then key, is_key = known(facts, s, start + 1, i - 1), false end
    elseif c == 123 or c == 91 then
      depth = depth + 1
      if depth == 1 and c == 123 then
        facts, into, root = wanted, found, root or i
      elseif depth == 2 and c == 123 and key then
        facts, into = facts[key], {}
        found[key], facts_inside, into_inside = into, facts, into
      else
        facts = nil
        if depth == 2 then facts_inside = nil end
      end
      key, is_key = nil, facts ~= nil
    elseif c == 125 or c == 93 then
      depth = depth - 1
      facts, into, key, is_key = nil, found, nil, false
      if depth == 1 then
        facts = wanted
      elseif depth == 2 then
        facts, into = facts_inside, into_inside
      elseif depth <= 0 then
        break
      end
    elseif c == 44 then
      key, is_key = nil, facts ~= nil
    end
    i = i + 1
  end
  return found, root, blobs
end

local function switched_on(s, switch) -- the body with the switch set, wherever it stands; nil if that cannot be done
  local parent, name = match(switch, "^([^.]+)%.(.+)$")
  local set = '"' .. (name or switch) .. '":true'
  local out, at, edits, open = {}, 1, 0, nil
  local function put(text, from, to) -- in place of what stands from there to there
    edits = edits + 1
    if edits > MOST_EDITS then return end
    out[#out + 1], out[#out + 2], at = sub(s, at, from - 1), text, to + 1
  end
  local function end_object() -- an object without the switch: it comes first in it
    if open then put(set .. (match(s, "^%s*}", open) and "" or ","), open, open - 1) end
    open = nil
  end
  local function note(key, from, first)
    if key == parent then
      end_object()
      if first == 123 then
        open = from + 1
      elseif match(s, "^null", from) then
        put("{" .. set .. "}", from, from + 3)
      end
      return
    end
    open = nil
    local word = match(s, "^[%w.+-]+", from)
    local to = first == 34 and closing(s, from) or word and from + #word - 1
    if to then put("true", from, to) end
  end
  escaped = 0
  local _, root = values_at(s, reader(switch .. "=switch"), note)
  end_object()
  if edits == 0 then put((parent and '"' .. parent .. '":{' .. set .. "}" or set) .. ",", root + 1, root) end
  return edits <= MOST_EDITS and table.concat(out) .. sub(s, at) or nil
end

local function model_in(path, segments) -- the segment behind one of these, less a method's name (`:generateContent`)
  path = match(path, "^[^?]*")
  for _, form in ipairs({path, (path:gsub("%%2[Ff]", "/"))}) do
    for segment in segments:gmatch("%S+") do
      local plain = lower(segment):gsub("%p", "%%%0")
      local name = match(form, "^[^/]+", match(lower(form), "^.*/" .. plain .. "/()") or #form + 1)
      if name then
        name = name:gsub("%%(%x%x)", function(code) return char(tonumber(code, 16)) end):gsub(":%a+$", "")
        return name ~= "" and #name <= LONGEST and clean((name:gsub("%z", "?"))) or nil
      end
    end
  end
end

local function refuse(handle)
  handle:respond({[":status"] = "400", ["content-type"] = "application/json"}, REFUSAL)
end

local ON = {["true"] = true, ["1"] = true, ["1.0"] = true, t = true, yes = true, y = true, on = true}
-- How a call says that it wants a stream: some servers take any of these, also as texts and in any case.

local function is_multipart(handle, s) -- and no JSON that claims to be: a claim must not make text cheap
  return sub(s, 1, 2) == "--" and find((handle:headers():get("content-type") or ""):lower(), "^%s*multipart/")
end

function envoy_on_request(handle)
  local body = handle:body()
  local route = handle:filterContext() -- only now: it does not outlive the wait for the body
  local metadata = handle:streamInfo():dynamicMetadata()
  local segments = route:get("path")
  local model = segments and model_in(handle:headers():get(":path") or "", segments)
  if model then metadata:set(NAMESPACE, "model", model) end
  local facts = route:get("facts")
  if not (body and facts) then return end
  facts = reader(facts)
  local s = body:getBytes(0, body:length())
  escaped = 0
  local found, _, blobs = values_at(s, facts)
  local refused = escaped > MOST_ESCAPED
  for _, pattern in ipairs(NOT_UTF_8) do refused = refused or find(s, pattern) end
  if refused then
    refuse(handle)
    return
  end
  if is_multipart(handle, s) then blobs = #s end
  if blobs > 0 then metadata:set(NAMESPACE, "blob_bytes", string.format("%d", blobs)) end
  local told = {}
  local function tell(fact, from)
    local new = value(s, from)
    if new and ON[lower(new)] then
      if fact == "stream" then new = "true" end
      if fact == "stream_usage" and not match(s, "^true", from) then new = nil end -- a text or a number: to some it says no
    end
    if new and not (told[fact] and (tonumber(told[fact]) or 0) > (tonumber(new) or 0)) then
      told[fact] = new
      metadata:set(NAMESPACE, fact, new)
    end
  end
  for key, from in pairs(found) do -- of a fact that several fields tell, the largest
    if type(from) == "number" then
      tell(facts[key], from)
    else
      for inner, at in pairs(from) do tell(facts[key][inner], at) end
    end
  end
  local unasked = told.stream == "true" and told.stream_usage ~= "true" and route:get("unasked")
  if unasked == "inject" then
    local asking = switched_on(s, route:get("switch"))
    if not asking then
      refuse(handle)
      return
    end
    body:setBytes(asking)
    metadata:set(MARKS, "hide", "1")
  elseif unasked == "estimate" then
    metadata:set(MARKS, "count", "1")
  end
end

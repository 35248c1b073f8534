-- Shows the gate why a provider refused a call: a spend cap and an exhausted minute have the same status, and how long to
-- wait may stand in the body alone. The route names the statuses that refuse; every other answer passes untouched.
--
-- The body is held back until it is whole, so that what it says is there with the headers. It is handed on as printable
-- ASCII, which is JSON as much as it was before: the gate could not read a message with bytes that are no text.

local NAMESPACE = "sluice.refusal"
local LONGEST = 16384 -- bytes; those of the providers have some hundreds, and a larger one goes on unread

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  if headers:get("x-sluice-reason") or not string.find(handle:filterContext():get("statuses"), status, 1, true) then
    return -- refused by the gate, or by nobody
  end
  if status < "500" or status == "529" then headers:replace("x-sluice-refused-by", "provider") end -- Envoy has others too
  local size = tonumber(headers:get("content-length") or "")
  if size and size > LONGEST or not string.find(headers:get("content-type") or "", "json", 1, true) then return end
  local body = handle:body()
  if not body or body:length() > LONGEST then return end
  local text = string.gsub(body:getBytes(0, body:length()), "%c", " ")
  handle:streamInfo():dynamicMetadata():set(NAMESPACE, "body", (string.gsub(text, "[\128-\255]", "?")))
end

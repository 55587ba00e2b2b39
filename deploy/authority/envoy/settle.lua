-- Tells Tollkeeper the answer to each call that it let pass: it reads there what the call used.
local TAKEN, OURS = "envoy.filters.http.ext_authz", "tollkeeper"
local CREDENTIALS = { "authorization", "x-api-key", "api-key", "x-goog-api-key" }
-- Of a longer answer its beginning and its end are told: there stands what it used.
local BEGINNING_MAX, END_MAX = 6 * 2 ^ 20, 2 ^ 20
local SETTLE_MS_MAX = 5000

function envoy_on_request(handle)
  local headers, metadata = handle:headers(), handle:streamInfo():dynamicMetadata()
  for _, name in ipairs(CREDENTIALS) do
    local value = headers:get(name)
    if value then metadata:set(OURS, name, value) end
  end
end

function envoy_on_response(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local hold = (metadata:get(TAKEN) or {})["x-tollkeeper-hold"]
  if not hold then return end
  local answered, parts, ends, size, behind = handle:headers(), {}, {}, 0, 0
  local sent = {
    [":method"] = "POST", [":authority"] = "tollkeeper",
    [":path"] = "/.tollkeeper/holds/" .. hold .. "/answers/" .. answered:get(":status"),
    ["content-type"] = answered:get("content-type"), ["content-encoding"] = answered:get("content-encoding"),
  }
  for name, value in pairs(metadata:get(OURS) or {}) do sent[name] = value end
  for chunk in handle:bodyChunks() do
    local bytes = chunk:getBytes(0, chunk:length())
    size = size + #bytes
    if size <= BEGINNING_MAX then
      parts[#parts + 1] = bytes
    else
      ends[#ends + 1], behind = bytes, behind + #bytes
      while behind - #ends[1] >= END_MAX do behind = behind - #table.remove(ends, 1) end
    end
  end
  handle:httpCall("tollkeeper", sent, table.concat(parts) .. table.concat(ends), SETTLE_MS_MAX, true)
end

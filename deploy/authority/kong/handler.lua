-- Tollkeeper as the authority of Kong: a call passes with a hold, and its answer settles it.
-- Install as kong/plugins/tollkeeper/{handler,schema}.lua and name it in `plugins = bundled,tollkeeper`.
local http = require "resty.http"

local CREDENTIALS = { "authorization", "x-api-key", "api-key", "x-goog-api-key" }
local OF_CONNECTION = {
  "host", "connection", "keep-alive", "content-length", "transfer-encoding", "te", "expect", "upgrade",
}
-- Fields of Tollkeeper's answer that a client may see: the id of a hold is not among them.
local TOLD = {
  "ratelimit", "ratelimit-policy", "retry-after", "www-authenticate", "content-type", "x-tollkeeper-reason",
  "x-tollkeeper-tokens-remaining", "x-tollkeeper-credits-remaining", "x-tollkeeper-budget",
}
-- Of a longer answer its beginning and its end are told: there stands what it used.
local BEGINNING_MAX, END_MAX = 6 * 2 ^ 20, 2 ^ 20

local Tollkeeper = { PRIORITY = 905, VERSION = "1.0.0" }

local function told(answer)
  local fields = {}
  for _, name in ipairs(TOLD) do fields[name] = answer.headers[name] end
  return fields
end

local function request(conf, path, options)
  local client = http.new()
  client:set_timeout(conf.timeout_ms)
  options.method = options.method or "POST"
  return client:request_uri(conf.url .. path, options)
end

-- All fields are told that go on to the model, but for those of the connection.
local function fields_of(headers)
  local fields = {}
  for name, value in pairs(headers) do fields[name] = value end
  for _, name in ipairs(OF_CONNECTION) do fields[name] = nil end
  return fields
end

function Tollkeeper:access(conf)
  local headers = kong.request.get_headers()
  local body, failed = kong.request.get_raw_body()
  if failed then return kong.response.exit(413, { message = "The body is too long to be read." }) end
  local path = "/.tollkeeper/authorize/" .. conf.ttl_s .. ngx.var.request_uri
  local answer = request(conf, path, {
    method = kong.request.get_method(), headers = fields_of(headers), body = body,
  })
  if not answer or answer.status >= 500 then
    return kong.response.exit(503, { message = "Tollkeeper does not answer." })
  end
  if answer.status ~= 200 then return kong.response.exit(answer.status, answer.body, told(answer)) end
  local fields = {}
  for _, name in ipairs(CREDENTIALS) do
    fields[name] = headers[name]
    kong.service.request.clear_header(name)
  end
  -- The answer is read as it comes, and the provider has a key of its own.
  kong.service.request.clear_header("accept-encoding")
  kong.service.request.clear_header("x-tollkeeper-hold")
  if conf.provider_authorization then
    kong.service.request.set_header("authorization", conf.provider_authorization)
  end
  local shown = told(answer)
  shown["content-type"] = nil
  kong.ctx.plugin.call = {
    hold = answer.headers["x-tollkeeper-hold"], fields = fields, told = shown,
    parts = {}, ends = {}, size = 0, behind = 0,
  }
end

function Tollkeeper:header_filter()
  local call = kong.ctx.plugin.call
  if not call then return end
  kong.response.clear_header("x-tollkeeper-hold")
  for name, value in pairs(call.told) do kong.response.set_header(name, value) end
end

function Tollkeeper:body_filter()
  local call, bytes = kong.ctx.plugin.call, ngx.arg[1]
  if not call or not call.hold then return end
  call.is_over = call.is_over or ngx.arg[2]
  if not bytes or bytes == "" then return end
  call.size = call.size + #bytes
  if call.size <= BEGINNING_MAX then
    call.parts[#call.parts + 1] = bytes
  else
    call.ends[#call.ends + 1], call.behind = bytes, call.behind + #bytes
    while call.behind - #call.ends[1] >= END_MAX do
      call.behind = call.behind - #table.remove(call.ends, 1)
    end
  end
end

-- One whose client left is charged as held when its time is over.
function Tollkeeper:log(conf)
  local call = kong.ctx.plugin.call
  if not call or not call.hold or not call.is_over then return end
  local fields, path = call.fields, "/.tollkeeper/holds/" .. call.hold .. "/answers/" .. kong.response.get_status()
  fields["content-type"] = kong.response.get_header("content-type")
  fields["content-encoding"] = kong.response.get_header("content-encoding")
  local answer = table.concat(call.parts) .. table.concat(call.ends)
  ngx.timer.at(0, function()
    local settled, why = request(conf, path, { headers = fields, body = answer })
    if not settled or settled.status >= 300 then
      ngx.log(ngx.ERR, "tollkeeper: a hold is not settled: ", settled and settled.status or why)
    end
  end)
end

return Tollkeeper
